"""The shop's orders: commands on one side, a read model on the other, events between them."""

from decimal import Decimal
from typing import Any

import pytest
import redis

from streamlib import Reject
from streamlib.errors import NotFound
from tests.helpers.delivering import burst, dead_letters, running
from tests.helpers.shop import everything, open_shop
from workers.shop.orders import CreateOrder, OrderRow, UpdateOrderStatus, order_view, orders

GROUPS = ["order-view", "commands"]


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


async def test_events_of_version_1_are_understood(redis_url: str, client: redis.Redis) -> None:
    """As an app of before, which called the status `state`, has published them."""
    async with open_shop(redis_url) as app:
        answer = await app.dispatch(create(1, "9.99"))
        assert answer.position is not None
        stream = f"orders.{answer.position.partition}"
        old: dict[Any, Any] = {"id": "e-1", "type": "OrderStatusUpdated", "v": "1", "key": "o-1"}
        client.xadd(stream, {**old, "data": '{"order_id":"o-1","state":"paid"}'})
        client.xadd(stream, {**old, "id": "e-2", "data": '{"order_id":"o-1"}'})
        assert await burst(app, GROUPS) == 0
        row = await order_view.get("o-1")
        assert row is not None
        assert row.status == "paid"
    (letter,) = dead_letters(client, stream, order_view.name)
    assert (letter["id"], letter["dl-reason"]) == ("e-2", "schema"), "what cannot be raised is kept, with the reason"
    assert orders.spec.partitions == 2
