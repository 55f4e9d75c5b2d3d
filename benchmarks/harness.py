"""Runs cases round after round, each in a process of its own on an empty database, and looks at every result."""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import redis

from benchmarks.case import Case, Figures, Run, Size
from tests.helpers.servers import RedisProc

ROOT = Path(__file__).parents[1]
CASE_S = 7200

# The working directory comes first in sys.path: streamlib is taken from the checkout, benchmarks from here.
IN_CHECKOUT = """
import sys
sys.path.insert(0, sys.argv[1])
import streamlib
del sys.path[0]
from benchmarks.child import main
main(*sys.argv[2:])
"""


class WrongResult(Exception):
    """A case ended with a result that is not the right one; what it measured counts for nothing."""


@contextmanager
def server(kind: str) -> Iterator[RedisProc]:
    """A private server on a free port of 127.0.0.1 that writes nothing to disk."""
    with tempfile.TemporaryDirectory() as directory, RedisProc(kind, Path(directory)) as running:
        yield running


def measure(
    cases: Sequence[Case], rounds: int, size: Size, client: redis.Redis, url: str, tell: Callable[[str], None]
) -> list[dict[str, Figures]]:
    """What every round measured, by case; the order of the cases rotates. Raises WrongResult."""
    found: list[dict[str, Figures]] = []
    for number in range(rounds):
        turn, figures = number % len(cases), {}
        for case in [*cases[turn:], *cases[:turn]]:
            tell(f"round {number + 1} of {rounds}: {case.name}")
            figures[case.name] = run_case(case, size, client, url).figures
        found.append(figures)
    return found


def run_case(case: Case, size: Size, client: redis.Redis, url: str, wrapper: Sequence[str] = ()) -> Run:
    """One run of a case. `wrapper` are the words of a command that runs the process. Raises WrongResult."""
    client.flushall()
    case.fill(client, size)
    client.config_resetstat()
    done = subprocess.run([*wrapper, *command(case, size, url)], cwd=ROOT, stdout=subprocess.PIPE, timeout=CASE_S)
    if done.returncode:
        raise WrongResult(f"{case.name} ended with code {done.returncode}")
    told = [line for line in done.stdout.splitlines() if line.startswith(b"{")]  # a wrapper may say something too
    run = msgspec.json.decode(told[-1], type=Run)
    if problems := case.check(client, size, run):
        raise WrongResult(f"{case.name}: " + "; ".join(problems))
    return run


def command(case: Case, size: Size, url: str) -> list[str]:
    """The words that run the process of a case."""
    if case.module:
        part = size.part(case.share)
        return [case.python or sys.executable, "-m", case.module, url, str(part.events), str(part.warm)]
    given = [case.name.partition("@")[0], url, msgspec.json.encode(size).decode()]
    return [sys.executable, "-c", IN_CHECKOUT, case.checkout or str(ROOT), *given]
