"""The shop's payments: copies of an event run once, and the follow-up says which event it was."""

from decimal import Decimal
from typing import Any

import redis

from tests.helpers.delivering import burst, dead_letters
from tests.helpers.shop import open_shop
from workers.shop.idempotency import Payment, Receipt, payments, receipts

GROUPS = ["payments", "receipts"]
PAID = Payment(payment_id="p-1", amount=Decimal("19.99"))
RECEIPT = Receipt(payment_id="p-1", amount=Decimal("19.99"), original_id="webhook-1", times=1)


async def test_the_same_event_three_times_runs_once_and_its_follow_up_names_it(
    redis_url: str, client: redis.Redis
) -> None:
    async with open_shop(redis_url) as app:
        copies = [await payments.publish(PAID, id="webhook-1") for _ in range(3)]
        assert len({copy.entry_id for copy in copies}) == 3
        assert await burst(app, GROUPS) == 0
        assert await receipts.rows() == [RECEIPT]
    stream = f"payments.{copies[0].partition}"
    assert types(client, stream) == ["payment"] * 3 + ["payment_processed"]
    assert client.xpending(stream, "payments")["pending"] == 0, "the copies are acknowledged"


async def test_a_copy_that_comes_when_the_first_has_long_been_done_runs_no_more(
    redis_url: str, client: redis.Redis
) -> None:
    async with open_shop(redis_url) as app:
        for _ in range(2):
            position = await payments.publish(PAID, id="webhook-1")
            assert await burst(app, GROUPS) == 0
        assert await receipts.rows() == [RECEIPT]
    assert types(client, f"payments.{position.partition}") == ["payment", "payment_processed", "payment"]


async def test_a_payment_of_nothing_is_a_dead_letter_and_has_no_follow_up(redis_url: str, client: redis.Redis) -> None:
    async with open_shop(redis_url) as app:
        position = await payments.publish(Payment(payment_id="p-1", amount=Decimal(0)))
        assert await burst(app, GROUPS) == 0
        assert await receipts.rows() == []
    stream = f"payments.{position.partition}"
    assert types(client, stream) == ["payment"]
    assert [letter["dl-error"] for letter in dead_letters(client, stream, "payments")] == [
        "Reject: payment p-1 is of 0"
    ]


def types(client: redis.Redis, stream: str) -> list[str]:
    entries: Any = client.xrange(stream)
    return [fields[b"type"].decode() for _, fields in entries]
