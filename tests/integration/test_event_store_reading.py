"""Reading aggregates: page by page, as they were when the reading started, and which of them there are."""

from typing import Any

import pytest
import redis

from streamlib.errors import DecodeError, StreamlibError, WrongKeyType
from streamlib.redisio.aggregate_reader import PAGE_EVENTS, AggregateReader
from streamlib.redisio.event_store import EventStore
from streamlib.settings import LimitSettings
from tests.helpers.accounts import ACCOUNTS, LIST, Opened, deposits, open_store, topic


async def append(store: EventStore, account_id: str, count: int) -> None:
    version = await store.length(ACCOUNTS, account_id)
    for start in range(0, count, 500):
        some = min(500, count - start)
        await store.append(ACCOUNTS, account_id, version + start, deposits(account_id, some))


async def versions(store: AggregateReader, account_id: str, *bounds: Any) -> list[int]:
    return [stored.version async for stored in store.read(ACCOUNTS, account_id, *bounds)]


async def test_all_pages_come_in_order_and_bounds_hold(redis_url: str, client: redis.Redis) -> None:
    total = 2 * PAGE_EVENTS + 34
    async with open_store(redis_url) as store:
        await append(store, "a", total)
        assert await versions(store, "a") == list(range(1, total + 1))
        for after, upto in ((0, 0), (0, 1), (0, PAGE_EVENTS), (PAGE_EVENTS - 1, PAGE_EVENTS + 1), (total - 1, total)):
            assert await versions(store, "a", after, upto) == list(range(after + 1, upto + 1))
        assert await versions(store, "a", total) == await versions(store, "a", total + 5, 1) == []
        assert await versions(store, "a", 5, total + 100) == list(range(6, total + 1))
        assert await versions(store, "nobody") == []
        assert await store.length(ACCOUNTS, "nobody") == 0


@pytest.mark.row(78)
async def test_a_page_is_bounded_in_bytes_too_and_has_one_event_at_least(redis_url: str) -> None:
    large = LimitSettings(payload_bytes=4 * 1024 * 1024)
    async with open_store(redis_url, limits=large) as store:
        event = ACCOUNTS.message(Opened(account_id="a", owner="x" * 1_500_000), key="a")
        for version in range(7):
            await store.append(ACCOUNTS, "a", version, [event])
        pages, after = [], 0
        while after < 7:
            page = await store.page(ACCOUNTS, "a", after)
            pages.append(len(page.events))
            after += len(page.events)
        assert pages == [2, 2, 2, 1]
        assert await versions(store, "a") == [1, 2, 3, 4, 5, 6, 7]


async def test_what_is_appended_meanwhile_is_left_out(redis_url: str) -> None:
    async with open_store(redis_url) as store:
        await append(store, "a", PAGE_EVENTS + 10)
        read: list[int] = []
        async for stored in store.read(ACCOUNTS, "a"):
            if stored.version % 200 == 1:
                await append(store, "a", 3)
            read.append(stored.version)
        assert read == list(range(1, PAGE_EVENTS + 11))
        assert await store.length(ACCOUNTS, "a") == PAGE_EVENTS + 10 + 9


async def test_an_aggregate_that_becomes_shorter_meanwhile_is_an_error(redis_url: str, client: redis.Redis) -> None:
    async with open_store(redis_url) as store:
        await append(store, "a", PAGE_EVENTS + 10)
        reading = store.read(ACCOUNTS, "a")
        await anext(reading)
        client.ltrim(f"{LIST}a", 0, 99)
        with pytest.raises(StreamlibError, match=r"had 510 events and now has 100: Redis was rolled back"):
            [stored async for stored in reading]


@pytest.mark.parametrize(
    ("element", "why"),
    [
        (b"", "has no fields"),
        (b"1-1 c 2:id3:abc", "no field type"),
        (b"1-1 c 2:id300:abc", "damaged at byte 4"),
        (b"1-1 c xyz", "damaged at byte 0"),
        (b"1-1 c -1:x", "damaged at byte 0"),
        (b"1-1 c 99999999999999999999999:x", "damaged at byte 0"),
        (b"\xff\xfe \xff 2:id", "field without a value"),
    ],
)
async def test_an_element_that_is_no_event_is_named(
    redis_url: str, client: redis.Redis, element: bytes, why: str
) -> None:
    async with open_store(redis_url) as store:
        await append(store, "a", 1)
        client.rpush(f"{LIST}a", element)
        with pytest.raises(DecodeError, match=rf"topic 'accounts', version 2 of an aggregate: .*{why}"):
            await versions(store, "a")


@pytest.mark.allow_keys("*")
async def test_a_list_of_another_type_is_told(redis_url: str, client: redis.Redis) -> None:
    client.hset(f"{LIST}a", "field", "value")
    async with open_store(redis_url) as store:
        with pytest.raises(WrongKeyType, match=r"agg:a is a hash"):
            await versions(store, "a")
        with pytest.raises(WrongKeyType):
            await store.length(ACCOUNTS, "a")


async def test_every_aggregate_of_a_partition_is_found_once(redis_url: str, client: redis.Redis) -> None:
    other = topic("accounts2")
    names = [f"acc-{number}" for number in range(3_000)]
    async with open_store(redis_url) as store:
        (message,) = deposits("acc-0")
        await store.append(ACCOUNTS, "acc-0", 0, [message])
        element: Any = client.lindex(f"{LIST}acc-0", 0)
        with client.pipeline(transaction=False) as pipe:
            for name in names[1:]:
                pipe.rpush(LIST + name, element)
            pipe.execute()
        await store.append(other, "elsewhere", 0, deposits("elsewhere", of=other))
        found = [name async for name in store.aggregate_ids(ACCOUNTS, 0)]
        assert sorted(found) == sorted(names)
        assert [name async for name in store.aggregate_ids(other, 0)] == ["elsewhere"]
