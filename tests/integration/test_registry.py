"""The registry: partition counts are fixed, groups begin with the first entry, lost ones go on where they were."""

import asyncio
from itertools import permutations

import pytest
import redis

from streamlib.errors import DeclarationError, RedisUnavailable, TopicMismatch, WrongKeyType
from streamlib.keys import Keys
from streamlib.redisio import registry
from streamlib.redisio.registry import GroupKind
from tests.helpers.publishing import ORDERS, add, deliver, open_door, topic
from tests.helpers.servers import free_port

SPREAD = topic("spread", partitions=3)
KEYS = Keys()
SHOP = Keys("shop")


def groups(client: redis.Redis, stream: str) -> dict[str, str]:
    return {row["name"].decode(): row["last-delivered-id"].decode() for row in client.xinfo_groups(stream)}


@pytest.mark.row(72)
async def test_a_partition_count_is_kept_and_another_refused(redis_url: str) -> None:
    async with open_door(redis_url) as door:
        await registry.declare_topic(door, KEYS, SPREAD)
        await registry.declare_topic(door, KEYS, SPREAD)
        with pytest.raises(TopicMismatch, match=r"'spread' has 3 partitions in Redis, but partitions=4"):
            await registry.declare_topic(door, KEYS, topic("spread", partitions=4))
        assert await registry.topics(door, KEYS) == {"spread": 3}
        assert await registry.topics(door, SHOP) == {}


@pytest.mark.row(62)
async def test_a_group_exists_on_every_partition_from_the_first_entry(redis_url: str, client: redis.Redis) -> None:
    client.xadd("spread.1", {"id": "early"})
    async with open_door(redis_url) as door:
        for _ in range(2):
            await registry.declare_group(door, KEYS, SPREAD, "email", "handler", ["Made"])
        await registry.declare_group(door, KEYS, SPREAD, "view", "projection", ["Made"])
        assert await registry.groups_of(door, KEYS, "spread") == {"email": "handler", "view": "projection"}
    for partition in range(3):
        stream = f"spread.{partition}"
        assert groups(client, stream) == {"email": "0-0", "view": "0-0"}
        assert groups(client, KEYS.stream("spread", partition, 3).again("email")) == {"email": "0-0"}
        assert not client.exists(KEYS.stream("spread", partition, 3).again("view"))


@pytest.mark.allow_keys("wide.9")
async def test_a_group_is_created_side_by_side_and_one_bad_partition_leaves_nothing_under_way(
    redis_url: str, client: redis.Redis
) -> None:
    wide = topic("wide", partitions=20)
    async with open_door(redis_url) as door:
        await registry.declare_group(door, KEYS, wide, "email", "handler", ["Made"])
        assert [groups(client, f"wide.{number}") for number in range(20)] == [{"email": "0-0"}] * 20
        assert client.info("clients")["connected_clients"] > 3
        client.delete("wide.9")
        client.set("wide.9", "no stream")
        with pytest.raises(WrongKeyType, match=r"'wide\.9'"):
            await registry.declare_group(door, KEYS, wide, "email", "handler", ["Made"])
        assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_declaring_again_moves_no_group(redis_url: str, client: redis.Redis) -> None:
    async with open_door(redis_url) as door:
        await registry.declare_group(door, KEYS, ORDERS, "email", "handler", ["Made"])
        entry_id = add(client, "orders", "e-1")
        assert deliver(client, "orders", "email", 10) == [entry_id]
        await registry.declare_group(door, KEYS, ORDERS, "email", "handler", ["Made"])
    assert groups(client, "orders") == {"email": entry_id}


@pytest.mark.parametrize("kinds", list(permutations(["handler", "ordered", "projection"], 2)), ids=" to ".join)
async def test_a_group_does_not_change_its_kind(
    redis_url: str, client: redis.Redis, kinds: tuple[GroupKind, GroupKind]
) -> None:
    was, becomes = kinds
    async with open_door(redis_url) as door:
        await registry.declare_group(door, KEYS, ORDERS, "email", was, ["Made"])
        entry_id = add(client, "orders", "e-1")
        assert deliver(client, "orders", "email", 10) == [entry_id]
        with pytest.raises(
            DeclarationError, match=f"'email' of topic 'orders' is of kind '{was}' .* declared as '{becomes}'"
        ) as caught:
            await registry.declare_group(door, KEYS, ORDERS, "email", becomes, ["Made"])
        assert "streamlib groups rm orders email" in str(caught.value), "the way out"
        assert await registry.groups_of(door, KEYS, "orders") == {"email": was}
    assert groups(client, "orders") == {"email": entry_id}, "what it has read and what is pending stays"
    assert client.xpending("orders", "email")["pending"] == 1


async def test_types_of_all_workers_add_up_and_age(redis_url: str, client: redis.Redis) -> None:
    async with open_door(redis_url) as door:
        types = [["Made"], ["Made", "Shipped"]]
        await asyncio.gather(
            *(registry.declare_group(door, KEYS, ORDERS, "email", "handler", names) for names in types)
        )
        assert await registry.live_types(door, KEYS, "orders", "email") == {"Made", "Shipped"}
        said_s = int(client.time()[0])
        client.hset("streamlib:group:orders:email", "type:Shipped", said_s - 5_000)
        assert await registry.live_types(door, KEYS, "orders", "email", 3_600) == {"Made"}


@pytest.mark.allow_keys("orders", "{orders}:again:email")
@pytest.mark.parametrize("key", ["orders", "{orders}:again:email"])
async def test_a_key_of_another_type_is_named(redis_url: str, client: redis.Redis, key: str) -> None:
    client.set(key, "not ours")
    async with open_door(redis_url) as door:
        with pytest.raises(WrongKeyType, match="no stream") as raised:
            await registry.declare_group(door, KEYS, ORDERS, "email", "handler", ["Made"])
    assert repr(key) in str(raised.value)


async def test_no_redis_is_said_after_the_retries() -> None:
    async with open_door(f"redis://127.0.0.1:{free_port()}", retry_s=0.1) as door:
        with pytest.raises(RedisUnavailable, match="not reachable"):
            await registry.declare_topic(door, KEYS, ORDERS)


async def test_a_lost_group_goes_on_where_it_was_remembered(redis_url: str, client: redis.Redis) -> None:
    ids = [add(client, "orders", f"e-{n}") for n in range(4)]
    async with open_door(redis_url) as door:
        await registry.declare_group(door, KEYS, ORDERS, "email", "handler", ["Made"])
        assert await registry.restore_group(door, KEYS, ORDERS, "email", 0) == "0"
        await registry.remember_position(door, KEYS, "orders", "email", 0, ids[1])
        client.xgroup_destroy("orders", "email")
        assert await registry.restore_group(door, KEYS, ORDERS, "email", 0) == ids[1]
        assert deliver(client, "orders", "email", 10) == ids[2:]


@pytest.mark.row(40)
async def test_a_stream_that_lost_its_end_is_read_from_the_start(redis_url: str, client: redis.Redis) -> None:
    client.xadd("orders", {"id": "old"}, id="5-0")
    async with open_door(redis_url) as door:
        await registry.remember_position(door, KEYS, "orders", "email", 0, "9-0")
        assert await registry.restore_group(door, KEYS, ORDERS, "email", 0) == "0"
    assert groups(client, "orders") == {"email": "0-0"}


async def test_after_a_flush_everything_is_made_again(redis_url: str, client: redis.Redis) -> None:
    async with open_door(redis_url) as door:
        await registry.declare_topic(door, SHOP, SPREAD)
        await registry.declare_group(door, SHOP, SPREAD, "email", "handler", ["Made"])
        client.flushall()
        assert await registry.restore_group(door, SHOP, SPREAD, "email", 2) == "0"
        assert await registry.topics(door, SHOP) == {"spread": 3}
        assert await registry.groups_of(door, SHOP, "spread") == {"email": "handler"}
    assert groups(client, "shop:spread.2") == {"email": "0-0"}
    assert groups(client, "{shop:spread.2}:again:email") == {"email": "0-0"}
