"""Scratch topics: removed however it ends, and nothing but them; commands and server time as they are counted."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis

from streamlib import App, Event
from streamlib.errors import RedisUnavailable, Refused
from streamlib.keys import Keys
from streamlib.ops.scratch import LASTS_S, expire, remove, scratch
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.counting import Counter, counting_door, info_numbers, server_cpu_s
from streamlib.settings import RedisSettings, Settings
from tests.helpers.delivering import running
from tests.helpers.publishing import open_door
from tests.helpers.waiting import eventually

pytestmark = pytest.mark.allow_keys("somebodys:*")


class Placed(Event):
    order_id: str


@pytest.fixture
def foreign(client: redis.Redis) -> dict[bytes, Any]:
    """What others have, under names that look alike: as it must be afterwards."""
    for name in ("somebodys:streamlib-bench-", "somebodys:{streamlib-bench-0123456789ab:orders}:idem:g:e"):
        client.set(name, "theirs")
    return dumped(client)


def dumped(client: redis.Redis) -> dict[bytes, Any]:
    return {name: client.dump(name) for name in client.scan_iter()}


@asynccontextmanager
async def worked(url: str, keys: Keys, partitions: int = 1) -> AsyncIterator[App]:
    """An app there that has handled events in a group, and dead letters and a retry of them."""
    app = App("bench", settings=Settings(redis=RedisSettings(url=url, namespace=keys.namespace)))
    topic = app.topic("orders", Placed, key="order_id", partitions=partitions)
    handled: list[str] = []

    @app.handler(topic, group="bench")
    async def handle(event: Placed) -> None:
        handled.append(event.order_id)
        if event.order_id == "o-1":
            raise ValueError("again, later")

    async with app:
        await topic.publish_many([Placed(order_id=f"o-{n}") for n in range(1_200)])
        await topic.publish(Placed(order_id="late"), delay=3_600)
        async with running(app):
            await eventually(lambda: len(handled) >= 1_200)
        yield app


@pytest.mark.parametrize("ends", ["well", "failing", "cancelled"])
async def test_everything_is_removed_however_it_ends_and_nothing_else(
    redis_url: str, client: redis.Redis, foreign: dict[bytes, Any], ends: str
) -> None:
    there = asyncio.Event()

    async def work() -> None:
        async with open_door(redis_url) as door, scratch(door) as keys:
            async with worked(redis_url, keys):
                assert len(dumped(client)) > 1_200
            there.set()
            if ends == "failing":
                raise ValueError("in the middle")
            if ends == "cancelled":
                await asyncio.sleep(600)

    task = asyncio.create_task(work())
    await asyncio.wait({task, asyncio.create_task(there.wait())}, return_when=asyncio.FIRST_COMPLETED)
    if ends == "cancelled":
        task.cancel()
    outcome = (await asyncio.gather(task, return_exceptions=True))[0]
    kinds = {"well": type(None), "failing": ValueError, "cancelled": asyncio.CancelledError}
    assert isinstance(outcome, kinds[ends])
    assert dumped(client) == foreign


async def test_all_partitions_are_removed_and_a_second_time_is_harmless(redis_url: str, client: redis.Redis) -> None:
    keys = Keys.scratch()
    async with open_door(redis_url) as door:
        async with worked(redis_url, keys, partitions=3):
            pass
        await remove(door, keys)
        assert dumped(client) == {}
        await remove(door, keys)


@pytest.mark.parametrize("namespace", ["", "shop", "streamlib-bench-mine"])
async def test_no_other_namespace_is_touched(redis_url: str, client: redis.Redis, namespace: str) -> None:
    keys = Keys(namespace)
    async with open_door(redis_url) as door:
        async with worked(redis_url, keys):
            before = dumped(client)
        for act in (remove, expire):
            with pytest.raises(Refused, match="no scratch namespace"):
                await act(door, keys)
    assert set(dumped(client)) == set(before)
    assert not [name for name in before if b":idem:" not in name and client.ttl(name) > 0]


async def test_what_a_killed_process_leaves_expires(redis_url: str, client: redis.Redis) -> None:
    keys = Keys.scratch()
    async with open_door(redis_url) as door:
        async with worked(redis_url, keys) as app:
            await expire(door, keys)
            lasting = [name for name in client.scan_iter() if not 0 < client.ttl(name) <= LASTS_S]
            assert lasting == [], "every key has its end"
            assert app.keys == keys
        await remove(door, keys)


async def test_what_cannot_be_removed_is_named(redis_url: str, client: redis.Redis) -> None:
    client.acl_setuser("weak", enabled=True, passwords=["+secret"], keys=["*"], commands=["+@all", "-hgetall"])
    url = redis_url.replace("redis://", "redis://weak:secret@")
    async with open_door(url, retry_s=0) as door:
        with pytest.raises(RedisUnavailable, match="Keys of this run may be left") as told:
            async with scratch(door) as keys:
                pass
    assert f"'*{keys.namespace}*'" in str(told.value)
    assert "secret" not in str(told.value)
    client.acl_deluser("weak")


async def test_every_command_of_ours_is_counted_and_no_other(redis_url: str, client: redis.Redis) -> None:
    counter = Counter()
    door = counting_door(RedisSettings(url=redis_url), counter)
    await door.execute("PING")
    lane = door.lane("orders")
    await lane.execute("PING")
    sync = door.sync_client()
    sync.execute("PING")
    async with door.nodes() as nodes:
        [node] = nodes.values()
        await node.execute("PING")
    for _ in range(100):
        client.ping()
    assert counter.commands == 4
    sync.close()
    await lane.close()
    await door.close()


async def test_the_server_tells_its_cpu_time_unless_that_is_denied(redis_url: str, client: redis.Redis) -> None:
    client.acl_setuser("weak", enabled=True, passwords=["+secret"], keys=["*"], commands=["+@all", "-info"])
    async with open_door(redis_url) as door, open_door(redis_url.replace("redis://", "redis://weak:secret@")) as weak:
        before = await server_cpu_s(door)
        assert before is not None
        await _busy(door)
        after = await server_cpu_s(door)
        assert after is not None
        assert after > before
        assert (await info_numbers(door, "memory"))["used_memory"] > 0
        assert await server_cpu_s(weak) is None
        assert await info_numbers(weak, "memory") == {}
    client.acl_deluser("weak")


async def _busy(door: RedisDoor) -> None:
    await door.execute("EVAL", "for i = 1, 1000000 do local n = i * 2 end", 0)
