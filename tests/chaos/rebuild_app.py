"""The app of the rebuild chaos, and the processes beside the worker: `python -m tests.chaos.rebuild_app reader|writer`.

A writer moves money between accounts that all exist before it starts, so every question to the view has one right
answer at any time, but for the moves of an account, which only grow. A reader asks all the time and notes every answer
that is not right; with an account of its own it waits for its own writes.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time

from streamlib import App, Event, Exact, Ordered, Prefix, ReadModel
from streamlib.settings import load_settings

PARTITIONS = 4
OWNERS = 20
TOPIC, VIEW = "accounts", "balances"
READER = "reader-0"

app = App("rebuild-chaos")


class Opened(Event):
    account: str
    owner: str


class Moved(Event):
    account: str
    amount: int


class Balance(ReadModel):
    account: str
    owner: str
    balance: int = 0
    moves: int = 0


accounts = app.topic(TOPIC, Opened, Moved, key="account", partitions=PARTITIONS)
balances = app.projection(
    VIEW, accounts, Balance, key="account", indexes=[Exact("owner"), Ordered("balance"), Prefix("account")]
)


@balances.on(Opened)
def opened(row: Balance | None, event: Opened) -> Balance:
    return Balance(account=event.account, owner=event.owner)


@balances.on(Moved)
def moved(row: Balance | None, event: Moved) -> Balance:
    if row is None:
        raise ValueError(f"no account {event.account}")
    return Balance(account=row.account, owner=row.owner, balance=row.balance + event.amount, moves=row.moves + 1)


def account_names(count: int) -> list[str]:
    return [READER, *(f"acc-{n:05}" for n in range(count - 1))]


def owner_of(names: list[str], account: str) -> str:
    return f"o{names.index(account) % OWNERS}"


class Reader:
    """Asks questions whose answers it knows."""

    def __init__(self, names: list[str]) -> None:
        self.asked = 0
        self.wrong: list[str] = []
        self.waited = 0
        self._names = names
        self._of_owner = {f"o{n}": sorted(names[n::OWNERS]) for n in range(OWNERS)}
        self._moves: dict[str, int] = {}
        self._written = 0

    async def run(self, stop: asyncio.Event) -> None:
        own = await balances.get(READER)
        self._written = own.moves if own is not None else 0
        await asyncio.gather(
            *(self._until(stop, ask) for ask in (self._rows, self._find, self._pages, self._own_write))
        )

    async def _until(self, stop: asyncio.Event, ask: object) -> None:
        while not stop.is_set():
            await ask()  # type: ignore[operator]
            self.asked += 1
            await asyncio.sleep(0.002)

    def _check(self, right: bool, what: str) -> None:
        if not right:
            self.wrong.append(f"{time.time():.3f} {what}")

    async def _rows(self) -> None:
        account = random.choice(self._names[1:])
        row = await balances.get(account)
        self._check(row is not None, f"{account} is missing")
        if row is not None:
            before = self._moves.get(account, 0)
            self._check(row.moves >= before, f"{account} went back from {before} to {row.moves} moves")
            self._moves[account] = row.moves

    async def _find(self) -> None:
        owner = random.choice(list(self._of_owner))
        right = self._of_owner[owner]
        counted, every = await balances.count(owner=owner), await balances.count()
        self._check(counted == len(right), f"{counted} of {len(right)} rows counted of {owner}")
        self._check(every == len(self._names), f"{every} of {len(self._names)} rows counted")

    async def _pages(self) -> None:
        """All rows of one owner, a page at a time: a switch may come between any two."""
        owner = random.choice(list(self._of_owner))
        page = await balances.find(owner=owner, limit=50)
        found = [row.account for row in page]
        while page.cursor is not None:
            page = await balances.find(owner=owner, limit=50, after=page.cursor)
            found += [row.account for row in page]
        self._check(found == self._of_owner[owner], f"{len(found)} of {len(self._of_owner[owner])} rows of {owner}")

    async def _own_write(self) -> None:
        position = await accounts.publish(Moved(account=READER, amount=1))
        self._written += 1
        try:
            await balances.wait_for(position, timeout=30)
        except TimeoutError as error:
            self._check(False, str(error))
            return
        self.waited += 1
        row = await balances.get(READER)
        moves = row.moves if row is not None else None
        self._check(moves == self._written, f"{moves} of {self._written} own writes are there after waiting for them")


async def write(names: list[str], per_second: int, stop: asyncio.Event) -> int:
    """Move money at this rate, every hundredth event twice; how many events."""
    written, began = 0, time.monotonic()
    while not stop.is_set():
        due = int((time.monotonic() - began) * per_second) - written
        events = [Moved(account=random.choice(names[1:]), amount=random.randint(-9, 9)) for _ in range(min(due, 500))]
        if events:
            await accounts.publish_many(events)
            written += len(events)
        await asyncio.sleep(0.02)
    return written


async def main(role: str, url: str, count: int, per_second: int) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    app.configure(load_settings({"redis.url": url}, environ={}))
    names = account_names(count)
    async with app:
        print("ready", flush=True)
        if role == "writer":
            print(json.dumps({"written": await write(names, per_second, stop)}), flush=True)
            return
        reader = Reader(names)
        await reader.run(stop)
        told = {"asked": reader.asked, "waited": reader.waited, "wrong": reader.wrong[:20], "wrongs": len(reader.wrong)}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
