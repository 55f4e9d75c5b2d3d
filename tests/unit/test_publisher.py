"""The publisher on fakeredis: the same script runs there, as the test plugin needs it."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from streamlib.errors import IdempotencyConflict, StreamlibError, TopicFull
from streamlib.keys import Keys
from streamlib.redisio import registry, retention
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.publisher import Publisher, Sent
from streamlib.settings import LimitSettings, RedisSettings, RetentionSettings
from streamlib.testing.fake_redis import FakeServer
from tests.helpers.publishing import ORDERS, made, topic

KEPT = topic(dedup_window_s=60)


@pytest.fixture
async def door() -> AsyncIterator[RedisDoor]:
    opened = FakeServer().door(RedisSettings())
    yield opened
    await opened.close()


@pytest.fixture
async def publisher(door: RedisDoor) -> AsyncIterator[Publisher]:
    opened = Publisher(door, Keys(), LimitSettings(topic_len=3))
    yield opened
    await opened.close()


async def test_positions_are_those_of_the_stream(door: RedisDoor, publisher: Publisher) -> None:
    results = await publisher.send(ORDERS, [made(1), made(2)])
    entries = await door.execute("XRANGE", "orders", "-", "+")
    assert [r.position.entry_id.encode() for r in results if isinstance(r, Sent)] == [entry[0] for entry in entries]


async def test_what_is_refused(publisher: Publisher) -> None:
    first = await publisher.publish(KEPT, made(1, KEPT, event_id="a"))
    assert await publisher.publish(KEPT, made(1, KEPT, event_id="a")) == first
    with pytest.raises(IdempotencyConflict):
        await publisher.publish(KEPT, made(2, KEPT, event_id="a"))
    results = await publisher.send(KEPT, [made(n, KEPT) for n in range(3)])
    assert [type(result) for result in results] == [Sent, Sent, TopicFull]


async def test_nothing_is_no_error(publisher: Publisher) -> None:
    assert await publisher.send(ORDERS, []) == []


async def test_awaited_together_goes_together(door: RedisDoor, publisher: Publisher) -> None:
    positions = await asyncio.gather(*(publisher.publish(ORDERS, made(number)) for number in range(3)))
    record = await door.execute("HVALS", "{orders}:producers")
    assert record[0].split(b" ")[2:] == [position.entry_id.encode() for position in positions]


async def test_a_closed_publisher_refuses(publisher: Publisher) -> None:
    await publisher.close()
    with pytest.raises(StreamlibError, match="closed"):
        await publisher.send(ORDERS, [made(1)])


async def test_a_lost_loop_leaves_no_caller_waiting(publisher: Publisher) -> None:
    waiting = asyncio.create_task(publisher.publish(ORDERS, made(1)))
    await asyncio.sleep(0)
    (line,) = publisher._lines.values()
    assert line.task is not None
    line.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_bug_is_heard_of_by_every_caller(
    publisher: Publisher, door: RedisDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(door, "persist", broken)
    results = await asyncio.gather(*(publisher.publish(ORDERS, made(n)) for n in range(3)), return_exceptions=True)
    assert [str(result) for result in results] == ["a bug"] * 3


async def test_registry_and_retention_run_there_too(door: RedisDoor, publisher: Publisher) -> None:
    keys = Keys()
    await registry.declare_topic(door, keys, ORDERS)
    await registry.declare_group(door, keys, ORDERS, "email", "handler", ["Made"])
    await publisher.send(ORDERS, [made(1), made(2), made(3)])
    result = await retention.trim_once(door, keys, ORDERS, RetentionSettings(max_len=1))
    assert (result.trimmed, result.blocked_by) == (0, frozenset({"email"}))
    await door.execute("XGROUP", "SETID", "orders", "email", "$")
    assert (await retention.trim_once(door, keys, ORDERS, RetentionSettings(max_len=1))).trimmed == 2
