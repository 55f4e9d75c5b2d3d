"""Retention: trims by age and length, and never what any group has not finished."""

import random

import pytest
import redis

from streamlib.keys import Keys
from streamlib.message import entry_order
from streamlib.redisio import registry, retention
from streamlib.redisio.retention import TrimResult
from streamlib.settings import RetentionSettings
from tests.helpers.publishing import ORDERS, deliver, entries, made, open_door, open_publisher, topic

KEYS = Keys()
ALL = RetentionSettings(max_age_s=0, max_len=1)
NONE = RetentionSettings(max_age_s=0, max_len=0)
HOUR = RetentionSettings(max_age_s=3_600)


async def declare(url: str, *names: str, kind: str = "handler") -> None:
    async with open_door(url) as door:
        for name in names:
            await registry.declare_group(door, KEYS, ORDERS, name, kind, ["Made"])


async def trim(url: str, settings: RetentionSettings) -> TrimResult:
    async with open_door(url) as door:
        return await retention.trim_once(door, KEYS, ORDERS, settings)


def fill(client: redis.Redis, number: int, *, age_ms: int = 0) -> list[str]:
    """Entries of which the last is `age_ms` old by the server's clock."""
    now_ms = int(client.time()[0]) * 1000
    first = now_ms - age_ms - number
    with client.pipeline() as pipe:
        for n in range(number):
            pipe.xadd("orders", {"id": f"e-{n}"}, id=f"{first + n}-0")
        return [entry_id.decode() for entry_id in pipe.execute()]


def read(client: redis.Redis, group: str, count: int, *, ack: int | None = None) -> list[str]:
    """Deliver `count` entries and acknowledge the first `ack` of them, all by default."""
    ids = deliver(client, "orders", group, count)
    for entry_id in ids[:ack]:
        client.xack("orders", group, entry_id)
    return ids


def left(client: redis.Redis) -> list[str]:
    return [entry_id for entry_id, _ in entries(client, "orders")]


async def test_what_is_old_and_finished_goes(redis_url: str, client: redis.Redis) -> None:
    await declare(redis_url, "email")
    old = fill(client, 1_000, age_ms=7_200_000)
    new = fill(client, 10, age_ms=1_000)
    read(client, "email", 1_010)
    result = await trim(redis_url, HOUR)
    assert (result.trimmed, result.blocked_by) == (1_000, frozenset())
    assert left(client) == new
    assert result.partitions[0].positions == {"email": new[-1]}
    assert (await trim(redis_url, HOUR)).trimmed == 0
    assert old[-1] not in left(client)


@pytest.mark.parametrize("number", [3, 150, 1_234])
async def test_the_newest_max_len_stay(redis_url: str, client: redis.Redis, number: int) -> None:
    await declare(redis_url, "email")
    ids = fill(client, number)
    read(client, "email", number)
    result = await trim(redis_url, RetentionSettings(max_age_s=0, max_len=2))
    assert left(client) == ids[-2:]
    assert (result.trimmed, result.blocked_by) == (number - 2, frozenset())


async def test_without_bounds_everything_stays(redis_url: str, client: redis.Redis) -> None:
    await declare(redis_url, "email")
    ids = fill(client, 300, age_ms=10**9)
    read(client, "email", 300)
    assert (await trim(redis_url, NONE)).trimmed == 0
    assert left(client) == ids


@pytest.mark.row(60, 61)
async def test_the_oldest_pending_entry_of_any_group_stays(redis_url: str, client: redis.Redis) -> None:
    await declare(redis_url, "email", "stock")
    ids = fill(client, 500, age_ms=7_200_000)
    read(client, "email", 500)
    read(client, "stock", 400, ack=123)
    for settings in (HOUR, ALL):
        result = await trim(redis_url, settings)
        assert result.blocked_by == {"stock"}
        assert left(client) == ids[123:]
    client.xack("orders", "stock", *ids[123:400])
    assert (await trim(redis_url, ALL)).blocked_by == {"stock"}
    assert left(client) == ids[400:]


@pytest.mark.row(61)
async def test_a_group_that_nobody_declared_counts_too(redis_url: str, client: redis.Redis) -> None:
    await declare(redis_url, "email")
    ids = fill(client, 200, age_ms=7_200_000)
    read(client, "email", 200)
    client.xgroup_create("orders", "foreign", ids[9])
    result = await trim(redis_url, HOUR)
    assert result.blocked_by == {"foreign"}
    assert left(client) == ids[10:]
    assert not client.exists("streamlib:group:orders:foreign")


async def test_a_declared_group_that_is_missing_needs_everything(redis_url: str, client: redis.Redis) -> None:
    await declare(redis_url, "email", "stock")
    ids = fill(client, 200, age_ms=7_200_000)
    read(client, "email", 200)
    client.xgroup_destroy("orders", "stock")
    result = await trim(redis_url, ALL)
    assert (result.trimmed, result.blocked_by) == (0, frozenset({"stock"}))
    assert left(client) == ids


async def test_without_any_group_nothing_is_trimmed(redis_url: str, client: redis.Redis) -> None:
    ids = fill(client, 200, age_ms=7_200_000)
    assert (await trim(redis_url, ALL)).trimmed == 0
    assert left(client) == ids


async def test_a_topic_that_was_never_published_to(redis_url: str) -> None:
    assert (await trim(redis_url, ALL)).trimmed == 0


async def test_a_projection_counts_by_its_last_delivered_id(redis_url: str, client: redis.Redis) -> None:
    await declare(redis_url, "view", kind="projection")
    ids = fill(client, 300, age_ms=7_200_000)
    client.xgroup_setid("orders", "view", ids[199], entries_read=200)
    result = await trim(redis_url, HOUR)
    assert left(client) == ids[200:]
    assert result.partitions[0].positions == {"view": ids[199]}


async def test_a_quiet_topic_is_not_called_blocked(redis_url: str, client: redis.Redis) -> None:
    await declare(redis_url, "email")
    fill(client, 5, age_ms=7_200_000)
    read(client, "email", 5)
    result = await trim(redis_url, HOUR)
    assert (result.trimmed, result.blocked_by) == (5, frozenset())


@pytest.mark.row(60)
@pytest.mark.parametrize("seed", range(12))
async def test_trimming_never_passes_what_any_group_needs(redis_url: str, client: redis.Redis, seed: int) -> None:
    rng = random.Random(seed)
    names = [f"g{n}" for n in range(rng.randint(1, 4))]
    await declare(redis_url, *names)
    needed: set[str] = set()
    ids = fill(client, rng.randint(1, 900), age_ms=7_200_000)
    for name in names:
        delivered = read(client, name, rng.randint(1, len(ids)), ack=0)
        done = {entry_id for entry_id in delivered if rng.random() < 0.98}
        if done:
            client.xack("orders", name, *done)
        needed |= set(ids) - done
    result = await trim(redis_url, rng.choice([HOUR, ALL, RetentionSettings(max_age_s=3_600, max_len=50)]))
    assert needed <= set(left(client))
    assert not needed or left(client)[0] == min(needed, key=entry_order) or not result.blocked_by


async def test_a_group_lost_after_a_trim_repeats_nothing_and_misses_nothing(
    redis_url: str, client: redis.Redis
) -> None:
    await declare(redis_url, "email")
    ids = fill(client, 50)
    read(client, "email", 20, ack=12)
    await trim(redis_url, NONE)
    client.xgroup_destroy("orders", "email")
    async with open_door(redis_url) as door:
        await registry.restore_group(door, KEYS, ORDERS, "email", 0)
    assert read(client, "email", 100) == ids[12:]


async def test_every_partition_is_trimmed(redis_url: str, client: redis.Redis) -> None:
    spread = topic("spread", partitions=3)
    async with open_publisher(redis_url) as publisher, open_door(redis_url) as door:
        await registry.declare_group(door, KEYS, spread, "view", "projection", ["Made"])
        await publisher.send(spread, [made(number, spread) for number in range(600)])
        for partition in range(3):
            client.xgroup_setid(f"spread.{partition}", "view", "$")
        result = await retention.trim_once(door, KEYS, spread, ALL)
    assert result.trimmed == 597
    assert [client.xlen(f"spread.{partition}") for partition in range(3)] == [1, 1, 1]


async def test_idle_producers_are_forgotten(redis_url: str, client: redis.Redis) -> None:
    async with open_publisher(redis_url) as publisher:
        await publisher.publish(ORDERS, made(1))
        now_ms = int(client.time()[0]) * 1000
        idle = {f"idle-{n}": f"3 {now_ms - 3 * 3_600_000} 1-1" for n in range(1_000)}
        recent = {f"recent-{n}": f"3 {now_ms - 3_600_000} 1-1" for n in range(300)}
        client.hset("{orders}:producers", mapping=idle | recent)  # type: ignore[arg-type]
        assert (await trim(redis_url, NONE)).producers_forgotten == 1_000
        assert client.hlen("{orders}:producers") == 301
        await publisher.publish(ORDERS, made(2))
    assert client.xlen("orders") == 2


@pytest.mark.allow_keys("orders")
async def test_a_stream_key_of_another_type_is_named(redis_url: str, client: redis.Redis) -> None:
    client.set("orders", "not ours")
    with pytest.raises(redis.exceptions.ResponseError, match="WRONGTYPE orders is a string"):
        await trim(redis_url, HOUR)
