"""Tells how far long work has come: a bar where stderr is a terminal, else a line every few seconds."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from streamlib.cli.output import note

_EVERY_S = 5.0


class Counter:
    """`counter(done, total)` as work goes on. What is complete leaves no bar behind: a question may follow."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._began_at = time.monotonic()
        self._first: int | None = None
        self._told_at = 0.0
        self._bar: Progress | None = None

    def __call__(self, done: int, total: int) -> None:
        if sys.stderr.isatty():
            self._show(done, total)
        else:
            self._tell(done, total)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show(self, done: int, total: int) -> None:
        if done >= total:
            self.close()
            return
        if self._bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.add_task(self._what, total=total)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done, total=total)

    def _tell(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first, self._began_at = done, now
        if now < self._told_at + _EVERY_S and (done < total or not total):
            return
        self._told_at = now
        rate = (done - self._first) / max(now - self._began_at, 0.001)
        note(f"{self._what}: {done} of {total} events, {rate:,.0f} a second")


@contextlib.contextmanager
def counting(what: str) -> Iterator[Counter]:
    """A counter for the block."""
    counter = Counter(what)
    try:
        yield counter
    finally:
        counter.close()
