"""Publishing: what is refused, why, and that nothing else happens then."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import redis

from streamlib.codec import RawCodec
from streamlib.errors import (
    DeclarationError,
    IdempotencyConflict,
    PayloadTooLarge,
    PublishError,
    RedisUnavailable,
    TopicFull,
    WrongKeyType,
)
from streamlib.event import Event, Registry
from streamlib.redisio.publisher import Sent
from streamlib.redisio.scripts import Arg, Script
from streamlib.settings import LimitSettings
from streamlib.topic import TopicSpec
from tests.helpers.proxy import ChaosProxy
from tests.helpers.publishing import ORDERS, Made, entries, made, open_door, open_publisher, stored_ids, topic
from tests.helpers.servers import RedisProc, available_kinds

KEPT = topic(dedup_window_s=60)


class Noted(Event):
    order_id: str | None = None


def kinds(results: list[Any]) -> list[str]:
    return [
        ("duplicate" if result.duplicate else "stored") if isinstance(result, Sent) else type(result).__name__
        for result in results
    ]


def everything(client: redis.Redis) -> dict[bytes, bytes | None]:
    return {key: client.dump(key) for key in client.scan_iter()}


@pytest.mark.row(60)
async def test_events_are_admitted_in_order_until_the_topic_is_full(redis_url: str, client: redis.Redis) -> None:
    async with open_publisher(redis_url, limits=LimitSettings(topic_len=5)) as publisher:
        messages = [made(number) for number in range(8)]
        results = await publisher.send(ORDERS, messages)
        assert kinds(results) == ["stored"] * 5 + ["TopicFull"] * 3
        with pytest.raises(TopicFull, match=r"orders holds limits\.topic_len = 5"):
            await publisher.publish(ORDERS, made(9))
        assert stored_ids(client, "orders") == [message.id for message in messages[:5]]
        client.xtrim("orders", maxlen=4, approximate=False)
        await publisher.publish(ORDERS, made(10))
    assert client.xlen("orders") == 5


@pytest.mark.row(20, 70)
async def test_a_copy_from_another_producer_is_found_within_the_window(redis_url: str, client: redis.Redis) -> None:
    async with open_publisher(redis_url) as one, open_publisher(redis_url) as other:
        first = await one.publish(KEPT, made(1, KEPT, event_id="e-1"))
        (again,) = await other.send(KEPT, [made(1, KEPT, event_id="e-1")])
        assert again == Sent(first, duplicate=True)
        with pytest.raises(IdempotencyConflict, match=rf"e-1.*{first.entry_id}"):
            await other.publish(KEPT, made(1, KEPT, event_id="e-1", note="another"))
    assert client.xlen("orders") == 1
    assert 0 < client.pttl("{orders}:dedup:e-1") <= 60_000


async def test_copies_inside_one_batch_are_told_apart(redis_url: str, client: redis.Redis) -> None:
    async with open_publisher(redis_url, limits=LimitSettings(topic_len=2)) as publisher:
        results = await publisher.send(
            KEPT,
            [
                made(1, KEPT, event_id="a"),
                made(1, KEPT, event_id="a"),
                made(1, KEPT, event_id="a", note="another"),
                made(2, KEPT, event_id="b"),
                made(3, KEPT, event_id="c"),
                made(3, KEPT, event_id="c"),
            ],
        )
    expected = ["stored", "duplicate", "IdempotencyConflict", "stored", "TopicFull", "TopicFull"]
    assert kinds(results) == expected
    assert results[1] == Sent(results[0].position, duplicate=True)  # type: ignore[union-attr]
    assert stored_ids(client, "orders") == ["a", "b"]


async def test_a_full_topic_still_knows_its_copies(redis_url: str, client: redis.Redis) -> None:
    async with open_publisher(redis_url, limits=LimitSettings(topic_len=1)) as publisher:
        await publisher.publish(KEPT, made(1, KEPT, event_id="a"))
        results = await publisher.send(KEPT, [made(1, KEPT, event_id="a"), made(2, KEPT, event_id="b")])
    assert kinds(results) == ["duplicate", "TopicFull"]
    assert client.exists("{orders}:dedup:b") == 0


async def test_a_lost_reply_does_not_turn_an_event_into_its_own_copy(proxy: ChaosProxy, client: redis.Redis) -> None:
    async with open_publisher(proxy.url) as publisher:
        await publisher.publish(KEPT, made(0, KEPT))
        proxy.drop_next_reply(b"o-1")
        (result,) = await publisher.send(KEPT, [made(1, KEPT)])
    assert kinds([result]) == ["stored"]
    assert (proxy.struck, client.xlen("orders")) == (1, 2)


async def test_what_is_too_large_stays_out_and_alone(redis_url: str, client: redis.Redis) -> None:
    seen: list[tuple[str, str, int]] = []
    async with open_publisher(
        redis_url,
        limits=LimitSettings(payload_bytes=100),
        observe=lambda name, outcome, number, _: seen.append((name, outcome, number)),
    ) as publisher:
        large = made(2, note="x" * 200)
        many_headers = ORDERS.message(Made(order_id="o"), headers={f"h{n}": "v" for n in range(33)})
        results = await publisher.send(ORDERS, [made(1), large, many_headers, made(3)])
        with pytest.raises(PayloadTooLarge, match=r"Made \S+ .*228 bytes.*limits\.payload_bytes = 100"):
            await publisher.publish(ORDERS, large)
    assert kinds(results) == ["stored", "PayloadTooLarge", "PayloadTooLarge", "stored"]
    assert client.xlen("orders") == 2
    assert [outcome for _, outcome, _ in seen] == ["too_large", "too_large", "stored", "too_large"]
    assert ("orders", "stored", 2) in seen


async def test_what_cannot_be_written_is_an_error_of_its_own_event(redis_url: str, client: redis.Redis) -> None:
    raw = topic(codec=RawCodec(Made))
    surrogate = raw.message(Made(order_id="o-2"), headers={"bad": "\ud800"})
    async with open_publisher(redis_url) as publisher:
        results = await publisher.send(raw, [made(1, raw), surrogate, made(3, raw)])
    assert kinds(results) == ["stored", "PublishError", "stored"]
    assert client.xlen("orders") == 2


async def test_many_events_get_each_its_position_or_its_error(redis_url: str, client: redis.Redis) -> None:
    of = TopicSpec(name="orders", registry=Registry([Made, Noted]), key="order_id")
    seen: list[tuple[str, int]] = []
    events = [Made(order_id="a"), Noted(), Noted(order_id="b"), Made(order_id="x" * 201), Made(order_id="c")]
    async with open_publisher(redis_url, observe=lambda _, outcome, number, __: seen.append((outcome, number))) as one:
        results = await one.publish_many(of, events)
        assert await one.publish_many(of, []) == []
    assert kinds(results) == ["stored", "PublishError", "stored", "PublishError", "stored"]
    assert "Noted.order_id is None" in str(results[1])
    assert seen == [("refused", 1), ("refused", 1), ("stored", 3)]
    assert [fields[b"key"] for _, fields in entries(client, "orders")] == [b"a", b"b", b"c"]


async def test_a_class_the_topic_does_not_declare_stops_all_of_them_before_the_first(
    redis_url: str, client: redis.Redis
) -> None:
    events = [*(Made(order_id=f"o-{n}") for n in range(1_200)), Noted()]
    async with open_publisher(redis_url) as publisher:
        with pytest.raises(DeclarationError, match="does not declare Noted"):
            await publisher.publish_many(ORDERS, events)
        await publisher.publish(ORDERS, made(1))
    assert client.xlen("orders") == 1


async def test_batches_stay_below_four_mebibytes(redis_url: str, client: redis.Redis) -> None:
    limits = LimitSettings(payload_bytes=2_000_000)
    async with open_publisher(redis_url, limits=limits) as publisher:
        client.config_resetstat()
        results = await publisher.send(ORDERS, [made(n, note="x" * 1_500_000) for n in range(6)])
    assert kinds(results) == ["stored"] * 6
    assert client.info("commandstats")["cmdstat_evalsha"]["calls"] >= 3


@pytest.mark.row(73)
@pytest.mark.allow_keys("{orders}:*", "orders")
@pytest.mark.parametrize("key", ["orders", "{orders}:producers", "{orders}:dedup:b"])
async def test_a_key_of_the_wrong_type_is_named_and_nothing_changes(
    redis_url: str, client: redis.Redis, key: str
) -> None:
    client.rpush(key, "not ours")
    before = everything(client)
    async with open_publisher(redis_url) as publisher:
        results = await publisher.send(KEPT, [made(1, KEPT, event_id="a"), made(2, KEPT, event_id="b")])
        with pytest.raises(WrongKeyType) as raised:
            await publisher.publish(KEPT, made(2, KEPT, event_id="b"))
        assert key in str(raised.value)
        assert all(isinstance(result, PublishError) and key in str(result) for result in results)
        assert everything(client) == before
        client.delete(key)
        assert kinds(await publisher.send(KEPT, [made(1, KEPT), made(2, KEPT)])) == ["stored", "stored"]


@pytest.mark.allow_keys("{orders}:*", "orders")
@pytest.mark.parametrize("key", ["{orders}:later", "{orders}:laterbody"])
async def test_where_delayed_events_wait_is_looked_at_too(redis_url: str, client: redis.Redis, key: str) -> None:
    client.rpush(key, "not ours")
    before = everything(client)
    async with open_publisher(redis_url) as publisher:
        results = await publisher.send(ORDERS, [made(1), made(2), made(3)], delays_ms=[0, 60_000, 0])
        assert all(isinstance(result, PublishError) and key in str(result) for result in results)
    assert everything(client) == before


@pytest.mark.row(36)
@pytest.mark.parametrize("kind", available_kinds())
async def test_out_of_memory_leaves_nothing_half_written(own_server: Callable[..., RedisProc], kind: str) -> None:
    server = own_server(kind=kind)
    with server.client() as client:
        async with open_publisher(server.url, retry_s=0.2) as publisher:
            await publisher.publish(KEPT, made(0, KEPT))
            client.set("ballast", b"x" * 1_000_000)
            client.config_set("maxmemory", 1)
            before = everything(client)
            with pytest.raises(RedisUnavailable, match="takes no writes now"):
                await publisher.publish(KEPT, made(1, KEPT))
            assert everything(client) == before
            under_way = asyncio.create_task(publisher.publish(KEPT, made(2, KEPT)))
            await asyncio.sleep(0)
            client.config_set("maxmemory", 0)
            await under_way
        assert client.xlen("orders") == 2


async def test_an_answer_is_given_again_even_without_memory(own_server: Callable[..., RedisProc]) -> None:
    server = own_server()
    script, keys = Script("publish"), ["orders", "{orders}:producers", "{orders}:later", "{orders}:laterbody"]
    args: list[Arg] = ["p", 1, 0, 0, 1, 1, 1, b"id", b"e"]
    with server.client() as client:
        async with open_door(server.url) as door:
            first = await script.run(door, keys, args)
            client.config_set("maxmemory", 1)
            assert await script.run(door, keys, args) == first
        assert client.ttl("{orders}:producers") == -1


@pytest.mark.row(44)
async def test_a_stream_that_runs_out_of_ids_refuses_from_there_on(redis_url: str, client: redis.Redis) -> None:
    last = (1 << 64) - 1
    client.xadd("orders", {"id": "foreign"}, id=f"{last}-{last - 2}")
    async with open_publisher(redis_url) as publisher:
        results = await publisher.send(ORDERS, [made(1), made(2), made(3), made(4)])
        assert kinds(results) == ["stored", "stored", "PublishError", "PublishError"]
        assert kinds(await publisher.send(ORDERS, [made(5)])) == ["PublishError"]
    assert client.xlen("orders") == 3
