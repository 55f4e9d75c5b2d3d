"""Publishing: every event is stored once, whatever happens to the connection, the server or the caller."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from itertools import chain
from typing import Any

import pytest
import redis

from streamlib.errors import PublishError, RedisUnavailable, StreamlibError
from streamlib.redisio.later import unpack
from streamlib.redisio.publish_line import BATCH_EVENTS
from streamlib.redisio.publisher import Publisher, Sent
from streamlib.redisio.scripts import Arg, Script
from tests.helpers.proxy import ChaosProxy
from tests.helpers.publishing import ORDERS, Made, entries, made, open_door, open_publisher, stored_ids, topic
from tests.helpers.servers import RedisProc
from tests.helpers.waiting import eventually

SPREAD = topic("spread", partitions=4)

Connect = Callable[..., Any]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """`await connect(url, timeout_s=..., retry_s=...)`: a publisher, closed when the test ends."""
    async with AsyncExitStack() as opened:

        async def enter(url: str, **settings: Any) -> Publisher:
            return await opened.enter_async_context(open_publisher(url, **settings))

        yield enter


async def test_a_published_event_lies_where_its_position_says(
    redis_url: str, client: redis.Redis, connect: Connect
) -> None:
    message = ORDERS.message(Made(order_id="o-1", note="é"))
    position = await (await connect(redis_url)).publish(ORDERS, message)
    ((entry_id, fields),) = entries(client, "orders")
    assert (position.topic, position.partition, position.entry_id) == ("orders", 0, entry_id)
    assert list(fields) == [b"id", b"type", b"v", b"key", b"data"]
    assert fields[b"id"].decode() == message.id
    assert fields[b"data"] == '{"order_id":"o-1","note":"é"}'.encode()


@pytest.mark.parametrize("window_s", [0, 60])
@pytest.mark.allow_keys("{orders}:*")
async def test_events_of_all_shapes_share_a_batch(
    redis_url: str, client: redis.Redis, connect: Connect, window_s: int
) -> None:
    of, event = topic(dedup_window_s=window_s), Made(order_id="o-1")
    envelopes: list[dict[str, Any]] = [
        {},
        {},
        {"time_ms": 5},
        {"headers": {"a": "b"}, "correlation_id": "c"},
        {},
        {"traceparent": "t"},
        {"traceparent": "u"},
        {},
    ]
    messages = [of.message(event, event_id=f"e-{n}", **envelope) for n, envelope in enumerate(envelopes)]
    delays_ms = [0, 60_000, 0, 0, 60_000, 60_000, 0, 0]
    publisher = await connect(redis_url)
    await publisher.publish(of, of.message(event, event_id="first"))
    client.config_resetstat()
    results = await publisher.send(of, messages, delays_ms=delays_ms)
    assert client.info("commandstats")["cmdstat_evalsha"]["calls"] == 1
    stored = {entry_id: [*chain(*fields.items())] for entry_id, fields in entries(client, "orders")}
    places = [result.position.entry_id for result in results if isinstance(result, Sent)]
    assert [place == "" for place in places] == [delay > 0 for delay in delays_ms]
    written = [of.codec.write(message) for message in messages]
    at_once = [n for n, delay in enumerate(delays_ms) if not delay]
    assert [stored[places[n]] for n in at_once] == [written[n] for n in at_once]
    waiting: Any = client.hgetall("{orders}:laterbody")
    assert {key: unpack(body) for key, body in waiting.items()} == {
        f"e-{n}".encode(): written[n] for n, delay in enumerate(delays_ms) if delay
    }


async def test_results_come_in_order_over_partitions_and_batches(
    redis_url: str, client: redis.Redis, connect: Connect
) -> None:
    messages = [made(number, SPREAD) for number in range(2_500)]
    results = await (await connect(redis_url)).send(SPREAD, messages)
    by_position = {
        (partition, entry_id): fields[b"id"].decode()
        for partition in range(4)
        for entry_id, fields in entries(client, f"spread.{partition}")
    }
    sent = [result for result in results if isinstance(result, Sent)]
    found = [by_position[result.position.partition, result.position.entry_id] for result in sent]
    assert found == [message.id for message in messages]
    assert len(by_position) == 2_500


@pytest.mark.row(20)
async def test_a_lost_reply_is_sent_again_and_nothing_doubles(
    proxy: ChaosProxy, client: redis.Redis, connect: Connect
) -> None:
    publisher = await connect(proxy.url)
    await publisher.publish(ORDERS, made(0))
    for number in range(1, 6):
        proxy.drop_next_reply(b"o-")
        position = await publisher.publish(ORDERS, made(number))
        assert entries(client, "orders")[-1][0] == position.entry_id
    assert proxy.struck == 5
    assert client.xlen("orders") == 6


@pytest.mark.row(20)
async def test_a_batch_cut_in_its_reply_gives_the_first_answer_again(
    proxy: ChaosProxy, client: redis.Redis, connect: Connect
) -> None:
    publisher = await connect(proxy.url)
    await publisher.publish(ORDERS, made(-1))
    messages = [made(number) for number in range(1_200)]
    proxy.cut_replies_after(3_000)
    results = await publisher.send(ORDERS, messages)
    stored = {entry_id: fields[b"id"].decode() for entry_id, fields in entries(client, "orders")}
    assert proxy.struck == 1
    assert [stored[r.position.entry_id] for r in results if isinstance(r, Sent)] == [m.id for m in messages]
    assert len(stored) == 1_201


async def test_an_overtaken_batch_that_arrives_late_is_refused(redis_url: str, client: redis.Redis) -> None:
    """A packet of a connection that was given up may be carried out much later."""
    script, keys = Script("publish"), ["orders", "{orders}:producers", "{orders}:later", "{orders}:laterbody"]
    event: list[Arg] = [0, 0, 1, 1, 1, b"id", b"e-1"]
    async with open_door(redis_url) as door:
        first = await script.run(door, keys, ["producer", 1, *event])
        second = await script.run(door, keys, ["producer", 2, *event])
        assert await script.run(door, keys, ["producer", 1, *event]) is None
        assert await script.run(door, keys, ["producer", 2, *event]) == second
        assert await script.run(door, keys, ["another", 1, *event]) not in (first, second)
    assert client.xlen("orders") == 3


async def test_two_publishers_write_side_by_side(redis_url: str, client: redis.Redis, connect: Connect) -> None:
    batches = [[made(number) for number in range(3_000)] for _ in range(2)]
    publishers = [await connect(redis_url) for _ in batches]
    await asyncio.gather(*(one.send(ORDERS, batch) for one, batch in zip(publishers, batches, strict=True)))
    expected = [message.id for batch in batches for message in batch]
    assert Counter(stored_ids(client, "orders")) == Counter(expected)
    assert client.hlen("{orders}:producers") == 2


async def test_parallel_publishes_travel_together_and_close_waits_for_them(
    redis_url: str, client: redis.Redis, connect: Connect
) -> None:
    publisher = await connect(redis_url)
    client.config_resetstat()
    tasks = [asyncio.create_task(publisher.publish(ORDERS, made(number))) for number in range(10_000)]
    await asyncio.sleep(0)
    await publisher.close()
    positions = await asyncio.gather(*tasks)
    assert client.xlen("orders") == 10_000
    assert len({position.entry_id for position in positions}) == 10_000
    calls = client.info("commandstats")["cmdstat_evalsha"]["calls"]
    assert calls <= 10_000 // BATCH_EVENTS + 5
    with pytest.raises(StreamlibError, match="closed"):
        await publisher.publish(ORDERS, made(-1))


async def test_a_cancelled_publish_harms_no_other(proxy: ChaosProxy, client: redis.Redis, connect: Connect) -> None:
    publisher = await connect(proxy.url)
    await publisher.publish(ORDERS, made(0))
    proxy.blackhole()
    under_way = [asyncio.create_task(publisher.publish(ORDERS, made(number))) for number in range(1, 11)]
    await eventually(lambda: publisher._line(ORDERS, 0).busy)
    await asyncio.sleep(0)
    queued = [asyncio.create_task(publisher.publish(ORDERS, made(number))) for number in range(11, 21)]
    await asyncio.sleep(0)
    for task in (under_way[0], under_way[5], queued[0], queued[9]):
        task.cancel()
    proxy.heal()
    results = await asyncio.gather(*under_way, *queued, return_exceptions=True)
    assert sum(isinstance(result, asyncio.CancelledError) for result in results) == 4
    # What was under way is stored, although its caller has gone; what had not left stays behind.
    assert client.xlen("orders") == 1 + 10 + 8


@pytest.mark.row(28)
async def test_a_flushed_script_cache_goes_unnoticed(redis_url: str, client: redis.Redis, connect: Connect) -> None:
    publisher = await connect(redis_url)
    for number in range(5):
        client.script_flush()
        await publisher.publish(ORDERS, made(number))
    assert client.xlen("orders") == 5


async def test_what_redis_never_answered_is_an_error_for_each_event_and_soon(
    redis_url: str, client: redis.Redis, proxy: ChaosProxy, connect: Connect
) -> None:
    publisher = await connect(proxy.url, timeout_s=0.1, retry_s=0.3)
    await publisher.publish(ORDERS, made(0))
    proxy.blackhole()
    results = await publisher.send(ORDERS, [made(number) for number in range(1, 3_001)])
    assert all(isinstance(result, PublishError) for result in results)
    assert isinstance(results[0].__cause__, RedisUnavailable)
    assert len({id(result) for result in results}) == 3_000
    with pytest.raises(RedisUnavailable):
        await publisher.publish(ORDERS, made(3_001))
    proxy.heal()
    await publisher.publish(ORDERS, made(3_002))
    # All later batches waited as long as the first: none was sent. The first may arrive late, but only once.
    assert client.xlen("orders") <= 2 + BATCH_EVENTS + 1


@pytest.mark.row(32)
async def test_a_killed_server_that_comes_back_has_each_event_once(
    own_server: Callable[..., RedisProc], connect: Connect
) -> None:
    server = own_server(aof=True)
    publisher = await connect(server.url, timeout_s=1)
    messages = [made(number) for number in range(6_000)]
    sending = asyncio.create_task(publisher.send(ORDERS, messages))
    with server.client() as watching:
        await eventually(lambda: watching.xlen("orders") > 0, every=0.001)
    await asyncio.to_thread(server.kill9)
    await asyncio.to_thread(server.start)
    results = await sending
    with server.client() as client:
        assert Counter(stored_ids(client, "orders")) == Counter(message.id for message in messages)
    assert all(isinstance(result, Sent) for result in results)
