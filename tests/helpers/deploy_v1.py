"""An app as it is deployed: orders change their state, version 1. Its successor is `deploy_v2`."""

from __future__ import annotations

import os

from streamlib import App, Context, Event, ReadModel

app = App("shop")


class StatusUpdated(Event):
    order_id: str
    state: str
    n: int


class OrderRow(ReadModel):
    order_id: str
    status: str
    last: int
    count: int
    total: int


orders = app.topic("orders", StatusUpdated, key="order_id", partitions=2)
view = app.projection("order-view", orders, OrderRow, key="order_id")


def note(app_version: int, ctx: Context, order_id: str, n: int, status: str) -> None:
    """One line for one run, whole whoever else writes: group, app version, order, number, status."""
    line = f"{ctx.group} {app_version} {order_id} {n} {status}\n"
    descriptor = os.open(os.environ["RUNS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


@app.handler(orders, group="mail")
async def mail(event: StatusUpdated, ctx: Context) -> None:
    note(1, ctx, event.order_id, event.n, event.state)


@app.handler(orders, group="ledger", ordering="key")
async def book(event: StatusUpdated, ctx: Context) -> None:
    note(1, ctx, event.order_id, event.n, event.state)


@view.on(StatusUpdated)
def fold(row: OrderRow | None, event: StatusUpdated) -> OrderRow:
    count, total = (row.count, row.total) if row else (0, 0)
    return OrderRow(order_id=event.order_id, status=event.state, last=event.n, count=count + 1, total=total + event.n)
