"""What handlers did, read from the lines that they left outside, and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Self

from msgspec import Struct


class Run(Struct):
    """One run of one event. Without an end its process died in it, or it is still under way."""

    n: int
    pid: int
    session: int
    """The process that the rig started; it or one that it started ran the handler."""
    began_ns: int
    ended_ns: int = 0
    cut: bool = False
    """It ended with an exception, a cancellation say."""


class Runs(Struct, frozen=True):
    all: list[Run]

    @classmethod
    def read(cls, lines: Iterable[bytes]) -> Self:
        found: dict[str, Run] = {}
        for line in lines:
            what, n, run, session, at_ns = line.decode().split()
            if what == "began":
                found[run] = Run(int(n), int(run.partition("-")[0]), int(session), int(at_ns))
            else:
                found[run].ended_ns, found[run].cut = int(at_ns), what == "cut"
        return cls(list(found.values()))

    def processes(self) -> int:
        """How many ran a handler."""
        return len({run.pid for run in self.all})

    def began(self, n: int) -> list[Run]:
        return [run for run in self.all if run.n == n]

    def ended(self, numbers: Iterable[int]) -> Counter[int]:
        """Number of the event -> how often it ran to its end."""
        wanted = set(numbers)
        return Counter(run.n for run in self.all if run.n in wanted and run.ended_ns and not run.cut)

    def lost(self, numbers: Iterable[int]) -> int:
        """Events that never ran to their end."""
        numbers = set(numbers)
        return len(numbers - self.ended(numbers).keys())

    def doubled(self, numbers: Iterable[int]) -> int:
        """Events that ran to their end more than once."""
        return sum(times > 1 for times in self.ended(numbers).values())

    def most_at_once(self, n: int) -> int:
        """Runs of one event at the same time, at most. One without an end counts as under way."""
        steps = [(run.began_ns, 1) for run in self.began(n)]
        steps += [(run.ended_ns, -1) for run in self.began(n) if run.ended_ns]
        now = most = 0
        for _, step in sorted(steps):
            now += step
            most = max(most, now)
        return most
