"""The chaos app for ordered groups: every run leaves a line outside, every settled run an event in its own partition.

The event that a run emits is settled with its ack, so the emitted stream of a key tells what settled, and in which
order. The lines outside tell what ran: when it began, when and how it ended, and in which process.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from itertools import count

from streamlib import App, Context, Event, ReadModel, Retry

TOPIC, GROUP, BESIDE, VIEW = "moves", "ledger", "beside", "accounts"


class Moved(Event):
    account: str
    n: int


class Settled(Event):
    account: str
    n: int


class Account(ReadModel):
    """What was folded of one account; `digest` comes out the same only for the same events in the same order."""

    account: str
    moved: int = 0
    settled: int = 0
    digest: str = ""


class Failing(Exception):
    """A run that the seed wants to fail."""


class Ordered:
    """The app with its topic and view; `beside` adds an unordered group."""

    def __init__(self, *, partitions: int, beside: bool = False) -> None:
        self.app = App("ordered")
        self.moves = self.app.topic(TOPIC, Moved, Settled, key="account", partitions=partitions)
        self.accounts = self.app.projection(VIEW, self.moves, Account, key="account")
        self._declare_ledger()
        self._declare_view()
        if beside:
            self.app.handler(self.moves, group=BESIDE)(_look)

    def _declare_ledger(self) -> None:
        @self.app.lifespan
        async def resources(app: App) -> AsyncIterator[dict[str, object]]:
            with RunLog(os.environ["ORDERED_RUNS"]) as log:
                yield {"log": log}

        seed, raise_share = os.environ.get("ORDERED_SEED", ""), float(os.environ.get("ORDERED_RAISES", "0"))
        work_s = float(os.environ.get("ORDERED_WORK_S", "0"))

        @self.app.handler(
            self.moves, group=GROUP, ordering="key", retry=Retry(max_attempts=1_000, base=0.005, cap=0.05)
        )
        async def move(event: Moved, ctx: Context) -> None:
            with ctx.state["log"].run(event):
                await asyncio.sleep(work_s)
                if random.Random(f"{seed}/{event.account}/{event.n}/{ctx.attempt}").random() < raise_share:
                    raise Failing(f"attempt {ctx.attempt}")
            ctx.publish(self.moves, Settled(account=event.account, n=event.n))

    def _declare_view(self) -> None:
        @self.accounts.on(Moved)
        def moved(row: Account | None, event: Moved) -> Account:
            return fold(row, event)

        @self.accounts.on(Settled)
        def settled(row: Account | None, event: Settled) -> Account:
            return fold(row, event)


class RunLog:
    """Appends a line when a run begins and one when it ends; a line is one write, so processes may share a file."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._numbers = count()

    def __enter__(self) -> RunLog:
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    @contextmanager
    def run(self, event: Moved) -> Iterator[None]:
        run = f"{os.getpid()} {next(self._numbers)}"
        self._write(f"began {run} {event.account} {event.n}")
        ending = "cancelled"
        try:
            yield
            ending = "done"
        except Failing:
            ending = "raised"
            raise
        finally:
            self._write(f"ended {run} {ending}")

    def _write(self, line: str) -> None:
        os.write(self._file, f"{time.monotonic_ns()} {line}\n".encode())


async def _look(event: Moved) -> None:
    """The unordered group's: it only acknowledges."""


def fold(row: Account | None, event: Moved | Settled) -> Account:
    row = row or Account(account=event.account)
    moved = isinstance(event, Moved)
    digest = blake2b(f"{row.digest} {moved} {event.n}".encode(), digest_size=8).hexdigest()
    return Account(account=row.account, moved=row.moved + moved, settled=row.settled + (not moved), digest=digest)


def __getattr__(name: str) -> App:
    """`app`, made only in a worker process."""
    if name != "app":
        raise AttributeError(name)
    environ = os.environ
    return Ordered(partitions=int(environ["ORDERED_PARTITIONS"]), beside=environ["ORDERED_BESIDE"] == "1").app
