"""The public face, as agreed: the examples of the design run as they are printed, on a real server.

Stand-ins take the place of the mail service and of the HTTP client.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from decimal import Decimal
from typing import Any, Self

import pytest
import redis

from streamlib import (
    App,
    BatchContext,
    Context,
    Event,
    Exact,
    Ordered,
    Position,
    Prefix,
    PublishError,
    ReadModel,
    Reject,
    Retry,
    RetryLater,
    Settings,
)
from streamlib.settings import RedisSettings, WorkerSettings
from tests.helpers.waiting import eventually, wait_until

# -- stand-ins ----------------------------------------------------------------------------------------------------


class HttpClient:
    """What the example gets from an HTTP library: an async context manager."""

    is_open = False

    async def __aenter__(self) -> Self:
        self.is_open = True
        return self

    async def __aexit__(self, *error: object) -> None:
        self.is_open = False


class Seen:
    """What the handlers of the example did."""

    def __init__(self) -> None:
        self.mails: list[tuple[str, str]] = []
        self.clients: list[HttpClient] = []
        self.loaded: list[tuple[str, str]] = []
        self.legacy: list[tuple[Event, str]] = []
        self.mail_works = True


seen = Seen()


async def mail(event: "OrderCreated", key: str) -> bool:
    seen.mails.append((event.order_id, key))
    return seen.mail_works


# -- the first block: an app, its topic and its handlers ------------------------------------------------------------

app = App("shop")  # settings: streamlib.toml < STREAMLIB_* < flags


class OrderCreated(Event):  # type name "OrderCreated", version 1
    order_id: str
    customer_id: str
    total: Decimal


class OrderStatusUpdated(Event, version=2):
    order_id: str
    status: str


orders = app.topic("orders", OrderCreated, OrderStatusUpdated, key="order_id", partitions=4)


@app.lifespan
async def resources(app: App) -> AsyncIterator[dict[str, Any]]:  # pools and clients; once per process
    async with HttpClient() as client:
        yield {"http": client}  # ctx.state["http"]


@app.handler(
    orders,
    group="email",
    retry=Retry(max_attempts=5, base=0.2),
    timeout=30,
    ordering="none",
    concurrency=8,
    rate="100/s",
    rerun="ok",
)
async def send_receipt(event: OrderCreated, ctx: Context) -> None:
    seen.clients.append(ctx.state["http"])
    assert seen.clients[-1].is_open
    if event.total < 0:
        raise Reject("negative total")  # straight to the dead letters
    if not await mail(event, key=ctx.idempotency_key):
        raise RetryLater(delay=5)  # else: exponential backoff with full jitter


@app.handler(orders, group="warehouse")  # a list annotation makes it a batch handler
async def load(events: list[OrderCreated], ctx: BatchContext) -> None:
    seen.loaded += [(event.order_id, ctx.of(event).event_id) for event in events]


@app.handler(orders, group="legacy")  # plain functions run in threads
def sync_handler(event: OrderCreated | OrderStatusUpdated, ctx: Context) -> None:
    seen.legacy.append((event, threading.current_thread().name))


# -- the second block: a read model ---------------------------------------------------------------------------------


class OrderRow(ReadModel):  # one Redis hash per row
    order_id: str
    status: str
    total: Decimal


order_view = app.projection(
    "order-view", orders, OrderRow, key="order_id", indexes=[Exact("status"), Ordered("total"), Prefix("order_id")]
)


@order_view.on(OrderCreated)
def _(row: OrderRow | None, event: OrderCreated) -> OrderRow | None:
    return OrderRow(order_id=event.order_id, status="created", total=event.total)  # None deletes the row


@order_view.on(OrderStatusUpdated)
def _(row: OrderRow | None, event: OrderStatusUpdated) -> OrderRow | None:
    if row is None or event.status == "deleted":
        return None
    return OrderRow(order_id=row.order_id, status=event.status, total=row.total)


# -- the third block: a read model keyed unlike its topic -----------------------------------------------------------


class OrderPaid(Event):
    order_id: str
    customer_id: str
    amount: Decimal


class CustomerRow(ReadModel):
    customer_id: str
    paid: Decimal = Decimal(0)


payments = app.topic("payments", OrderPaid, key="order_id", partitions=4)
by_customer = app.rekey(payments, key="customer_id", to="payments-by-customer")
customer_view = app.projection("customer-view", by_customer, CustomerRow, key="customer_id")


@customer_view.on(OrderPaid)
def _(row: CustomerRow | None, event: OrderPaid) -> CustomerRow:
    row = row or CustomerRow(customer_id=event.customer_id)
    return CustomerRow(customer_id=row.customer_id, paid=row.paid + event.amount)


# -- the fourth block: data of an older version -----------------------------------------------------------------------


@app.upcast(OrderStatusUpdated, from_version=1)
def state_became_status(data: dict[str, Any]) -> dict[str, Any]:
    return {"order_id": data["order_id"], "status": data["state"]}


# -- what they do ---------------------------------------------------------------------------------------------------

Working = Callable[[], AbstractAsyncContextManager[None]]


@pytest.fixture(autouse=True)
def configured(redis_url: str) -> None:
    """The app as a deployment configures it: the address of Redis, times that suit a test."""
    app.configure(
        Settings(
            redis=RedisSettings(url=redis_url),
            worker=WorkerSettings(lease_ms=1_000, block_ms=200, drain_s=5),
        )
    )
    seen.__init__()  # type: ignore[misc]


@pytest.fixture
def working() -> Working:
    """`async with working():` opens the app and runs its worker."""

    @asynccontextmanager
    async def run() -> AsyncIterator[None]:
        async with app:
            stop = asyncio.Event()
            running = asyncio.create_task(app.worker().run(stop))
            try:
                yield
            finally:
                stop.set()
                assert await running == 0

    return run


def created(order_id: str, total: str = "9.99") -> OrderCreated:
    return OrderCreated(order_id=order_id, customer_id="c-1", total=Decimal(total))


async def test_a_producer_publishes_one_event_and_many(client: redis.Redis) -> None:
    events = [created("o-2"), created("o-3", "NaN"), created("o-4")]
    async with app:  # in a producer: connect, then close
        position = await orders.publish(OrderCreated(order_id="o-1", customer_id="c-1", total=Decimal("9.99")))
        results = await orders.publish_many(events)
    assert isinstance(position, Position)
    assert position.topic == "orders"
    stored: Any = client.xrange(f"orders.{position.partition}", position.entry_id, position.entry_id)
    assert stored[0][1][b"type"] == b"OrderCreated"
    assert stored[0][1][b"v"] == b"1"
    assert stored[0][1][b"data"] == b'{"order_id":"o-1","customer_id":"c-1","total":"9.99"}'
    assert [type(result) for result in results] == [Position, PublishError, Position]
    assert sum(client.xlen(f"orders.{n}") for n in range(4)) == 3


async def test_a_delayed_event_is_stored_and_comes_later(working: Working, client: redis.Redis) -> None:
    async with working():
        reminder = created("o-9")
        position = await orders.publish(reminder, delay=3600)  # not before an hour from now
        assert position.entry_id == ""
        assert client.zcard(f"{{orders.{position.partition}}}:later") == 1
        await orders.publish(created("o-8"), delay=0.05)
        await eventually(lambda: [order_id for order_id, _ in seen.mails] == ["o-8"])


async def test_handlers_of_three_kinds_get_their_events(working: Working) -> None:
    async with working():
        await orders.publish(created("o-1"), id="e-1")
        await orders.publish(OrderStatusUpdated(order_id="o-1", status="shipped"), id="e-2")
        await eventually(lambda: seen.mails and seen.loaded and len(seen.legacy) == 2)
    assert seen.mails == [("o-1", "orders:email:e-1")], "one receipt, under a key that is the same for every run"
    assert seen.loaded == [("o-1", "e-1")], "a group skips the types that it does not handle"
    assert {type(event) for event, _ in seen.legacy} == {OrderCreated, OrderStatusUpdated}
    assert all(thread != threading.main_thread().name for _, thread in seen.legacy)


async def test_the_lifespan_spans_the_work(working: Working) -> None:
    async with working():
        await orders.publish(created("o-1"))
        await eventually(lambda: seen.mails)
        assert seen.clients[0].is_open
    assert not seen.clients[0].is_open


async def test_reject_goes_straight_to_the_dead_letters(working: Working, client: redis.Redis) -> None:
    async with working():
        position = await orders.publish(created("o-1", "-1"), id="e-1")
        dead = f"{{orders.{position.partition}}}:dead:email"
        await eventually(lambda: client.xlen(dead) == 1)
    letters: Any = client.xrange(dead)
    letter = letters[0][1]
    assert letter[b"dl-reason"] == b"rejected"
    assert letter[b"dl-error"] == b"Reject: negative total"
    assert letter[b"dl-attempts"] == b"1"
    assert letter[b"id"] == b"e-1"
    assert seen.mails == []


async def test_retry_later_comes_back_after_its_delay(working: Working, client: redis.Redis) -> None:
    seen.mail_works = False
    async with working():
        position = await orders.publish(created("o-1"), id="e-1")
        retries = f"{{orders.{position.partition}}}:retry:email"
        await eventually(lambda: client.zcard(retries) == 1)
        seconds, micros = client.time()
        due_ms: Any = client.zscore(retries, "e-1")
        assert 0 < due_ms - (seconds * 1000 + micros / 1000) <= 5_000
        seen.mail_works = True
        await eventually(lambda: len(seen.mails) == 2)
    assert seen.mails == [("o-1", "orders:email:e-1")] * 2


def test_the_same_from_plain_functions(client: redis.Redis) -> None:
    event = created("o-1")
    with app.blocking() as shop:  # the same, for Django, Flask and scripts
        position = shop.publish(orders, event)
        results = shop.publish_many(orders, [event, event])
        assert shop.call(order_view.get("o-1")) is None, "nothing projects it yet"
    assert isinstance(position, Position)
    assert all(isinstance(result, Position) for result in results)
    wait_until(lambda: client.xlen(f"orders.{position.partition}") == 3)


async def test_a_view_answers_by_id_by_value_and_by_range(working: Working) -> None:
    async with working():
        await orders.publish_many([created(f"o-{n}", str(n * 100)) for n in range(1, 11)])
        position = await orders.publish(OrderStatusUpdated(order_id="o-9", status="shipped"))
        await order_view.wait_for(position, timeout=10.0)  # read your own write
        await eventually(lambda: _count_is(10))
        row = await order_view.get("o-1")
        assert row == OrderRow(order_id="o-1", status="created", total=Decimal(100))
        rows = await order_view.find(status="shipped")
        assert rows == [OrderRow(order_id="o-9", status="shipped", total=Decimal(900))]
        rows = await order_view.between("total", 800, 900, limit=50)
        assert [row.order_id for row in rows] == ["o-8", "o-9"]
        assert [row.order_id for row in await order_view.prefix("order_id", "O-1")] == ["o-1", "o-10"]
        assert await order_view.get_many(["o-2", "none"]) == [
            OrderRow(order_id="o-2", status="created", total=Decimal(200)),
            None,
        ]


async def test_a_fold_that_returns_none_deletes_the_row(working: Working) -> None:
    async with working():
        await order_view.wait_for(await orders.publish(created("o-1")), timeout=10.0)
        assert await order_view.get("o-1") is not None
        position = await orders.publish(OrderStatusUpdated(order_id="o-1", status="deleted"))
        await order_view.wait_for(position, timeout=10.0)
        assert await order_view.get("o-1") is None
        assert await order_view.count() == 0


async def test_waiting_for_a_position_that_nobody_projects_ends_with_a_timeout() -> None:
    async with app:
        position = await orders.publish(created("o-1"))
        with pytest.raises(TimeoutError, match="is a worker of this projection running"):
            await order_view.wait_for(position, timeout=0.05)


async def test_events_of_an_older_version_are_raised_to_the_class(working: Working, client: redis.Redis) -> None:
    async with working():
        created_at = await orders.publish(created("o-1"))
        first: Any = {"id": "e-1", "type": "OrderStatusUpdated", "v": "1", "key": "o-1"}
        client.xadd(f"orders.{created_at.partition}", first | {"data": '{"order_id":"o-1","state":"shipped"}'})
        await eventually(lambda: _shipped("o-1"))
        await eventually(lambda: len(seen.legacy) == 2)
    assert OrderStatusUpdated(order_id="o-1", status="shipped") in [event for event, _ in seen.legacy]


async def test_a_view_by_customer_of_a_topic_by_order(working: Working) -> None:
    async with working():
        for n in range(6):
            await payments.publish(OrderPaid(order_id=f"o-{n}", customer_id=f"c-{n % 2}", amount=Decimal(n)))
        await eventually(lambda: _paid("c-0", 6))
        await eventually(lambda: _paid("c-1", 9))


async def _paid(customer_id: str, amount: int) -> bool:
    row = await customer_view.get(customer_id)
    return row is not None and row.paid == amount


async def _shipped(order_id: str) -> bool:
    row = await order_view.get(order_id)
    return row is not None and row.status == "shipped"


async def _count_is(number: int) -> bool:
    return await order_view.count() == number
