"""Every Lua script runs on the Redis inside the process, as it does on a server."""

from __future__ import annotations

import asyncio
from decimal import Decimal

from streamlib import (
    Aggregate,
    App,
    Command,
    Context,
    Event,
    Ordered,
    ReadModel,
    Reject,
    Retry,
    Settings,
    applies,
)
from streamlib.eventsourcing.repository import Repository
from streamlib.ops.dead_letters import DeadLetters, Filters
from streamlib.ops.pace import Pace
from streamlib.ops.ranges import BEGIN, Asked
from streamlib.ops.replay import Replay
from streamlib.redisio.generations import ViewName, begin
from streamlib.redisio.group_keys import many_keys
from streamlib.redisio.key_states import resume, skip
from streamlib.redisio.scripts import Script
from streamlib.testing import AppFactory, Handled
from streamlib.testing.plugin import streamlib_app, streamlib_server
from tests.helpers.by_hand import read_bounded, read_by_hand
from tests.helpers.source_tree import ROOT

__all__ = ["streamlib_app", "streamlib_server"]

LUA = sorted(path.stem for path in (ROOT / "streamlib/redisio/lua").glob("*.lua"))


class Placed(Event):
    order_id: str
    total: Decimal = Decimal(1)


class Order(ReadModel):
    order_id: str
    total: Decimal


class Moved(Event):
    account_id: str


class Account(Aggregate):
    moves: int = 0

    @applies(Moved)
    def _moved(self, event: Moved) -> None:
        self.moves += 1


class Move(Command):
    account_id: str


def a_bank(app: App) -> Repository[Account]:
    bank = app.repository(Account, app.topic("accounts", Moved, key="account_id"))

    @app.command_handler
    async def move(command: Move) -> int:
        account = await bank.load_or_new(command.account_id)
        account.record(Moved(account_id=account.id))
        await bank.save(account)
        return account.moves

    return bank


async def money_is_moved(app: App, bank: Repository[Account]) -> None:
    answers = [await app.dispatch(Move(account_id="a"), idempotency_key="k") for _ in range(2)]
    assert [answer.value for answer in answers] == [1, 1]
    assert (await bank.load("a")).moves == 1


async def orders_run_again(app: App) -> None:
    replay = Replay(app.redis, app.keys, Asked(topic="orders", start=BEGIN), "email", window_s=3600)
    await replay.check()
    assert (await replay.run(Pace(), lambda n: None)).replayed == 2


async def test_every_lua_script_runs_on_fakeredis(streamlib_app: AppFactory) -> None:
    app = App("shop", settings=Settings())
    orders = app.topic("orders", Placed, dedup_window_s=60, key="order_id")
    view = app.projection("order-view", orders, Order, key="order_id", indexes=[Ordered("total")])
    bank = a_bank(app)
    poisoned = True

    @view.on(Placed)
    def _(row: Order | None, event: Placed) -> Order:
        return Order(order_id=event.order_id, total=event.total)

    @app.handler(orders, group="email", retry=Retry(max_attempts=2), rate="1000/s")
    async def mail(event: Placed, ctx: Context) -> None:
        if poisoned:
            await asyncio.sleep(1)  # a third of the lease passes: the claim is renewed
            raise ValueError("poison")

    @app.handler(orders, group="ledger", ordering="key", on_dead="block")
    async def book(event: Placed) -> None:
        if poisoned:
            raise Reject("halts its key")

    async with streamlib_app(app) as harness:
        stream = app.keys.stream("orders", 0, 1)
        for name in ("o-1", "o-2"):
            await harness.publish(orders, Placed(order_id=name), id=f"e{name}")
        await harness.drain()
        assert [one.reason for one in harness.dead] == ["max_attempts"] * 2
        assert [one.key for one in harness.halted] == ["o-1", "o-2"]
        assert [row.order_id for row in await view.between("total", 1, 1)] == ["o-1", "o-2"]
        poisoned = False
        letters = DeadLetters(app.redis, app.keys, window_s=3600)
        await letters.replay([found async for found in letters.find(Filters(group="email"))])
        assert await resume(app.redis, stream, "ledger", "o-1")
        assert await skip(app.redis, stream, "ledger", "o-2", window_ms=60_000)
        await harness.drain()
        assert [(one.group, one.event_id) for one in harness.dead] == [("ledger", "eo-2")]
        assert Handled("orders", "email", "eo-1", "Placed") in harness.handled
        assert Handled("orders", "ledger", "eo-1", "Placed") in harness.handled
        found = [n async for some in many_keys(app.redis, [stream], ["idem:ledger"], one_node=True) for n in some]
        assert sorted(found) == [stream.idem("ledger", f"e{name}").encode() for name in ("o-1", "o-2")]
        assert await begin(app.redis, app.keys, ViewName("orders", "order-view"), 1, 2, "fingerprint")
        assert len(await read_by_hand(app.redis, stream)) == 2
        assert len(await read_bounded(app.redis, stream.stream)) == 2
        await money_is_moved(app, bank)
        await orders_run_again(app)
        loaded = await app.redis.execute("SCRIPT", "EXISTS", *(Script(name).sha for name in LUA))
        assert {name for name, is_loaded in zip(LUA, loaded, strict=True) if not is_loaded} == set()
