"""Doctor on groups and keys of a real server: what nobody handles, what is a stranger's, what belongs to nobody."""

import os
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis

from streamlib.keys import Keys
from streamlib.ops.doctor import Report, examine
from streamlib.ops.findings import Diagnosis
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.members import Member, beat
from streamlib.redisio.pauses import pause
from streamlib.redisio.registry import declare_group, declare_topic
from streamlib.settings import RedisSettings, Settings
from tests.helpers.publishing import open_door, topic

ORDERS = topic(partitions=2)
STREAM, OTHER = "orders.0", "orders.1"
OLD_ID = "1000-0"
OF_SERVERS = frozenset({"aof_off", "no_replicas", "version_hole"})
"""What the shared server has whatever a test does."""


@pytest.fixture
async def door(redis_url: str) -> AsyncIterator[RedisDoor]:
    """Of a server where topic orders has group email."""
    async with open_door(redis_url) as opened:
        await declare_topic(opened, Keys(), ORDERS)
        await declare_group(opened, Keys(), ORDERS, "email", "handler", ["Made"])
        yield opened


async def doctor(door: RedisDoor, namespace: str = "", **options: Any) -> Report:
    settings = Settings(redis=RedisSettings(url=door.settings.url, namespace=namespace))
    return await examine(door, Keys(namespace), settings, **options)


async def found(door: RedisDoor, namespace: str = "", **options: Any) -> dict[str, Diagnosis]:
    report = await doctor(door, namespace, **options)
    return {one.code: one for one in report.findings if one.code not in OF_SERVERS}


async def live(door: RedisDoor) -> None:
    member = Member(
        worker_id="w-1",
        host=socket.gethostname(),
        pid=os.getpid(),
        started_ms=int(time.time() * 1000),
        groups={"orders:email": []},
    )
    await beat(door, Keys(), member, 10_000)


async def test_a_group_that_has_done_all_gives_nothing(door: RedisDoor) -> None:
    report = await doctor(door)
    assert [one for one in report.findings if one.code not in OF_SERVERS] == []
    assert report.groups == 1
    assert report.keys > 0


async def test_events_wait_and_no_worker_lives(door: RedisDoor, client: redis.Redis) -> None:
    client.xadd(OTHER, {"id": "1", "type": "Made"}, id=OLD_ID)
    told = await found(door)
    assert {code: (one.severity, one.where) for code, one in told.items()} == {
        "dead_group": ("danger", "group email of orders")
    }
    assert told["dead_group"].what.startswith("1 events wait")
    await live(door)
    assert await found(door) == {}


async def test_events_that_just_came_do_not_make_a_dead_group(door: RedisDoor, client: redis.Redis) -> None:
    client.xadd(OTHER, {"id": "1", "type": "Made"})
    assert await found(door) == {}


@pytest.mark.parametrize("stream", [STREAM, "{orders.0}:again:email"])
async def test_delivered_events_with_nobody_to_reclaim_them(door: RedisDoor, client: redis.Redis, stream: str) -> None:
    entry = client.xadd(stream, {"id": "1", "type": "Made"}, id=OLD_ID)
    client.xreadgroup("email", "gone", {stream: ">"})
    assert "stuck_pending" not in await found(door)
    client.xclaim(stream, "email", "gone", 0, [entry], idle=31_000)
    told = await found(door)
    assert told["stuck_pending"].severity == "danger"
    assert told["stuck_pending"].what.startswith("1 events were delivered")
    await live(door)
    assert await found(door) == {}


@pytest.mark.row(44)
async def test_an_id_from_the_future_is_named_with_its_stream(door: RedisDoor, client: redis.Redis) -> None:
    await live(door)
    now_ms = int(time.time() * 1000)
    client.xadd(STREAM, {"id": "1", "type": "Made"}, id=f"{now_ms + 3_000_000}-0")
    assert await found(door) == {}, "clocks may be apart"
    client.xadd(OTHER, {"id": "1", "type": "Made"}, id="9999999999999-0")
    told = await found(door)
    assert {code: (one.severity, one.where) for code, one in told.items()} == {
        "ids_from_the_future": ("warning", "stream orders.1")
    }
    assert "9999999999999-0, of 2286-11-20" in told["ids_from_the_future"].what
    client.xdel(OTHER, "9999999999999-0")
    assert "ids_from_the_future" in await found(door), "ids go on from there, though the entry is gone"


@pytest.mark.row(44)
async def test_a_stream_without_ids_left_is_a_danger(door: RedisDoor, client: redis.Redis) -> None:
    await live(door)
    last = (1 << 64) - 1
    client.xadd(STREAM, {"id": "1", "type": "Made"}, id=f"{last}-{last}")
    told = await found(door)
    assert told["ids_from_the_future"].severity == "danger"
    assert "a year above 9999" in told["ids_from_the_future"].what


async def test_a_group_that_no_app_declared(door: RedisDoor, client: redis.Redis) -> None:
    client.xgroup_create(STREAM, "theirs")
    told = await found(door)
    assert {code: one.where for code, one in told.items()} == {"unregistered_group": "group theirs of orders"}


async def test_a_paused_group_with_a_backlog(door: RedisDoor, client: redis.Redis) -> None:
    await live(door)
    await pause(door, Keys(), "orders", "email")
    assert await found(door) == {}
    client.xadd(STREAM, {"id": "1", "type": "Made"})
    told = await found(door)
    assert {code: one.severity for code, one in told.items()} == {"paused_group": "warning"}
    assert told["paused_group"].advice == "streamlib groups resume orders email"


async def test_dead_letters_of_the_last_hour(door: RedisDoor, client: redis.Redis) -> None:
    client.xadd("{orders.0}:dead:email", {"id": "1"}, id=OLD_ID)
    assert await found(door) == {}
    client.xadd("{orders.1}:dead:email", {"id": "2"})
    told = await found(door)
    assert set(told) == {"dead_letters_growing"}
    assert told["dead_letters_growing"].what.startswith("2 dead letters")


@pytest.mark.allow_keys("{old}:*", "{orders.0}:idem:gone:*")
async def test_keys_that_belong_to_nobody(door: RedisDoor, client: redis.Redis) -> None:
    client.set("{orders.0}:idem:gone:1", "d")
    client.hset("{old}:producers", "p", "1")
    client.zadd("{old}:retry:email", {"1": 1})
    report = await doctor(door)
    told = [(one.where, one.severity) for one in report.findings if one.code == "keys_without_owner"]
    assert told == [("topic old", "danger"), ("group gone of orders", "warning")]
    assert "keys_without_owner" not in await found(door, "shop")


@pytest.mark.allow_keys("cart:*", "{old}:*")
async def test_the_scan_is_bounded_unless_all_keys_are_asked_for(door: RedisDoor, client: redis.Redis) -> None:
    client.mset({f"cart:{number}": 1 for number in range(12_000)})
    client.hset("{old}:producers", "p", "1")
    first = await doctor(door)
    assert 10_000 <= first.keys < 12_000
    assert [one.where for one in first.findings if one.code == "not_looked_at"] == [
        door.settings.url.removeprefix("redis://")
    ]
    every = await doctor(door, all_keys=True)
    assert every.keys > 12_000
    assert {one.code for one in every.findings} - OF_SERVERS == {"keys_without_owner"}


@pytest.mark.allow_keys("streamlib:topics")
async def test_a_key_of_another_type(door: RedisDoor, client: redis.Redis) -> None:
    client.set("streamlib:topics", "somebody else's")
    report = await doctor(door)
    assert {one.where for one in report.findings if one.code == "wrong_type"} == {"groups", "keys"}
    assert report.endangered
