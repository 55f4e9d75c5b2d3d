"""50 writers of 200 appends each on one account: each version has one winner, the balance is exact, none is missing.

The writers share five connection pools and repositories, as tasks of five processes would; each conflict is decided
again on what the other has saved.
"""

import asyncio
import random
from collections import Counter
from contextlib import AsyncExitStack
from decimal import Decimal
from typing import Any

import pytest
import redis

from streamlib import Repository
from streamlib.errors import ConcurrencyConflict
from streamlib.redisio.event_store import EventStore
from tests.helpers.accounts import ACCOUNTS, STREAM, Account, deposits, elements, open_store

WRITERS, APPENDS, DOORS = 50, 200, 5


@pytest.mark.row(76)
@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_fifty_writers_of_two_hundred_appends(redis_url: str, client: redis.Redis) -> None:
    outcomes: Counter[str] = Counter()

    def observe(topic: str, outcome: str, number: int, seconds: float) -> None:
        outcomes[outcome] += number

    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(open_store(redis_url)) for _ in range(DOORS)]
        for store in stores:
            store._observe = observe
        banks = [bank_of(store) for store in stores]
        account = Account("a")
        account.open()
        await banks[0].save(account)

        async def write(number: int) -> list[str]:
            bank = banks[number % DOORS]
            amount = Decimal(number + 1)
            places = [await bank.edit("a", lambda a: a.deposit(amount), retries=10_000) for _ in range(APPENDS)]
            return [place.entry_id for place in places]

        won = await asyncio.gather(*(write(number) for number in range(WRITERS)))
        account = await banks[0].load("a")
        history = await banks[0].history("a")
        without_snapshot = await Repository(Account, ACCOUNTS, store=lambda: stores[0]).load("a")

    total = WRITERS * APPENDS
    assert account.version == total + 1
    assert account.balance == without_snapshot.balance == APPENDS * sum(range(1, WRITERS + 1))
    assert [record.version for record in history] == list(range(1, total + 2))
    amounts: Any = Counter(record.event.amount for record in history[1:])  # type: ignore[attr-defined]
    assert amounts == {Decimal(number + 1): APPENDS for number in range(WRITERS)}
    winners = [entry_id for places in won for entry_id in places]
    assert sorted(winners) == sorted(entry_id for entry_id, _ in elements(client, "a")[1:])
    assert len(set(winners)) == total == client.xlen(STREAM) - 1
    assert outcomes["stored"] == total + 1
    assert outcomes["conflict"] > 0, "nobody was ever at the same version: nothing was shown"
    print(f"{total} appends, {outcomes['conflict']} conflicts")


def bank_of(store: EventStore) -> Repository[Account]:
    return Repository(Account, ACCOUNTS, store=lambda: store, snapshot_every=50)


@pytest.mark.row(76)
async def test_all_at_one_version_one_wins_and_the_others_are_told(redis_url: str, client: redis.Redis) -> None:
    """50 appends at once, 40 times, each for the version that is next."""
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(open_store(redis_url)) for _ in range(DOORS)]
        for version in range(40):
            appends = [store.append(ACCOUNTS, "a", version, deposits("a")) for store in stores * (WRITERS // DOORS)]
            random.shuffle(appends)
            answers = await asyncio.gather(*appends, return_exceptions=True)
            lost = [answer for answer in answers if isinstance(answer, ConcurrencyConflict)]
            assert len(lost) == WRITERS - 1
            assert {(one.expected, one.actual) for one in lost} == {(version, version + 1)}
            (won,) = [answer for answer in answers if not isinstance(answer, BaseException)]
            assert won.version == version + 1
    assert client.xlen(STREAM) == len(elements(client, "a")) == 40
