"""The event store: what an append writes and refuses, and that refusing writes nothing."""

from collections.abc import Callable
from typing import Any

import pytest
import redis

from streamlib.errors import (
    ConcurrencyConflict,
    PayloadTooLarge,
    PublishError,
    RedisUnavailable,
    StreamlibError,
    TopicFull,
    WrongKeyType,
)
from streamlib.redisio.aggregate_reader import AnsweredBefore
from streamlib.redisio.event_store import BATCH_EVENTS, Answer
from streamlib.settings import LimitSettings
from streamlib.topic import partition_of_key
from tests.helpers.accounts import ACCOUNTS, LIST, STREAM, Opened, deposits, elements, everything, open_store, topic
from tests.helpers.publishing import entries
from tests.helpers.servers import RedisProc, available_kinds

ANSWER = Answer("req-1", b"=42", 60_000)


async def test_an_append_is_in_the_aggregate_and_in_the_stream(redis_url: str, client: redis.Redis) -> None:
    async with open_store(redis_url) as store:
        first = await store.append(ACCOUNTS, "a", 0, deposits("a"), commit_id="c1")
        more = await store.append(ACCOUNTS, "a", 1, deposits("a", 3), commit_id="c2")
        found = [stored async for stored in store.read(ACCOUNTS, "a")]
    assert (first.version, more.version, more.repeated) == (1, 4, False)
    ids = [position.entry_id for position in (*first.positions, *more.positions)]
    assert elements(client, "a") == list(zip(ids, ("c1", "c2", "c2", "c2"), strict=True))
    assert [entry_id for entry_id, _ in entries(client, STREAM)] == ids
    assert [stored.message.id for stored in found] == [f[b"id"].decode() for _, f in entries(client, STREAM)]
    assert [(stored.version, stored.message.key) for stored in found] == [(n, "a") for n in range(1, 5)]


async def test_an_aggregate_lies_on_the_partition_of_its_id(redis_url: str, client: redis.Redis) -> None:
    spread = topic(partitions=4)
    async with open_store(redis_url) as store:
        for number in range(12):
            name = f"acc {number}:*?[é"
            appended = await store.append(spread, name, 0, deposits(name, of=spread))
            assert appended.positions[0].partition == partition_of_key(name, 4)
        ids = [{name async for name in store.aggregate_ids(spread, partition)} for partition in range(4)]
    assert set.union(*ids) == {f"acc {number}:*?[é" for number in range(12)}
    for partition, found in enumerate(ids):
        assert {partition_of_key(name, 4) for name in found} <= {partition}
        assert client.xlen(f"accounts.{partition}") == len(found)


async def test_the_wrong_version_is_told_with_both_and_writes_nothing(redis_url: str, client: redis.Redis) -> None:
    async with open_store(redis_url) as store:
        await store.append(ACCOUNTS, "a", 0, deposits("a", 3))
        before = everything(client)
        cases = ((0, "another has saved it"), (2, "another has saved it"), (4, "gap"), (1 << 52, "gap"))
        for expected, why in cases:
            told = rf"aggregate 'a': expected version {expected}, but it has version 3: .*{why}"
            with pytest.raises(ConcurrencyConflict, match=told) as raised:
                await store.append(ACCOUNTS, "a", expected, deposits("a"))
            assert (raised.value.expected, raised.value.actual) == (expected, 3)
        with pytest.raises(ConcurrencyConflict, match="expected version 1, but it has version 0"):
            await store.append(ACCOUNTS, "new", 1, deposits("new"))
    assert everything(client) == before


async def test_what_can_never_be_appended(redis_url: str, client: redis.Redis) -> None:
    async with open_store(redis_url) as store:
        before = everything(client)
        large = ACCOUNTS.message(opened_of_size(300_000), key="a")
        cases: list[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
            (("a", 0, []), {}, PublishError, "nothing to append"),
            (("a", 0, deposits("a", BATCH_EVENTS + 1)), {}, PublishError, "501 events in one append; 1 to 500"),
            (("a", 0, deposits("b")), {}, PublishError, "has the key 'b', another id"),
            (("a", 0, [large]), {}, PayloadTooLarge, "limits.payload_bytes"),
            (("a", -1, deposits("a")), {}, PublishError, "-1 is no version"),
            (("a", True, deposits("a")), {}, PublishError, "True is no version"),
            (("a", 1 << 53, deposits("a")), {}, PublishError, "is no version"),
            (("a", 1 << 64, deposits("a")), {}, PublishError, "is no version"),
            (("", 0, deposits("")), {}, PublishError, "aggregate id"),
            (("a" * 201, 0, deposits("a")), {}, PublishError, "aggregate id"),
            (("a\x00", 0, deposits("a")), {}, PublishError, "aggregate id"),
            (("a", 0, deposits("a")), {"commit_id": "two words"}, PublishError, "commit id"),
        ]
        for args, options, error, why in cases:
            with pytest.raises(error, match=why):
                await store.append(ACCOUNTS, *args, **options)
    assert everything(client) == before


def opened_of_size(size: int) -> Opened:
    return Opened(account_id="a", owner="x" * size)


async def test_one_append_is_bounded_in_bytes(redis_url: str, client: redis.Redis) -> None:
    async with open_store(redis_url, limits=LimitSettings(payload_bytes=4 * 1024 * 1024)) as store:
        event = ACCOUNTS.message(opened_of_size(4_000_000), key="a")
        with pytest.raises(PayloadTooLarge, match="20000"):
            await store.append(ACCOUNTS, "a", 0, [event] * 5)
    assert client.dbsize() == 0


async def test_a_full_topic_takes_all_of_an_append_or_nothing(redis_url: str, client: redis.Redis) -> None:
    async with open_store(redis_url, limits=LimitSettings(topic_len=5)) as store:
        client.zadd("{accounts}:later", {"delayed": 9e15})
        await store.append(ACCOUNTS, "a", 0, deposits("a", 2))
        before = everything(client)
        with pytest.raises(TopicFull, match=r"3 events were not stored: accounts holds limits.topic_len = 5"):
            await store.append(ACCOUNTS, "a", 2, deposits("a", 3))
        assert everything(client) == before
        await store.append(ACCOUNTS, "a", 2, deposits("a", 2))
    assert (client.xlen(STREAM), client.llen(f"{LIST}a")) == (4, 4)
    client.delete("{accounts}:later")


# -- answers of commands


async def test_an_answer_is_kept_with_its_events_and_stops_the_next_append(redis_url: str, client: redis.Redis) -> None:
    async with open_store(redis_url) as store:
        await store.append(ACCOUNTS, "a", 0, deposits("a"), answer=ANSWER)
        assert client.get("{accounts}:cmd:req-1") == b"=42"
        assert 0 < client.pttl("{accounts}:cmd:req-1") <= 60_000
        before = {key: value for key, value in everything(client).items() if b":cmd:" not in key}
        for aggregate_id, expected in (("a", 1), ("a", 0), ("b", 0), ("a", 7)):
            with pytest.raises(AnsweredBefore) as raised:
                await store.append(ACCOUNTS, aggregate_id, expected, deposits(aggregate_id), answer=ANSWER)
            assert raised.value.value == b"=42"
        with pytest.raises(AnsweredBefore):
            await anext(store.read(ACCOUNTS, "a", answer_key="req-1"))
    assert {key: value for key, value in everything(client).items() if b":cmd:" not in key} == before


async def test_a_conflict_keeps_no_answer(redis_url: str, client: redis.Redis) -> None:
    async with open_store(redis_url) as store:
        with pytest.raises(ConcurrencyConflict):
            await store.append(ACCOUNTS, "a", 1, deposits("a"), answer=ANSWER)
    assert client.dbsize() == 0


# -- refused by the server: nothing is left behind


@pytest.mark.row(36)
@pytest.mark.parametrize("kind", available_kinds())
@pytest.mark.parametrize("count", [1, 200])
async def test_a_server_without_memory_keeps_nothing_of_an_append(
    own_server: Callable[..., RedisProc], kind: str, count: int
) -> None:
    server = own_server(kind=kind)
    async with open_store(server.url, retry_s=0.2) as store:
        with server.client() as client:
            await store.append(ACCOUNTS, "a", 0, deposits("a"))
            before = everything(client)
            client.config_set("maxmemory", 1)
            with pytest.raises(RedisUnavailable, match=r"takes no writes now.*memory"):
                await store.append(ACCOUNTS, "a", 1, deposits("a", count), answer=ANSWER)
            client.config_set("maxmemory", 0)
            assert everything(client) == before
            assert (await store.append(ACCOUNTS, "a", 1, deposits("a", count))).version == count + 1


@pytest.mark.parametrize("kind", available_kinds())
async def test_memory_that_runs_out_within_an_append_stops_none_of_it(
    own_server: Callable[..., RedisProc], kind: str
) -> None:
    """Redis looks at its memory before a script's first write: the append is whole, and the next one is refused."""
    server = own_server(kind=kind)
    async with open_store(server.url, retry_s=0.2) as store:
        with server.client() as client:
            await store.append(ACCOUNTS, "a", 0, deposits("a"))
            batch = [ACCOUNTS.message(opened_of_size(20_000), key="a") for _ in range(200)]
            client.config_set("maxmemory", int(client.info("memory")["used_memory"]) + 1_000_000)
            refused = 0
            for version in (1, 201, 401):
                try:
                    await store.append(ACCOUNTS, "a", version, batch)
                except (RedisUnavailable, ConcurrencyConflict):
                    refused += 1
            assert refused >= 1
            found: Any = client.xrange(STREAM)
            assert len(found) % 200 == 1
            assert [entry_id for entry_id, _ in elements(client, "a")] == [entry.decode() for entry, _ in found]


@pytest.mark.parametrize("kind", available_kinds())
async def test_a_read_only_server_keeps_nothing(own_server: Callable[..., RedisProc], kind: str) -> None:
    primary, replica = own_server(kind=kind), own_server(kind=kind)
    with replica.client() as client:
        client.replicaof("127.0.0.1", str(primary.port))
        async with open_store(replica.url, retry_s=0.1) as store:
            with pytest.raises(StreamlibError, match="read-only"):
                await store.append(ACCOUNTS, "a", 0, deposits("a"), answer=ANSWER)
        assert client.keys() == []


@pytest.mark.row(50)
@pytest.mark.parametrize("kind", available_kinds())
async def test_too_few_replicas_keep_nothing(own_server: Callable[..., RedisProc], kind: str) -> None:
    server = own_server(kind=kind, conf={"min-replicas-to-write": "1"})
    async with open_store(server.url, retry_s=0.1) as store:
        with pytest.raises(RedisUnavailable, match=r"takes no writes now.*(NOREPLICAS|replicas)"):
            await store.append(ACCOUNTS, "a", 0, deposits("a"), answer=ANSWER)
    with server.client() as client:
        assert client.keys() == []


@pytest.mark.row(73)
@pytest.mark.allow_keys("*")
@pytest.mark.parametrize("key", ["accounts", "{accounts}:agg:a", "{accounts}:later", "{accounts}:cmd:req-1"])
async def test_a_key_of_another_type_stops_the_append_before_it_writes(
    redis_url: str, client: redis.Redis, key: str
) -> None:
    client.hset(key, "field", "value")
    before = everything(client)
    async with open_store(redis_url) as store:
        with pytest.raises(WrongKeyType, match="is a hash"):
            await store.append(ACCOUNTS, "a", 0, deposits("a", 3), answer=ANSWER)
    assert everything(client) == before


async def test_a_stream_at_its_last_id_takes_nothing_of_a_batch_that_it_cannot_hold(
    redis_url: str, client: redis.Redis
) -> None:
    last = (1 << 64) - 1
    client.xadd(STREAM, {"id": "first"}, id=f"{last}-{last - 2}")
    async with open_store(redis_url) as store:
        with pytest.raises(StreamlibError, match="exhausted the last possible ID"):
            await store.append(ACCOUNTS, "a", 0, deposits("a", 3), answer=ANSWER)
    assert client.xlen(STREAM) == 1
    assert client.keys("{accounts}*") == []


@pytest.mark.parametrize("denied", ["rpush", "set"])
async def test_a_user_who_may_not_do_all_of_it_does_nothing_of_it(
    own_server: Callable[..., RedisProc], denied: str
) -> None:
    server = own_server()
    with server.client() as client:
        client.acl_setuser("weak", enabled=True, passwords=["+secret"], keys=["*"], commands=["+@all", f"-{denied}"])
        url = server.url.replace("redis://", "redis://weak:secret@")
        async with open_store(url) as store:
            with pytest.raises(RedisUnavailable, match="denies a command"):
                await store.append(ACCOUNTS, "a", 0, deposits("a", 3), answer=ANSWER)
        assert client.xlen(STREAM) == 0
        assert client.keys("{accounts}*") == []
