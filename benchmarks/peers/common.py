"""What the modules of the peers share: the event, the clock, the result."""

import itertools
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import redis

KEY = "bench:mark:"
PATIENCE_S = 1200.0


def order(number: int) -> dict[str, Any]:
    """The event that every case handles."""
    return {
        "order_id": f"o-{number}",
        "customer_id": f"c-{number % 1000}",
        "total": f"{number % 10_000 / 100:.2f}",
        "lines": ["book", "pen", "paper"],
    }


class Given:
    """The command line: where Redis is, how many events the clock sees, how many come before them and after."""

    def __init__(self) -> None:
        self.url = sys.argv[1]
        self.events, self.warm = int(sys.argv[2]), int(sys.argv[3])
        self.total = self.events + 2 * self.warm
        self.marks = (self.warm, self.warm + self.events, self.total)


class Clock:
    """Handlers of this process call `tick()` with the order's id, in any thread; the last event calls `finished`.

    Some libraries run an event twice now and then: it counts once.
    """

    def __init__(self, given: Given, finished: Callable[[], Any]) -> None:
        self._given = given
        self._numbers = itertools.count(1)  # whose next() is atomic
        self._moments: dict[int, tuple[float, float]] = {}
        self._seen: set[str] = set()
        self._finished = finished

    def tick(self, order_id: str) -> None:
        if order_id in self._seen:
            return
        self._seen.add(order_id)
        number = next(self._numbers)
        if number in self._given.marks:
            self._moments[number] = time.perf_counter(), time.process_time()
            if number == self._given.total:
                self._finished()

    def tell(self) -> None:
        """Prints the result."""
        (first_s, first_cpu_s), (last_s, last_cpu_s) = (self._moments[mark] for mark in self._given.marks[:2])
        cpu_us = (last_cpu_s - first_cpu_s) / self._given.events * 1e6
        tell(self._given, last_s - first_s, len(self._seen), {"cpu_us": cpu_us})


class ClockElsewhere:
    """The same for handlers in one other process, which leaves its marks in Redis."""

    def __init__(self, url: str, marks: tuple[int, ...]) -> None:
        self._client = redis.Redis.from_url(url)
        self._marks = marks
        self._seen: set[str] = set()

    def tick(self, order_id: str) -> None:
        if order_id in self._seen:
            return
        self._seen.add(order_id)
        number = len(self._seen)
        if number in self._marks:
            self._client.set(f"{KEY}{number}", time.monotonic())


def wait_for_marks(given: Given, settle_s: float = 0.5) -> None:
    """Waits for the marks of a ClockElsewhere, and prints the result."""
    with redis.Redis.from_url(given.url) as client:
        deadline_s = time.monotonic() + PATIENCE_S
        while not client.exists(f"{KEY}{given.total}"):
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"the worker did not handle {given.total} events")
            time.sleep(0.05)
        at_s: list[float] = [float(client.get(f"{KEY}{mark}") or 0) for mark in given.marks]
    tell(given, at_s[1] - at_s[0], given.total, {})


def tell(given: Given, seconds: float, handled: int, more: dict[str, float]) -> None:
    figures = {"events_per_s": given.events / seconds, **more}
    print(json.dumps({"figures": figures, "handled": handled}), flush=True)
