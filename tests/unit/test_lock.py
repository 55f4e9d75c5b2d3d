"""What the image installs is locked: every dependency, each file by its hash, and the Dockerfile takes nothing else."""

import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from msgspec import Struct
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.helpers import deployment
from tests.helpers.source_tree import ROOT

LOCKS = ("deploy/requirements.txt", "deploy/requirements-build.txt")
IMAGE = {"python_version": "3.13", "python_full_version": "3.13.0", "sys_platform": "linux", "extra": ""}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


class Pin(Struct, frozen=True):
    """One locked package."""

    version: str
    hashes: tuple[str, ...]


def locked(path: str) -> dict[str, Pin]:
    """The packages of a lock by name. Every line of it must be a comment or belong to one of them."""
    text = re.sub(r"^#.*\n", "", (ROOT / path).read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found: dict[str, Pin] = {}
    for line in text.splitlines():
        pin, *hashes = line.split(" --hash=")
        requirement = Requirement(pin)
        [specifier] = requirement.specifier
        assert specifier.operator == "==", line
        found[canonicalize_name(requirement.name)] = Pin(specifier.version, tuple(one.strip() for one in hashes))
    return found


def needed(requirement: Requirement) -> dict[str, list[Requirement]]:
    """What it takes to install this on the image: who is asked for, by which requirements."""
    found: dict[str, list[Requirement]] = {}
    waiting = [requirement]
    while waiting:
        one = waiting.pop()
        extras = one.extras or {""}
        if one.marker and not one.marker.evaluate(IMAGE):
            continue
        found.setdefault(canonicalize_name(one.name), []).append(one)
        inner = map(Requirement, metadata.requires(one.name) or [])
        waiting += [
            two
            for two in inner
            if two.marker is None or any(two.marker.evaluate(IMAGE | {"extra": extra}) for extra in extras)
        ]
    return found


@pytest.mark.parametrize("text", PROJECT["project"]["dependencies"])
def test_every_dependency_and_what_it_needs_is_locked_in_a_version_that_fits(text: str) -> None:
    pins = locked(LOCKS[0])
    for name, requirements in needed(Requirement(text)).items():
        assert name in pins, f"{name} is missing in {LOCKS[0]}; make it anew (its first lines say how)"
        for requirement in requirements:
            assert requirement.specifier.contains(pins[name].version), requirement


def test_what_builds_the_wheel_is_locked_in_a_version_that_fits() -> None:
    pins = locked(LOCKS[1])
    for requirement in map(Requirement, PROJECT["build-system"]["requires"]):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)].version)


@pytest.mark.parametrize("path", LOCKS)
def test_every_locked_file_has_its_hash_and_no_index_is_named(path: str) -> None:
    for name, pin in locked(path).items():
        assert pin.hashes, name
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", one) for one in pin.hashes), name
    assert "://" not in (ROOT / path).read_text()


def test_the_image_installs_what_is_locked_and_nothing_else() -> None:
    installs = [words for words in build_steps() if words[1] in ("install", "wheel")]
    assert installs
    for words in installs:
        assert "--require-hashes" in words or "--no-index" in words, words
    assert [words[-1] for words in installs if "--require-hashes" in words] == list(LOCKS)


def build_steps() -> list[list[str]]:
    """What the image's first stage runs, in order."""
    first_stage = " ".join(f"{name} {rest}\n" for name, rest in deployment.dockerfile()).split("FROM ")[1]
    return [json.loads(found) for found in re.findall(r"^ ?RUN [^\[]*(\[.*\])", first_stage, re.MULTILINE)]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_images_first_stage_builds_from_the_locks_alone(tmp_path: Path) -> None:
    """Its very commands, with another folder for /opt. pip refuses a file whose hash is not in the lock, and does
    not look elsewhere for what is missing in it."""
    if not index_is_reachable(tmp_path):
        pytest.skip("no package index is reachable")
    for words in build_steps():
        arguments = [word.replace("/opt", str(tmp_path)) for word in words]
        arguments[0] = sys.executable if arguments[0] == "python" else arguments[0]
        done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
        assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
    shown = subprocess.run([tmp_path / "streamlib/bin/streamlib", "--version"], capture_output=True, check=True)
    assert shown.stdout.startswith(b"streamlib ")


def index_is_reachable(directory: Path) -> bool:
    pin = f"click=={locked(LOCKS[0])['click'].version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(directory / "probe"), pin]
    return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0
