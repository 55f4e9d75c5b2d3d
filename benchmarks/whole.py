"""Whole processes: how fast the command line starts, what a second worker process brings, what the server spends."""

import asyncio
import compileall
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

import streamlib
from benchmarks import checks, server_cost
from benchmarks.case import Case, Figures, Run, Size, nothing
from benchmarks.clock import asked, server_cpu_s
from benchmarks.loops import filled
from benchmarks.payload import STREAM, fill

ROOT = Path(__file__).parents[1]
PACKAGE = Path(streamlib.__file__).parents[1]
APP = "bench_app:app"
STARTS = 5
WAITING = 1
SERVER_BATCH = 500
LOOK_S = 0.005
PATIENCE_S = 600.0


@contextmanager
def command_line(*words: str) -> Iterator["subprocess.Popen[bytes]"]:
    """`streamlib ...` of the checkout that this process measures, where the app of the benchmarks can be imported."""
    path = os.pathsep.join([str(PACKAGE), str(ROOT / "benchmarks" / "apps")])
    with tempfile.TemporaryDirectory() as elsewhere:
        process = subprocess.Popen(
            [sys.executable, "-m", "streamlib", *words],
            cwd=elsewhere,
            env=os.environ | {"PYTHONPATH": path},
            stdout=subprocess.DEVNULL,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
            if process.wait() != 0:
                raise RuntimeError(f"streamlib {' '.join(words)} ended with code {process.returncode}")


def running(url: str, processes: int = 1) -> Any:
    return command_line("run", APP, "--redis", url, "-p", str(processes), "--no-http", "--log-level", "warning")


# --- start


async def startup(url: str, size: Size) -> Run:
    """Each start is that of a new process; files are in the page cache, compiled as an installer leaves them."""
    compileall.compile_dir(PACKAGE / "streamlib", quiet=1)
    help_s = []
    for _ in range(STARTS):
        started_s = time.perf_counter()
        with command_line("--help") as process:
            process.wait()
        help_s.append(time.perf_counter() - started_s)
    with redis.Redis.from_url(url, protocol=2) as client:
        started_s = time.perf_counter()
        with running(url) as process:
            _until(client, process, WAITING)
            first_s = time.perf_counter() - started_s
    return Run({"help_ms": sorted(help_s)[STARTS // 2] * 1000, "first_event_ms": first_s * 1000}, WAITING)


def one_waits(client: redis.Redis, size: Size) -> None:
    fill(client, WAITING)


def that_one_is_settled(client: redis.Redis, size: Size, run: Run) -> list[str]:
    return checks.settled(client, run, WAITING)


# --- processes


async def one_process(url: str, size: Size) -> Run:
    return _processes(url, size, 1)


async def two_processes(url: str, size: Size) -> Run:
    return _processes(url, size, 2)


def _processes(url: str, size: Size, count: int) -> Run:
    """`streamlib run -p N`, seen from Redis: how many events are acknowledged, from a tenth to nine tenths of them."""
    with redis.Redis.from_url(url, protocol=2) as client, running(url, count) as process:
        first, first_s = _until(client, process, size.warm)
        before = asked(client)
        last, last_s = _until(client, process, size.warm + size.events)
        after = asked(client)
        handled, _ = _until(client, process, size.total)
    figures = {
        "events_per_s": (last - first) / (last_s - first_s),
        "server_us": (server_cpu_s(after) - server_cpu_s(before)) / (last - first) * 1e6,
    }
    return Run(figures, handled)


def _until(client: redis.Redis, process: "subprocess.Popen[bytes]", count: int) -> tuple[int, float]:
    """Waits until so many events are acknowledged; how many are, and when."""
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s and process.poll() is None:
        groups: Any = client.xinfo_groups(STREAM)
        read = sum(int(one["entries-read"] or 0) - int(one["pending"]) for one in groups)
        if read >= count:
            return read, time.perf_counter()
        time.sleep(LOOK_S)
    raise RuntimeError(f"{count} events were not acknowledged; the worker's exit code: {process.poll()}")


def all_settled(client: redis.Redis, size: Size, run: Run) -> list[str]:
    return checks.settled(client, run, size.total)


# --- the server, and the event store


async def server_steps(url: str, size: Size) -> Run:
    """CPU time of the server for one event of one group, each step alone, in batches of 500."""
    events = size.events - size.events % SERVER_BATCH
    with redis.Redis.from_url(url, protocol=2) as client:
        steps = await server_cost.measure(client, url, events, SERVER_BATCH)
    figures: Figures = {f"{step}_us": row["process_us"] for step, row in steps.items()}
    figures["one_group_us"] = sum(row["process_us"] for step, row in steps.items() if step != "publish")
    return Run(figures, events)


def server_cost_is_right(client: redis.Redis, size: Size, run: Run) -> list[str]:
    return checks.settled(client, run, size.events - size.events % SERVER_BATCH)


async def event_store(url: str, size: Size) -> Run:
    """One round of `python -m benchmarks.event_store`, which starts a server of its own and asserts what it loads."""
    words = [sys.executable, "-m", "benchmarks.event_store", "--rounds", "1", "--json"]
    told = await asyncio.to_thread(subprocess.run, words, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    stores: dict[str, dict[str, float]] = json.loads(told.stdout)
    return Run({f"{store}: {name}": value for store, row in stores.items() for name, value in row.items()}, 0)


def right_by_itself(client: redis.Redis, size: Size, run: Run) -> Sequence[str]:
    return () if run.figures else ("the event store told nothing",)


CASES = [
    Case(
        "startup",
        "ms of `--help`, and of `run` to its first ack",
        startup,
        that_one_is_settled,
        one_waits,
    ),
    Case("one_process", "`run -p 1`, seen from Redis", one_process, all_settled, filled),
    Case("two_processes", "`run -p 2`", two_processes, all_settled, filled, base="one_process"),
    Case("server_cost", "the server's us per event, step by step", server_steps, server_cost_is_right, nothing),
    Case(
        "event_store", "python -m benchmarks.event_store", event_store, right_by_itself, nothing, needs="eventsourcing"
    ),
]
