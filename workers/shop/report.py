"""Asks the shop's read models, and prints what they answer: `python -m workers.shop.report`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable
from typing import Any

import msgspec

from streamlib import StreamlibError
from workers.shop import app
from workers.shop.accounts import statement
from workers.shop.idempotency import receipts
from workers.shop.notifications import countries, profiles
from workers.shop.orders import order_view
from workers.shop.products import catalogue


async def main() -> None:
    async with app:
        _show('users whose name starts with "ad"', await profiles.prefix("name", "ad"))
        _show("users per country", await countries.rows())
        _show("payments, and how often each was processed", await receipts.rows())
        for account in ("acc-1", "acc-2"):
            lines = await statement(account)
            _show(f"account {account}, as it came about", [(line.version, line.what, line.balance) for line in lines])
        _show("orders that are paid", await order_view.find(status="paid"))
        _show("orders of 30 to 200", await order_view.between("total", 30, 200))
        _show('products whose name starts with "mech"', await catalogue.prefix("name", "mech"))
        _show("products of 30 to 100", await catalogue.between("price", 30, 100))


def _show(question: str, rows: Iterable[Any]) -> None:
    lines = [question, *(f"  {msgspec.json.encode(row).decode()}" for row in rows)]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except StreamlibError as error:
        sys.exit(f"error: {error}")
