"""`streamlib demo`: verified results after a kill, and nothing left behind, however it ends."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import redis

from tests.helpers.processes import end_process, is_alive
from tests.helpers.source_tree import ROOT
from tests.helpers.waiting import wait_until
from workers.flights.recompute import recompute
from workers.flights.records import DATA_FILE

PIDS = re.compile(r"pid (\d+)")


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "streamlib", "demo", *args]


def environment(directory: Path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("STREAMLIB_")}
    return inherited | {"PYTHONPATH": str(ROOT), "TMPDIR": str(directory)}


def run(directory: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*args),
        cwd=directory,
        env=environment(directory),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def assert_nothing_left(directory: Path, told: str) -> None:
    pids = [int(pid) for pid in PIDS.findall(told)]
    assert len(pids) in (2, 3), told
    assert not [pid for pid in pids if is_alive(pid)]
    assert not list(directory.glob("streamlib-*"))
    assert str(directory) not in _command_lines()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_month_of_flights_survives_a_killed_worker(tmp_path: Path) -> None:
    ended = run(tmp_path, "--json")
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    facts = recompute(DATA_FILE)
    assert told["verified"] is True
    assert told["mismatches"] == []
    assert told["events"] == told["published"] == facts.events == 53_472
    assert told["groups"] == facts.handled
    assert told["dead"] == sum(len(ids) for ids in facts.dead.values())
    assert told["recovered"] > 0
    assert told["duplicates"] >= 0
    assert "SIGKILL" in ended.stderr
    assert "worker-3 is ready" in ended.stderr, "the killed worker is replaced"
    assert_nothing_left(tmp_path, ended.stderr)


def test_a_person_reads_what_happened(tmp_path: Path) -> None:
    ended = run(tmp_path, "--events", "2000")
    assert ended.returncode == 0, ended.stderr
    assert "2,000 events published" in ended.stdout
    assert "carrier-board" in ended.stdout
    assert "verified in" in ended.stdout
    assert_nothing_left(tmp_path, ended.stderr)


def test_somebodys_redis_is_left_as_it_was(tmp_path: Path, redis_url: str, client: redis.Redis) -> None:
    client.xadd("flights", {"not": "ours"})
    before = {name: client.dump(name) for name in client.scan_iter()}
    ended = run(tmp_path, "--json", "--events", "500", "--redis", redis_url)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["verified"] is True
    assert {name: client.dump(name) for name in client.scan_iter()} == before
    client.delete("flights")


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_stops_everything_it_started(tmp_path: Path, sign: signal.Signals) -> None:
    log = tmp_path / "demo.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command(),
            cwd=tmp_path,
            env=environment(tmp_path),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
        )
    try:
        wait_until(lambda: "publishing" in log.read_text(), 60, what="the demo publishes")
        process.send_signal(sign)
        assert process.wait(60) == 128 + sign
    finally:
        end_process(process)
    told = log.read_text()
    assert "Traceback" not in told
    assert_nothing_left(tmp_path, told)


def test_kept_running_it_serves_metrics_until_enter(tmp_path: Path) -> None:
    log = tmp_path / "demo.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command("--keep", "--events", "300"),
            cwd=tmp_path,
            env=environment(tmp_path),
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=stream,
        )
    try:
        wait_until(lambda: "still running" in log.read_text(), 60, what="the demo waits for Enter")
        url = re.findall(r"http://127\.0\.0\.1:\d+/metrics", log.read_text())[-1]
        with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - the demo's own port
            assert b"streamlib_" in answer.read()
        process.communicate(b"\n", timeout=60)
        assert process.returncode == 0
    finally:
        end_process(process)
    assert_nothing_left(tmp_path, log.read_text())


def test_no_redis_is_said_so(tmp_path: Path) -> None:
    ended = run(tmp_path, "--redis", "redis://127.0.0.1:1/0", "--events", "10")
    assert ended.returncode == 3, ended.stderr
    assert "127.0.0.1:1" in ended.stderr
    assert "Traceback" not in ended.stderr


def _command_lines() -> str:
    """The command lines of all processes, where /proc can tell."""
    lines = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(entry.read_bytes().decode(errors="replace"))
        except OSError:  # ended meanwhile
            continue
    return "\n".join(lines)
