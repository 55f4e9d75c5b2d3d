"""CQRS: orders are changed by commands and read from a read model, and the two share nothing but events.

Use it where what is written and what is asked for have different shapes: the write side knows one order and its rules,
the read side answers "which orders are paid?" without loading any. The read side follows a moment later; who has just
written waits for the answer's position.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from msgspec.structs import replace

from streamlib import Aggregate, Command, Event, Exact, Ordered, ReadModel, Reject, applies
from workers.shop.app import app

# -- what happens ----------------------------------------------------------------------------------------------------


class OrderCreated(Event):
    order_id: str
    customer_id: str
    total: Decimal


class OrderStatusUpdated(Event, version=2):
    """Version 1 called it `state`."""

    order_id: str
    status: str


orders = app.topic("orders", OrderCreated, OrderStatusUpdated, key="order_id", partitions=2)


@app.upcast(OrderStatusUpdated, from_version=1)
def state_became_status(data: dict[str, Any]) -> dict[str, Any]:
    return {"order_id": data["order_id"], "status": data["state"]}


# -- the write side: commands, decided by one order ------------------------------------------------------------------


class CreateOrder(Command):
    order_id: str
    customer_id: str
    total: Decimal


class UpdateOrderStatus(Command):
    order_id: str
    status: str


NEXT = {"created": ("paid", "cancelled"), "paid": ("shipped", "cancelled"), "shipped": ("delivered",)}


class Order(Aggregate):
    """What the rules need to know of an order, no more."""

    status: str = ""

    def create(self, customer_id: str, total: Decimal) -> None:
        if self.status:
            raise Reject(f"order {self.id} exists already")
        if total <= 0:
            raise Reject(f"order {self.id} has a total of {total}")
        self.record(OrderCreated(order_id=self.id, customer_id=customer_id, total=total))

    def update(self, status: str) -> None:
        possible = NEXT.get(self.status, ())
        if status not in possible:
            next_ = " or ".join(possible) or "nothing"
            raise Reject(f"order {self.id} is {self.status}: next comes {next_}, not {status}")
        self.record(OrderStatusUpdated(order_id=self.id, status=status))

    @applies(OrderCreated)
    def _created(self, event: OrderCreated) -> None:
        self.status = "created"

    @applies(OrderStatusUpdated)
    def _updated(self, event: OrderStatusUpdated) -> None:
        self.status = event.status


order_book = app.repository(Order, orders)


@app.command_handler
async def create_order(command: CreateOrder) -> None:
    order = await order_book.load_or_new(command.order_id)
    order.create(command.customer_id, command.total)
    await order_book.save(order)


@app.command_handler
async def update_order_status(command: UpdateOrderStatus) -> None:
    await order_book.edit(command.order_id, lambda order: order.update(command.status))


# -- the read side: one row per order, for the questions that are asked ----------------------------------------------


class OrderRow(ReadModel):
    order_id: str
    customer_id: str
    total: Decimal
    status: str


order_view = app.projection(
    "order-view", orders, OrderRow, key="order_id", indexes=[Exact("status"), Exact("customer_id"), Ordered("total")]
)


@order_view.on(OrderCreated)
def created(row: OrderRow | None, event: OrderCreated) -> OrderRow:
    return OrderRow(order_id=event.order_id, customer_id=event.customer_id, total=event.total, status="created")


@order_view.on(OrderStatusUpdated)
def status_updated(row: OrderRow | None, event: OrderStatusUpdated) -> OrderRow | None:
    return row and replace(row, status=event.status)
