"""Idempotent processing: the same event three times runs once, and its follow-up event says for which one.

Use it where a sender repeats itself: webhooks, payment providers, retries behind a timeout. The event's id is the
sender's name for what happened, not for the message. Copies are three entries of the stream; within
`idempotency.window_s` a group runs the first one and acknowledges the others.
"""

from __future__ import annotations

from decimal import Decimal

from streamlib import Context, Event, ReadModel, Reject
from workers.shop.app import app


class Payment(Event, type_name="payment"):
    """The payment provider says that somebody has paid; it says so until it is heard, perhaps more than once."""

    payment_id: str
    amount: Decimal


class PaymentProcessed(Event, type_name="payment_processed"):
    """A payment has been dealt with. `original_id` is the id of the event that told of it."""

    payment_id: str
    amount: Decimal
    original_id: str


payments = app.topic("payments", Payment, PaymentProcessed, key="payment_id", partitions=2)


@app.handler(payments, group="payments")
async def process(event: Payment, ctx: Context) -> None:
    """The follow-up has the payment's key, so it lies on the same partition: it is stored by the script that settles
    the payment, both or neither."""
    if event.amount <= 0:
        raise Reject(f"payment {event.payment_id} is of {event.amount}")
    ctx.publish(payments, PaymentProcessed(payment_id=event.payment_id, amount=event.amount, original_id=ctx.event_id))
    ctx.log.info("payment_processed", extra={"payment": event.payment_id, "amount": str(event.amount)})


class Receipt(ReadModel):
    """One per payment. `times` is how often it was processed: always 1."""

    payment_id: str
    amount: Decimal
    original_id: str
    times: int


receipts = app.projection("receipts", payments, Receipt, key="payment_id")


@receipts.on(PaymentProcessed)
def processed(row: Receipt | None, event: PaymentProcessed) -> Receipt:
    return Receipt(
        payment_id=event.payment_id,
        amount=event.amount,
        original_id=event.original_id,
        times=(row.times if row else 0) + 1,
    )
