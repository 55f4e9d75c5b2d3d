"""Loading aggregates of many pages: the next one is on its way while one is applied, and none outlives the load."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest
import redis

from streamlib.errors import StreamlibError, UnknownType
from streamlib.redisio.aggregate_reader import FURTHER_EVENTS, PAGE_EVENTS
from streamlib.redisio.event_store import EventStore
from tests.helpers.accounts import ACCOUNTS, LIST, Account, deposits, open_bank, open_store

MANY = PAGE_EVENTS + 2 * FURTHER_EVENTS + 34


async def fill(store: EventStore, client: redis.Redis, count: int = MANY) -> None:
    """An account of so many deposits of 1: the first one is stored, the others are copies of its element."""
    await store.append(ACCOUNTS, "a", 0, deposits("a"))
    element: Any = client.lindex(f"{LIST}a", 0)
    for start in range(1, count, 1_000):
        client.rpush(f"{LIST}a", *[element] * min(1_000, count - start))


@pytest.mark.row(78)
async def test_an_aggregate_of_many_pages_is_folded_in_order(redis_url: str, client: redis.Redis) -> None:
    async with open_bank(redis_url) as bank:
        await fill(bank._store(), client)
        account = await bank.load("a")
        assert (int(account.balance), account.version) == (MANY, MANY)
        for version in (PAGE_EVENTS, PAGE_EVENTS + 1, PAGE_EVENTS + FURTHER_EVENTS + 1):
            assert (await bank.at_version("a", version)).balance == version
        account.deposit(3)
        await bank.save(account)
        assert (await bank.load("a")).balance == MANY + 3


async def test_what_is_saved_while_an_aggregate_is_loaded_is_left_out(redis_url: str, client: redis.Redis) -> None:
    async with open_store(redis_url) as store:
        await fill(store, client)
        first, read = await store.page(ACCOUNTS, "a", 0), 0
        async with aclosing(store.pages(ACCOUNTS, "a", first)) as pages:
            async for page in pages:
                read += len(page.events)
                await store.append(ACCOUNTS, "a", await store.length(ACCOUNTS, "a"), deposits("a", 3))
        assert read == MANY


@pytest.mark.parametrize("at", [3, PAGE_EVENTS + FURTHER_EVENTS + 3, MANY - 1])
async def test_a_load_that_fails_leaves_no_read_behind(redis_url: str, client: redis.Redis, at: int) -> None:
    async with open_bank(redis_url) as bank:
        await fill(bank._store(), client)
        element: Any = client.lindex(f"{LIST}a", at)
        client.lset(f"{LIST}a", at, element.replace(b"9:Deposited", b"9:Withdrawn"))
        with pytest.raises(UnknownType, match=rf"Account 'a', version {at + 1}: no class for 'Withdrawn'") as raised:
            await bank.load("a")
        assert raised.value.__notes__[0].startswith(f"Account 'a', version {at + 1}: event ")
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert (await bank.at_version("a", at)).balance == at


async def test_a_load_that_is_cancelled_leaves_no_read_behind(redis_url: str, client: redis.Redis) -> None:
    async with open_bank(redis_url) as bank:
        await fill(bank._store(), client)
        loading = asyncio.create_task(bank.load("a"))
        while len(asyncio.all_tasks()) < 3:  # this one, the load, and the next page
            await asyncio.sleep(0)
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_an_aggregate_that_becomes_shorter_while_it_is_loaded_is_an_error(
    redis_url: str, client: redis.Redis
) -> None:
    async with open_store(redis_url) as store:
        await fill(store, client)
        first = await store.page(ACCOUNTS, "a", 0)
        client.ltrim(f"{LIST}a", 0, 99)
        with pytest.raises(StreamlibError, match=rf"had {MANY} events and now has 100: Redis was rolled back"):
            async with aclosing(store.pages(ACCOUNTS, "a", first)) as pages:
                assert [len(page.events) async for page in pages] == []


async def test_no_event_applies_more_than_once(redis_url: str, client: redis.Redis) -> None:
    """Two loads of one object's events side by side are two objects."""
    async with open_bank(redis_url) as bank:
        await fill(bank._store(), client, 2 * PAGE_EVENTS)
        loaded: list[Account] = await asyncio.gather(*(bank.load("a") for _ in range(8)))
        assert (
            {int(account.balance) for account in loaded} == {account.version for account in loaded} == {2 * PAGE_EVENTS}
        )
