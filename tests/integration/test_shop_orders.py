"""The shop's orders: commands on one side, a read model on the other, events between them."""

from decimal import Decimal
from typing import Any

import pytest
import redis

from streamlib import Aggregate, App, Event, Reject, applies
from streamlib.errors import NotFound
from tests.helpers.delivering import burst, dead_letters, running, settings
from tests.helpers.shop import everything, open_shop
from workers.shop.orders import CreateOrder, OrderCreated, OrderRow, UpdateOrderStatus, order_view

GROUPS = ["order-view", "commands"]


class OldStatusUpdated(Event, type_name="OrderStatusUpdated"):
    """As version 1 had it."""

    order_id: str
    state: str


class OldOrder(Aggregate):
    """What wrote such events: only that they were stored counts here."""

    @applies(OrderCreated, OldStatusUpdated)
    def _anything(self, event: Event) -> None: ...


def create(n: int, total: str) -> CreateOrder:
    return CreateOrder(order_id=f"o-{n}", customer_id=f"c-{n % 2}", total=Decimal(total))


def update(n: int, status: str) -> UpdateOrderStatus:
    return UpdateOrderStatus(order_id=f"o-{n}", status=status)


async def test_who_writes_reads_the_own_write(redis_url: str) -> None:
    async with open_shop(redis_url) as app, running(app, GROUPS):
        for command, status in ((create(1, "9.99"), "created"), (update(1, "paid"), "paid")):
            answer = await app.dispatch(command)
            assert answer.position is not None
            await order_view.wait_for(answer.position, timeout=15)
            assert await order_view.get("o-1") == OrderRow(
                order_id="o-1", customer_id="c-1", total=Decimal("9.99"), status=status
            )


async def test_the_read_model_answers_by_status_by_customer_and_by_total(redis_url: str) -> None:
    async with open_shop(redis_url) as app:
        for n, total in enumerate(("5", "99.99", "100", "250", "250.01")):
            await app.dispatch(create(n, total))
        for n, status in ((1, "paid"), (2, "paid"), (2, "shipped"), (3, "cancelled")):
            await app.dispatch(update(n, status))
        assert await burst(app, GROUPS) == 0
        assert [row.order_id for row in await order_view.find(status="created")] == ["o-0", "o-4"]
        assert [row.order_id for row in await order_view.find(status="shipped")] == ["o-2"]
        assert [row.order_id for row in await order_view.find(customer_id="c-1", status="paid")] == ["o-1"]
        between = await order_view.between("total", Decimal(100), Decimal(250))
        assert [(row.order_id, row.status) for row in between] == [("o-2", "shipped"), ("o-3", "cancelled")]


async def test_commands_that_are_sent_run_in_the_worker(redis_url: str) -> None:
    async with open_shop(redis_url) as app, running(app, GROUPS):
        await (await app.send(create(1, "9.99"))).wait_for(15)
        answer = await (await app.send(update(1, "paid"))).wait_for(15)
        assert answer.position is not None
        await order_view.wait_for(answer.position, timeout=15)
        assert [row.order_id for row in await order_view.find(status="paid")] == ["o-1"]


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (update(1, "shipped"), "order o-1 is created: next comes paid or cancelled, not shipped"),
        (update(2, "paid"), "Order 'o-2' does not exist"),
        (create(1, "5"), "order o-1 exists already"),
        (create(3, "0"), "order o-3 has a total of 0"),
    ],
)
async def test_a_command_that_is_refused_changes_neither_side(
    redis_url: str, client: redis.Redis, command: CreateOrder | UpdateOrderStatus, why: str
) -> None:
    async with open_shop(redis_url) as app:
        await app.dispatch(create(1, "9.99"))
        before = everything(client)
        with pytest.raises((Reject, NotFound), match=why):
            await app.dispatch(command)
        assert everything(client) == before


async def test_orders_of_an_app_of_version_1_live_on(redis_url: str) -> None:
    """Its events called the status `state`: both sides read them as if they had been written today."""
    before = App("shop-of-before", settings=settings(redis_url))
    old_orders = before.topic("orders", OrderCreated, OldStatusUpdated, key="order_id", partitions=2)
    old_book = before.repository(OldOrder, old_orders)
    async with before:
        order = OldOrder("o-1")
        order.record(OrderCreated(order_id="o-1", customer_id="c-1", total=Decimal(5)))
        order.record(OldStatusUpdated(order_id="o-1", state="paid"))
        await old_book.save(order)
    async with open_shop(redis_url) as app:
        with pytest.raises(Reject, match="order o-1 is paid: next comes shipped or cancelled, not delivered"):
            await app.dispatch(update(1, "delivered"))
        await app.dispatch(update(1, "shipped"))
        assert await burst(app, GROUPS) == 0
        assert await order_view.find(status="shipped") == [
            OrderRow(order_id="o-1", customer_id="c-1", total=Decimal(5), status="shipped")
        ]


async def test_what_cannot_be_raised_is_a_dead_letter_with_its_reason(redis_url: str, client: redis.Redis) -> None:
    async with open_shop(redis_url) as app:
        fields: dict[Any, Any] = {"id": "e-1", "type": "OrderStatusUpdated", "v": "1", "key": "o-1", "data": "{}"}
        client.xadd("orders.0", fields)
        assert await burst(app, GROUPS) == 0
    (letter,) = dead_letters(client, "orders.0", order_view.name)
    assert (letter["id"], letter["dl-reason"]) == ("e-1", "schema")
    assert "KeyError: 'order_id'" in letter["dl-error"]
