"""The event that is published and handled, like one of a shop."""

from __future__ import annotations

from decimal import Decimal

from streamlib.event import Event

_CUSTOMERS = 1000
BYTES_EACH = 600
"""One event in the stream with its done mark, rounded up."""


class OrderCreated(Event):
    """`sent_ns` is set where it matters how long an event is under way."""

    order_id: str
    customer_id: str
    total: Decimal
    lines: list[str]
    sent_ns: int = 0


def order(number: int, *, sent_ns: int = 0) -> OrderCreated:
    return OrderCreated(
        order_id=f"o-{number}",
        customer_id=f"c-{number % _CUSTOMERS}",
        total=Decimal(number % 10_000) / 100,
        lines=["book", "pen", "paper"],
        sent_ns=sent_ns,
    )
