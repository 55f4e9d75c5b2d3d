"""The app of the benchmarks that start `streamlib run`: one group, whose handler does nothing."""

from decimal import Decimal

from streamlib import App, Context, Event

app = App("bench")


class OrderCreated(Event):
    order_id: str
    customer_id: str
    total: Decimal
    lines: list[str]


orders = app.topic("orders", OrderCreated, key="order_id")


@app.handler(orders, group="email")
async def handle(event: OrderCreated, ctx: Context) -> None: ...
