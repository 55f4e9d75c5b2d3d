"""The app of the crash sweep's deeds, and the processes that do them: `python -m tests.chaos.sweep_shop ROLE URL LOG`.

A role notes what it is about to do and what was confirmed, a line each, so that a killed one leaves its promises.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from streamlib import App, Command, Context, Event, Exact, Ordered, Prefix, ReadModel, Reject
from tests.helpers.accounts import Account, Deposited, Opened
from tests.helpers.delivering import settings

OWNERS = ("ann", "bob", "cat")
ITEMS, BATCH = 18, 3
DEPOSITS = (1, 2, 3, 4)


class Item(Event):
    n: int
    owner: str


class Row(ReadModel):
    owner: str
    items: int = 0
    total: int = 0


class Deposit(Command):
    account: str
    amount: int


class Look(Command):
    account: str


class Shop:
    """Topics, a group, an ordered group, a view and aggregates. Its handlers refuse everything until `mended`."""

    def __init__(self, url: str, *, mended: bool = True) -> None:
        self.app = App("shop", settings=settings(url, lease_ms=1_000))
        self.items = self.app.topic("items", Item, key="owner", dedup_window_s=600)
        self.plain = self.app.topic("plain", Item, key="owner")
        self.accounts = self.app.topic("accounts", Opened, Deposited, key="account_id")
        self.bank = self.app.repository(Account, self.accounts, snapshot_every=3)
        self.board = self.app.projection(
            "board", self.items, Row, key="owner", indexes=[Exact("items"), Ordered("total"), Prefix("owner")]
        )
        self.mended = mended
        self.runs: list[int] = []
        self._declare_handlers()
        self._declare_commands()

    def _declare_handlers(self) -> None:
        @self.app.handler(self.items, group="g")
        async def take(event: Item, ctx: Context) -> None:
            self._run(event)

        @self.app.handler(self.items, group="o", ordering="key", on_dead="block")
        async def take_in_order(event: Item, ctx: Context) -> None:
            self._run(event)

        @self.board.on(Item)
        def fold(row: Row | None, event: Item) -> Row:
            row = row or Row(owner=event.owner)
            return Row(owner=row.owner, items=row.items + 1, total=row.total + event.n)

    def _run(self, event: Item) -> None:
        if not self.mended:
            raise Reject("not yet")
        self.runs.append(event.n)

    def _declare_commands(self) -> None:
        @self.app.command_handler
        async def deposit(command: Deposit) -> int:
            account = await self.bank.load_or_new(command.account)
            account.deposit(command.amount)
            await self.bank.save(account)
            return int(account.balance)

        @self.app.command_handler
        async def look(command: Look) -> int:
            return int((await self.bank.load_or_new(command.account)).balance)


def item(n: int) -> Item:
    return Item(n=n, owner=OWNERS[n % len(OWNERS)])


def __getattr__(name: str) -> App:
    """`app`, made only where the command line asks for it."""
    if name != "app":
        raise AttributeError(name)
    return Shop("redis://127.0.0.1:1").app


# -- the processes ----------------------------------------------------------------------------------------------------

Note = Callable[..., None]


async def produce(shop: Shop, note: Note) -> None:
    """Items under ids of their own, which may be sent again by anybody; and plain ones of this process alone."""
    for n in range(0, ITEMS, BATCH):
        note("began", n)
        await shop.plain.publish(Item(n=n, owner=f"p{os.getpid()}"))
        note("did", n)
        for one in range(n, n + BATCH):
            await shop.items.publish(item(one), id=f"item-{one}")


async def deposit(shop: Shop, note: Note) -> None:
    """Deposits under idempotency keys, each of which counts once whoever sends it; and saves of this process alone."""
    for amount in DEPOSITS:
        note("began", amount)
        account = await shop.bank.load_or_new(f"p{os.getpid()}")
        account.deposit(amount)
        await shop.bank.save(account)
        note("did", amount)
        await shop.app.dispatch(Deposit(account="a", amount=amount), idempotency_key=f"deposit-{amount}")
        await shop.app.dispatch(Look(account="a"), idempotency_key=f"look-{amount}")


async def read(shop: Shop, note: Note) -> None:
    """Questions with one right answer each."""
    for _ in range(3):
        found = await shop.board.between("total", 0, 1_000, limit=2)
        rest = await shop.board.between("total", 0, 1_000, limit=2, after=found.cursor)
        assert sorted(row.owner for row in [*found, *rest]) == [*OWNERS]
        assert [row.owner for row in await shop.board.prefix("owner", "b")] == ["bob"]


ROLES: dict[str, Callable[[Shop, Note], Awaitable[None]]] = {"produce": produce, "deposit": deposit, "read": read}


async def main(role: str, url: str, log: str) -> None:
    def note(*words: Any) -> None:
        with Path(log).open("a") as file:
            print(os.getpid(), *words, file=file, flush=True)

    shop = Shop(url)
    async with shop.app:
        await ROLES[role](shop, note)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
