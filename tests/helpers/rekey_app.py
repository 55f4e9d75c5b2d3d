"""An app whose view is keyed unlike its topic: purchases by shop, in a topic keyed by order, behind a rekey."""

from __future__ import annotations

from msgspec import field
from msgspec.structs import replace

from streamlib import App, Event, ReadModel

app = App("purchases")


class Bought(Event):
    order: str
    shop: str
    n: int


class Returned(Event):
    order: str
    shop: str
    n: int


class ShopRow(ReadModel):
    """`last` is the number of the last event of each order, `disorder` how many events came after a later one."""

    shop: str
    bought: int = 0
    returned: int = 0
    last: dict[str, int] = field(default_factory=dict)
    disorder: int = 0


purchases = app.topic("purchases", Bought, Returned, key="order", partitions=4)
by_shop = app.rekey(purchases, key="shop", to="purchases-by-shop", partitions=2)
shops = app.projection("shops", by_shop, ShopRow, key="shop")


@shops.on(Bought, Returned)
def count(row: ShopRow | None, event: Bought | Returned) -> ShopRow:
    row = row or ShopRow(shop=event.shop)
    late = row.last.get(event.order, -1) > event.n
    bought = isinstance(event, Bought)
    return replace(
        row, bought=row.bought + bought, returned=row.returned + (not bought),
        last={**row.last, event.order: event.n}, disorder=row.disorder + late,
    )  # fmt: skip


def events(number: int) -> list[Bought | Returned]:
    """Twenty orders at three shops; an order has events at all of them, numbered in its order."""
    return [
        (Returned if n % 7 == 0 else Bought)(order=f"o-{n % 20}", shop=f"shop-{n // 20 % 3}", n=n)
        for n in range(number)
    ]


def recomputed(of: list[Bought | Returned]) -> dict[str, ShopRow]:
    """The view as plain code makes it of the events."""
    rows: dict[str, ShopRow] = {}
    for event in of:
        rows[event.shop] = count(rows.get(event.shop), event)
    return rows
