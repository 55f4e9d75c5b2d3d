"""What one event costs, in numbers that no other process disturbs: Python calls of the worker, commands to Redis.

Wall time and CPU time say nothing on a shared machine. The calls (of Python and of C, resumed coroutines included) that
the event loop's thread makes while it handles, saves or loads 2,000 events hardly change from run to run, nor do
the commands that it sends: both are compared with what they were when a bound was last written down.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any

import pytest
import redis
from msgspec import Struct

from benchmarks.clock import SENT
from benchmarks.payload import GROUP, STREAM, OrderCreated, fill, order
from streamlib import Aggregate, App, BatchContext, Context, Exact, Ordered, Position, ReadModel, Topic, applies
from streamlib.settings import RedisSettings, Settings
from tests.helpers.waiting import eventually

WARM, EVENTS, TAIL = 1_000, 2_000, 500

pytestmark = pytest.mark.slow


class Cost(Struct, frozen=True):
    """Per event."""

    calls: float
    commands: float


# What was measured when somebody last had a reason to write it down, by `pytest -s` of this file. A change that costs
# less makes them lower, one that costs more says here why it is worth it.
BOUNDS = {
    "handler": Cost(calls=133, commands=0.007),
    "batch_handler": Cost(calls=125, commands=0.007),
    "projection": Cost(calls=43, commands=0.005),
    "publish_many": Cost(calls=46, commands=0.002),
    "save_one": Cost(calls=287, commands=1),
    "save_100": Cost(calls=33, commands=0.01),
    "load": Cost(calls=12.5, commands=0.001),
}
# Batches do not always fall alike.
SLACK = Cost(calls=1.10, commands=1.5)


class Meter:
    """Counts from the `WARM`th event on, until `EVENTS` more have been handled."""

    def __init__(self, client: redis.Redis) -> None:
        self.finished = asyncio.Event()
        self._client = client
        self._handled = 0
        self._calls = self._commands = 0

    def handled(self, count: int = 1) -> None:
        before, self._handled = self._handled, self._handled + count
        if before < WARM <= self._handled:
            self.start()
        if before < WARM + EVENTS <= self._handled:
            self.stop()
        if self._handled >= WARM + EVENTS + TAIL:
            self.finished.set()

    def start(self) -> None:
        self._calls, self._commands = 0, self._sent()
        sys.setprofile(self._count)

    def stop(self) -> None:
        sys.setprofile(None)
        self._commands = self._sent() - self._commands

    def cost(self) -> Cost:
        return Cost(self._calls / EVENTS, self._commands / EVENTS)

    def _count(self, frame: FrameType, event: str, arg: Any) -> None:
        if event in ("call", "c_call"):
            self._calls += 1

    def _sent(self) -> int:
        """Scripts and reads; what scripts call is their own affair."""
        stats: Any = self._client.info("commandstats")
        return sum(stats[f"cmdstat_{name}"]["calls"] for name in SENT if f"cmdstat_{name}" in stats)


class Account(Aggregate):
    orders: int = 0

    @applies(OrderCreated)
    def _ordered(self, event: OrderCreated) -> None:
        self.orders += 1


Declared = tuple[App, Topic]


@pytest.fixture
def declared(redis_url: str) -> Declared:
    app = App("cost", settings=Settings(redis=RedisSettings(url=redis_url)))
    return app, app.topic(STREAM, OrderCreated, key="order_id")


@pytest.fixture
def meter(client: redis.Redis) -> Meter:
    fill(client, WARM + EVENTS + TAIL)
    return Meter(client)


async def test_what_an_event_costs_a_handler(declared: Declared, meter: Meter, client: redis.Redis) -> None:
    app, topic = declared

    @app.handler(topic, group=GROUP)
    async def handle(event: OrderCreated, ctx: Context) -> None:
        meter.handled()

    await _drained(app, meter, lambda: _acknowledged(client))
    _within("handler", meter.cost())


async def test_what_an_event_costs_a_batch_handler(declared: Declared, meter: Meter, client: redis.Redis) -> None:
    app, topic = declared

    @app.handler(topic, group=GROUP)
    async def handle(events: list[OrderCreated], ctx: BatchContext) -> None:
        meter.handled(len(events))

    await _drained(app, meter, lambda: _acknowledged(client))
    _within("batch_handler", meter.cost())


class Row(ReadModel):
    customer_id: str
    orders: int
    last: str


async def test_what_an_event_costs_a_projection(declared: Declared, meter: Meter, client: redis.Redis) -> None:
    app, topic = declared
    view = app.projection("customers", topic, Row, key="customer_id", indexes=[Ordered("orders"), Exact("last")])

    @view.on(OrderCreated)
    def fold(row: Row | None, event: OrderCreated) -> Row:
        meter.handled()
        return Row(customer_id=event.customer_id, orders=row.orders + 1 if row else 1, last=event.order_id[-1])

    async def applied() -> bool:
        last: Any = client.xrevrange(STREAM, count=1)
        await view.wait_for(Position(STREAM, 0, last[0][0].decode()), timeout=30)
        return True

    await _drained(app, meter, applied)
    _within("projection", meter.cost())


async def test_what_an_event_costs_to_publish(declared: Declared, client: redis.Redis) -> None:
    app, topic = declared
    meter, orders = Meter(client), [order(number) for number in range(EVENTS)]
    async with app:
        await topic.publish_many(orders[:WARM])
        meter.start()
        answers = await topic.publish_many(orders)
        meter.stop()
    assert all(isinstance(answer, Position) for answer in answers)
    _within("publish_many", meter.cost())


@pytest.mark.parametrize(("name", "at_once"), [("save_one", 1), ("save_100", 100)])
async def test_what_an_event_costs_an_aggregate_to_save(
    declared: Declared, client: redis.Redis, name: str, at_once: int
) -> None:
    app, topic = declared
    bank, meter = app.repository(Account, topic), Meter(client)
    async with app:
        event = order(0)
        account = Account(event.order_id)
        for count in (WARM, EVENTS):
            meter.start()
            for number in range(count):
                account.record(event)
                if number % at_once == at_once - 1:
                    await bank.save(account)
            meter.stop()
    assert account.version == WARM + EVENTS
    _within(name, meter.cost())


async def test_what_an_event_costs_an_aggregate_to_load(declared: Declared, client: redis.Redis) -> None:
    app, topic = declared
    bank, meter = app.repository(Account, topic), Meter(client)
    async with app:
        account = Account(order(0).order_id)
        for _ in range(EVENTS // 500):
            for _ in range(500):
                account.record(order(0))
            await bank.save(account)
        await bank.load(account.id)
        meter.start()
        loaded = await bank.load(account.id)
        meter.stop()
    assert loaded.orders == EVENTS
    _within("load", meter.cost())


async def _drained(app: App, meter: Meter, settled: Callable[[], Awaitable[bool]]) -> None:
    stop = asyncio.Event()
    async with app:
        running = asyncio.create_task(app.worker().run(stop))
        try:
            await asyncio.wait_for(meter.finished.wait(), 60)
            await eventually(settled)
        finally:
            sys.setprofile(None)
            stop.set()
            await running


async def _acknowledged(client: redis.Redis) -> bool:
    told: Any = client.xpending(STREAM, GROUP)
    return bool(told["pending"] == 0)


def _within(name: str, cost: Cost) -> None:
    print(f"{name}: {cost.calls:.1f} calls, {cost.commands:.4f} commands per event")
    bound = BOUNDS[name]
    assert cost.calls <= bound.calls * SLACK.calls, f"{name}: {cost.calls:.1f} calls per event, bound {bound.calls}"
    assert cost.commands <= bound.commands * SLACK.commands, f"{name}: {cost.commands:.4f} commands per event"
