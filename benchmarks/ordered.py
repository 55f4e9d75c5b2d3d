"""What order per key costs: `python -m benchmarks.ordered [--rounds K] [--beside DIR] [--json]`.

One worker handles events of 1, 16, 256 and 5,000 keys on one partition and on eight, in an ordered group, and the same
number in an unordered one. Every case runs in a process of its own on an empty database; ratios are taken within a
round. `--beside DIR` measures another checkout in the same rounds.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import redis
import uvloop
from msgspec import Struct

from streamlib import App, Event
from streamlib.embedded import open_embedded
from streamlib.settings import RedisSettings, Settings, WorkerSettings

ROOT = Path(__file__).parents[1]
TOPIC, GROUP = "moves", "ledger"
KEYS = (1, 16, 256, 5_000)
PARTITIONS = (1, 8)
EVENTS = {1: 3_000, 16: 8_000, 256: 16_000, 5_000: 16_000}
CASE_S = 300


class Case(Struct, frozen=True):
    """One thing to measure: without keys an unordered group."""

    partitions: int
    keys: int

    @property
    def events(self) -> int:
        return EVENTS[self.keys or max(KEYS)]

    @property
    def name(self) -> str:
        return f"{self.keys:,} keys" if self.keys else "unordered"


CASES = [Case(partitions, keys) for partitions in PARTITIONS for keys in (0, *KEYS)]


class Run(Struct, frozen=True):
    """One run of a case: events per second, and CPU of the worker per event."""

    rate: float
    cpu_us: float


class Moved(Event):
    account: str
    n: int


async def measure(url: str, case: Case) -> tuple[float, float]:
    """Seconds from the worker's start until every event is handled and none is pending, and seconds of CPU."""
    app = App("bench", settings=Settings(redis=RedisSettings(url=url), worker=WorkerSettings(block_ms=100)))
    topic = app.topic(TOPIC, Moved, key="account", partitions=case.partitions)
    all_ran, left = asyncio.Event(), case.events

    @app.handler(topic, group=GROUP, ordering="key" if case.keys else "none")
    async def handle(event: Moved) -> None:
        nonlocal left
        left -= 1
        if not left:
            all_ran.set()

    stop = asyncio.Event()
    async with app:
        keys = case.keys or max(KEYS)
        await topic.publish_many([Moved(account=f"a{n % keys}", n=n) for n in range(case.events)])
        streams = [app.keys.stream(TOPIC, number, case.partitions).stream for number in range(case.partitions)]
        started, cpu = time.perf_counter(), time.process_time()
        running = asyncio.create_task(app.worker().run(stop))
        await all_ran.wait()
        for stream in streams:
            while (await app.redis.execute("XPENDING", stream, GROUP))[0]:  # noqa: ASYNC110 - Redis knows
                await asyncio.sleep(0.001)
        taken = time.perf_counter() - started, time.process_time() - cpu
        stop.set()
        await running
    return taken


def run_case(client: redis.Redis, url: str, case: Case, checkout: Path) -> Run:
    """One case, with the streamlib of this checkout, in a process of its own."""
    client.flushall()
    command = [sys.executable, str(Path(__file__)), "--case", str(case.partitions), str(case.keys), url]
    environ = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(command, cwd=checkout, env=environ, stdout=subprocess.PIPE, check=True, timeout=CASE_S)
    seconds, cpu = map(float, done.stdout.split())
    return Run(case.events / seconds, cpu / case.events * 1e6)


def measure_rounds(rounds: int, checkouts: dict[str, Path]) -> list[dict[str, Any]]:
    """Per case and checkout the events per second of each round."""
    runs: dict[tuple[Case, str], list[Run]] = {}
    with tempfile.TemporaryDirectory() as directory, open_embedded(Path(directory)) as server:
        client = redis.Redis.from_url(server.url)
        for number in range(rounds):
            turn = number % len(CASES)
            for case in CASES[turn:] + CASES[:turn]:
                names = list(checkouts)
                for name in names if number % 2 == 0 else reversed(names):
                    runs.setdefault((case, name), []).append(run_case(client, server.url, case, checkouts[name]))
        client.close()
    return [
        {
            "partitions": case.partitions,
            "case": case.name,
            "of": name,
            "events_per_second": round(median(run.rate for run in runs[case, name])),
            "cpu_us_per_event": round(median(run.cpu_us for run in runs[case, name])),
            "to_unordered": _ratio(runs[case, name], runs[Case(case.partitions, 0), name]),
            "to_beside": _ratio(runs[case, name], runs[case, list(checkouts)[-1]]),
        }
        for case in CASES
        for name in checkouts
    ]


def _ratio(of: list[Run], to: list[Run]) -> float:
    return round(median(one.rate / other.rate for one, other in zip(of, to, strict=True)), 2)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ordered", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--beside", type=Path, help="another checkout, measured in the same rounds")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        partitions, keys, url = given.case
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # the loop that `streamlib run` takes
            print(*runner.run(measure(url, Case(int(partitions), int(keys)))))
        return
    checkouts = {"here": ROOT} | ({"beside": given.beside.resolve()} if given.beside else {})
    table = measure_rounds(given.rounds, checkouts)
    if given.json:
        print(json.dumps(table))
        return
    print(
        f"{'partitions':>10}  {'case':<12}{'of':<8}{'events/s':>10}{'CPU us':>8}{'to unordered':>14}{'to beside':>11}"
    )
    for row in table:
        print(
            f"{row['partitions']:>10}  {row['case']:<12}{row['of']:<8}{row['events_per_second']:>10,}"
            f"{row['cpu_us_per_event']:>8}{row['to_unordered']:>14}{row['to_beside']:>11}"
        )


if __name__ == "__main__":
    main()
