"""Measures a run in its middle: what is in flight then counts the same at both ends."""

from __future__ import annotations

import asyncio
import time

from msgspec import Struct

from streamlib.bench.figures import Figures
from streamlib.redisio.counting import Counter


class Size(Struct, frozen=True):
    """The clock runs over `events`, between `warm` before and `warm` after them; `paced` come one by one afterwards."""

    events: int
    warm: int
    paced: int

    @classmethod
    def of(cls, events: int) -> Size:
        return cls(events, max(events // 10, 1), min(events, 300))

    @property
    def backlog(self) -> int:
        return self.events + 2 * self.warm

    @property
    def total(self) -> int:
        return self.backlog + self.paced


class _Moment(Struct, frozen=True):
    handled: int
    at_s: float
    cpu_s: float
    commands: int


class Clock:
    """Handlers call `tick` for each event; `finished` is set when the backlog has been handled. To be made inside the
    event loop."""

    def __init__(self, size: Size, counter: Counter) -> None:
        self.finished = asyncio.Event()
        self.handled = 0
        self._marks = (size.warm, size.warm + size.events)
        self._backlog = size.backlog
        self._counter = counter
        self._moments: list[_Moment] = []

    def tick(self) -> None:
        self.handled += 1
        if self.handled in self._marks:
            now = _Moment(self.handled, time.perf_counter(), time.process_time(), self._counter.commands)
            self._moments.append(now)
        if self.handled >= self._backlog:
            self.finished.set()

    def figures(self) -> Figures:
        """Per event, CPU time that of this process; once both marks have been passed."""
        first, last = self._moments
        events = last.handled - first.handled
        return {
            "events_per_second": events / (last.at_s - first.at_s),
            "client_us": (last.cpu_s - first.cpu_s) / events * 1e6,
            "commands_per_1000": (last.commands - first.commands) / events * 1000,
        }


class Latencies:
    """Milliseconds from the call of publish to the start of the handler; `complete` is set with the last one."""

    def __init__(self, count: int) -> None:
        self.complete = asyncio.Event()
        self.ms: list[float] = []
        self._count = count

    def started(self, sent_ns: int) -> None:
        self.ms.append((time.monotonic_ns() - sent_ns) / 1e6)
        if len(self.ms) >= self._count:
            self.complete.set()
