"""The event that every case handles, and how a stream is filled with it."""

from decimal import Decimal

import msgspec
import redis

from streamlib import Event
from streamlib.message import new_event_id

STREAM, GROUP = "orders", "email"
CUSTOMERS = 1000
WINDOW_MS = 3_600_000
CHUNK = 500

_FILL = """
local per_entry = tonumber(ARGV[1])
for first = 2, #ARGV, per_entry do
    redis.call("XADD", KEYS[1], "*", unpack(ARGV, first, first + per_entry - 1))
end
"""


class OrderCreated(Event):
    order_id: str
    customer_id: str
    total: Decimal
    lines: list[str]


def order(number: int) -> OrderCreated:
    return OrderCreated(
        order_id=f"o-{number}",
        customer_id=f"c-{number % CUSTOMERS}",
        total=Decimal(number % 10_000) / 100,
        lines=["book", "pen", "paper"],
    )


def entry(number: int) -> list[bytes]:
    """The fields of an entry as streamlib stores it; every case reads these."""
    event = order(number)
    values = (new_event_id(), "OrderCreated", "1", event.order_id)
    names = (b"id", b"type", b"v", b"key")
    fields = [part for name, value in zip(names, values, strict=True) for part in (name, value.encode())]
    return [*fields, b"data", msgspec.json.encode(event)]


def fill(client: redis.Redis, count: int, stream: str = STREAM, first: int = 0) -> None:
    """Adds `count` entries, `first` being the number of the first order."""
    add = client.register_script(_FILL)
    for start in range(first, first + count, CHUNK):
        entries = [entry(number) for number in range(start, min(start + CHUNK, first + count))]
        add([stream], [len(entries[0]), *(part for fields in entries for part in fields)])
