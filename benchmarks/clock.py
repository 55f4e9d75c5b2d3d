"""Measures a run from its `warm`th event on, `events` events long, inside the process that handles them."""

import asyncio
import itertools
import time
from typing import Any

import redis
from msgspec import Struct

from benchmarks.case import Figures, Run, Size

SCRIPTS = frozenset({"eval", "evalsha", "eval_ro", "evalsha_ro"})
SENT = SCRIPTS | {"xreadgroup", "xread"}
"""What a worker sends, by its name in commandstats; of the rest nearly all is called by scripts."""


class Moment(Struct, frozen=True):
    """What clocks and server said when so many events had been handled."""

    handled: int
    at_s: float
    cpu_s: float
    server: dict[str, Any]


class Clock:
    """Handlers call `tick()` per event, or `tick_many(n)` per batch from one thread; `run()` gives the figures.

    `finished` is set when all of the run's events have been handled. To be made inside the event loop.
    """

    def __init__(self, url: str, size: Size) -> None:
        self.finished = asyncio.Event()
        self._begins, self._ends, self._last = marks = size.warm, size.warm + size.events, size.total
        self._marks = frozenset(marks)
        self._numbers = itertools.count(1)  # whose next() is atomic: handlers may run in threads
        self._batched = 0
        self._moments: list[Moment] = []
        self._loop = asyncio.get_running_loop()
        self._client = redis.Redis.from_url(url, protocol=2)
        self._client.ping()

    def tick(self) -> None:
        number = next(self._numbers)
        if number in self._marks:
            self._mark(number, number)

    def tick_many(self, count: int) -> None:
        before, self._batched = self._batched, self._batched + count
        for mark in sorted(self._marks):
            if before < mark <= self._batched:
                self._mark(mark, self._batched)

    def _mark(self, mark: int, handled: int) -> None:
        """The server is asked outside of the measured time: before it begins, after it has ended. Another thread may
        come to the next mark meanwhile."""
        if mark == self._begins:
            server = self._asked()
            self._moments.append(Moment(handled, time.perf_counter(), time.process_time(), server))
        elif mark == self._ends:
            at_s, cpu_s = time.perf_counter(), time.process_time()
            self._moments.append(Moment(handled, at_s, cpu_s, self._asked()))
        if mark == self._last:
            self._loop.call_soon_threadsafe(self.finished.set)

    def _asked(self) -> dict[str, Any]:
        return asked(self._client)

    def run(self) -> Run:
        self._client.close()
        if len(self._moments) < 2:
            raise RuntimeError(f"fewer than {self._ends} events were handled")
        handled = max(next(self._numbers) - 1, self._batched)
        return Run(between(*self._moments), handled)


def asked(client: redis.Redis) -> dict[str, Any]:
    """INFO about CPU time and commands."""
    told: dict[str, Any] = client.info("cpu", "commandstats")
    return told


def between(first: Moment, last: Moment) -> Figures:
    """Figures per event handled from one moment to another."""
    events = last.handled - first.handled
    return {
        "events_per_s": events / (last.at_s - first.at_s),
        "cpu_us": (last.cpu_s - first.cpu_s) / events * 1e6,
        "server_us": (server_cpu_s(last.server) - server_cpu_s(first.server)) / events * 1e6,
        "commands": (commands(last.server) - commands(first.server)) / events,
    }


def server_cpu_s(info: dict[str, Any]) -> float:
    """CPU time of the whole server process."""
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


def commands(info: dict[str, Any]) -> float:
    """Commands that clients sent so far; where scripts ran, only those that none of our scripts calls."""
    calls = {name[8:]: stats["calls"] for name, stats in info.items() if name.startswith("cmdstat_")}
    if not calls.keys().isdisjoint(SCRIPTS):
        calls = {name: count for name, count in calls.items() if name in SENT}
    return float(sum(calls.values()))
