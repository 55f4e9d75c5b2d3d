"""Fills a shop: `python -m workers.shop.seed`. All of it has fixed ids: within the hour a second time changes nothing.

Registrations and payments are published by others. Commands that build on one another are dispatched, in order; those
that do not are sent, and the shop's workers run them, in any order.
"""

from __future__ import annotations

import asyncio
import sys
from decimal import Decimal

from streamlib import StreamlibError
from workers.shop import app
from workers.shop.accounts import Deposit, OpenAccount, Withdraw
from workers.shop.idempotency import Payment, payments
from workers.shop.notifications import UserRegistered, users
from workers.shop.orders import CreateOrder, UpdateOrderStatus
from workers.shop.products import ChangePrice, ChangeStock, CreateProduct

USERS = (
    UserRegistered(user_id="u-1", name="Ada Lovelace", email="ada@example.com", country="GB"),
    UserRegistered(user_id="u-2", name="Alan Turing", email="alan@example.com", country="GB"),
    UserRegistered(user_id="u-3", name="Grace Hopper", email="grace@example.com", country="US"),
    UserRegistered(user_id="u-4", name="Edsger Dijkstra", email="edsger@example.com", country="NL"),
    UserRegistered(user_id="u-5", name="Adele Goldberg", email="adele", country="US"),  # no mail can be sent there
)

FIRST = Payment(payment_id="p-1", amount=Decimal("120.00"))
SECOND = Payment(payment_id="p-2", amount=Decimal("35.50"))
PAYMENTS = (("webhook-1", FIRST), ("webhook-2", SECOND), ("webhook-1", FIRST), ("webhook-1", FIRST))

DISPATCHED = (
    OpenAccount(account_id="acc-1", owner="Ada Lovelace"),
    Deposit(account_id="acc-1", amount=Decimal("100.00")),
    Withdraw(account_id="acc-1", amount=Decimal("30.00")),
    OpenAccount(account_id="acc-2", owner="Alan Turing"),
    Deposit(account_id="acc-2", amount=Decimal("10.00")),
    CreateOrder(order_id="o-1", customer_id="u-1", total=Decimal("120.00")),
    UpdateOrderStatus(order_id="o-1", status="paid"),
    UpdateOrderStatus(order_id="o-1", status="shipped"),
    CreateOrder(order_id="o-2", customer_id="u-2", total=Decimal("35.50")),
    UpdateOrderStatus(order_id="o-2", status="paid"),
    CreateOrder(order_id="o-3", customer_id="u-1", total=Decimal("900.00")),
    CreateOrder(order_id="o-4", customer_id="u-3", total=Decimal("15.00")),
    UpdateOrderStatus(order_id="o-4", status="cancelled"),
    CreateProduct(product_id="pr-1", name="Mechanical keyboard", price=Decimal("89.00")),
    ChangeStock(product_id="pr-1", by=10),
    ChangeStock(product_id="pr-1", by=-3),
    ChangePrice(product_id="pr-1", price=Decimal("79.00")),
    CreateProduct(product_id="pr-2", name="mechanical pencil", price=Decimal("12.50")),
    ChangeStock(product_id="pr-2", by=100),
    CreateProduct(product_id="pr-3", name="Monitor arm", price=Decimal("45.00")),
)

SENT = (
    Deposit(account_id="acc-1", amount=Decimal("5.50")),
    Withdraw(account_id="acc-2", amount=Decimal("500.00")),  # an overdraft
    UpdateOrderStatus(order_id="o-3", status="paid"),
    UpdateOrderStatus(order_id="o-4", status="shipped"),  # it was cancelled
    ChangePrice(product_id="pr-3", price=Decimal("39.90")),
    ChangeStock(product_id="pr-3", by=5),
)


async def seed() -> None:
    """Publish, dispatch and send it all; the app must be open."""
    for user in USERS:
        await users.publish(user, id=f"seed-{user.user_id}")
    for event_id, payment in PAYMENTS:
        await payments.publish(payment, id=event_id)
    for n, command in enumerate(DISPATCHED):
        await app.dispatch(command, idempotency_key=f"seed-dispatched-{n}")
    for n, command in enumerate(SENT):
        await app.send(command, idempotency_key=f"seed-sent-{n}")


async def main() -> None:
    async with app:
        await seed()
    sys.stdout.write(
        f"published {len(USERS)} registrations and {len(PAYMENTS)} payments, "
        f"dispatched {len(DISPATCHED)} commands, sent {len(SENT)}\n"
    )


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except StreamlibError as error:
        sys.exit(f"error: {error}")
