"""Projections with two indexes: a thousand rows that change all the time, and a row for every event."""

import asyncio
from decimal import Decimal
from typing import Any

import redis

from benchmarks import checks
from benchmarks.case import Case, Run, Size
from benchmarks.clock import Clock
from benchmarks.loops import filled
from benchmarks.payload import CUSTOMERS, STREAM, OrderCreated, order
from benchmarks.working import drain, opened_app
from streamlib import App, Exact, Ordered, Position, ReadModel
from streamlib.worker.projection import Projection

WAIT_S = 120.0
PAGE = 10_000
GOLD = Decimal(1000)


class CustomerRow(ReadModel):
    customer_id: str
    tier: str = "new"
    orders: int = 0
    spent: Decimal = Decimal(0)


class OrderRow(ReadModel):
    order_id: str
    customer_id: str
    total: Decimal


def fold_customer(row: CustomerRow | None, event: OrderCreated) -> CustomerRow:
    row = row or CustomerRow(customer_id=event.customer_id)
    spent = row.spent + event.total
    tier = "gold" if spent >= GOLD else "new"
    return CustomerRow(customer_id=row.customer_id, tier=tier, orders=row.orders + 1, spent=spent)


def fold_order(row: OrderRow | None, event: OrderCreated) -> OrderRow:
    return OrderRow(order_id=event.order_id, customer_id=event.customer_id, total=event.total)


def customers(url: str) -> tuple[App, Projection[CustomerRow]]:
    app, topic = opened_app(url)
    view = app.projection("customers", topic, CustomerRow, key="customer_id", indexes=[Exact("tier"), Ordered("spent")])
    return app, view


def all_orders(url: str) -> tuple[App, Projection[OrderRow]]:
    app, topic = opened_app(url)
    view = app.projection("orders", topic, OrderRow, key="order_id", indexes=[Exact("customer_id"), Ordered("total")])
    return app, view


async def projection_hot(url: str, size: Size) -> Run:
    (app, view), clock = customers(url), Clock(url, size)

    @view.on(OrderCreated)
    def fold(row: CustomerRow | None, event: OrderCreated) -> CustomerRow:
        clock.tick()
        return fold_customer(row, event)

    return await _project(app, view, clock)


async def projection_distinct(url: str, size: Size) -> Run:
    (app, view), clock = all_orders(url), Clock(url, size)

    @view.on(OrderCreated)
    def fold(row: OrderRow | None, event: OrderCreated) -> OrderRow:
        clock.tick()
        return fold_order(row, event)

    return await _project(app, view, clock)


async def _project(app: App, view: Projection[Any], clock: Clock) -> Run:
    async with app:
        last = (await app.redis.execute("XREVRANGE", STREAM, "+", "-", "COUNT", 1))[0][0].decode()

        async def applied() -> bool:
            await view.wait_for(Position(STREAM, 0, last), WAIT_S)
            return True

        await drain(app, clock.finished, applied)
    return clock.run()


# --- checks


def hot_rows_are_right(client: redis.Redis, size: Size, run: Run) -> list[str]:
    expected: dict[str, CustomerRow] = {}
    for event in map(order, range(size.total)):
        expected[event.customer_id] = fold_customer(expected.get(event.customer_id), event)
    app, view = customers(_url(client))

    async def check() -> list[str]:
        async with app:
            rows = {row.customer_id: row async for row in _rows(view)}
            found_gold = await view.count(tier="gold")
            low, high = GOLD / 2, GOLD * 2
            between = {row.customer_id async for row in _rows(view, low, high)}
        gold = sum(row.tier == "gold" for row in expected.values())
        wanted = {key for key, row in expected.items() if low <= row.spent <= high}
        return [
            *checks.counted("folded", run.handled, size.total),
            *different(rows, expected),
            *checks.counted("gold customers in the index", found_gold, gold),
            *([] if between == wanted else [f"the index of spent names {len(between)} rows, expected {len(wanted)}"]),
        ]

    return asyncio.run(check())


def distinct_rows_are_right(client: redis.Redis, size: Size, run: Run) -> list[str]:
    app, view = all_orders(_url(client))

    async def check() -> list[str]:
        async with app:
            rows = {row.order_id: row async for row in _rows(view)}
            of_one = await view.count(customer_id="c-7")
        expected = {event.order_id: fold_order(None, event) for event in map(order, range(size.total))}
        return [
            *checks.counted("folded", run.handled, size.total),
            *different(rows, expected),
            *checks.counted("orders of c-7 in the index", of_one, len(range(7, size.total, CUSTOMERS))),
        ]

    return asyncio.run(check())


def different(rows: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Rows beside their recomputation."""
    wrong = [key for key in rows.keys() | expected.keys() if rows.get(key) != expected.get(key)]
    return [f"{len(wrong):,} rows differ from a recomputation, {min(wrong)} for one"] if wrong else []


async def _rows(view: Projection[Any], low: Any = None, high: Any = None) -> Any:
    after: str | None = None
    while True:
        if low is None:
            page = await view.rows(limit=PAGE, after=after)
        else:
            page = await view.between("spent", low, high, limit=PAGE, after=after)
        for row in page:
            yield row
        if page.cursor is None:
            return
        after = page.cursor


def _url(client: redis.Redis) -> str:
    where = client.get_connection_kwargs()
    return f"redis://{where['host']}:{where['port']}"


CASES = [
    Case(
        "projection_hot",
        "1,000 rows that change all the time, two indexes",
        projection_hot,
        hot_rows_are_right,
        filled,
        base="raw_claimed",
    ),
    Case(
        "projection_distinct",
        "a row for every event, two indexes",
        projection_distinct,
        distinct_rows_are_right,
        filled,
        base="projection_hot",
    ),
]
