"""The app of `deploy_v1` in its next release: state is called status and says who changed it, version 2."""

from __future__ import annotations

from typing import Any

from streamlib import App, Context, Event
from tests.helpers.deploy_v1 import OrderRow, note

app = App("shop")


class StatusUpdated(Event, version=2):
    order_id: str
    status: str
    n: int
    by: str


orders = app.topic("orders", StatusUpdated, key="order_id", partitions=2)
view = app.projection("order-view", orders, OrderRow, key="order_id")


@app.upcast(StatusUpdated, from_version=1)
def state_became_status(data: dict[str, Any]) -> dict[str, Any]:
    return {"order_id": data["order_id"], "status": data["state"], "n": data["n"], "by": "unknown"}


@app.handler(orders, group="mail")
async def mail(event: StatusUpdated, ctx: Context) -> None:
    note(2, ctx, event.order_id, event.n, event.status)


@app.handler(orders, group="ledger", ordering="key")
async def book(event: StatusUpdated, ctx: Context) -> None:
    note(2, ctx, event.order_id, event.n, event.status)


@view.on(StatusUpdated)
def fold(row: OrderRow | None, event: StatusUpdated) -> OrderRow:
    count, total = (row.count, row.total) if row else (0, 0)
    return OrderRow(order_id=event.order_id, status=event.status, last=event.n, count=count + 1, total=total + event.n)
