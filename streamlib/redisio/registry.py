"""What the apps of a namespace declared, kept in Redis: topics, groups, handled types, safe positions."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Literal, TypeVar

from streamlib.errors import DeclarationError, TopicMismatch, WrongKeyType
from streamlib.keys import Keys
from streamlib.message import entry_order
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.failures import CLIENT_ERRORS, error_code, translate
from streamlib.redisio.large_entries import stream_facts
from streamlib.redisio.scripts import Executes
from streamlib.settings import redact
from streamlib.topic import TopicSpec

T = TypeVar("T")

GroupKind = Literal["handler", "ordered", "projection"]

TYPES_LIVE_S = 3_600.0
"""How long a type counts as handled since a worker last said so, every half minute: long enough for an outage."""

_AT_ONCE = 8
"""Partitions on which a group is created side by side: every start of a worker waits for them."""
_BEGIN = "0"
_TYPE = b"type:"


async def declare_topic(redis: RedisDoor, keys: Keys, topic: TopicSpec) -> None:
    """Keep the topic's partition count, once and for all. Raises TopicMismatch and RedisError.

    Network errors are retried for `redis.retry_s`.
    """

    async def declare() -> int:
        await redis.execute("HSETNX", keys.topics(), topic.name, topic.partitions)
        return int(await redis.execute("HGET", keys.topics(), topic.name))

    stored = await _persist(redis, declare)
    if stored != topic.partitions:
        raise TopicMismatch(
            f"topic {topic.name!r} has {stored} partitions in Redis, but partitions={topic.partitions} is "
            f"declared; a partition count is fixed, for keys would move: declare {stored}, or rekey into a "
            "new topic"
        )


async def declare_group(
    redis: RedisDoor, keys: Keys, topic: TopicSpec, group: str, kind: str, types: Iterable[str]
) -> None:
    """Register the group and create it on every partition; what exists stays as it is.

    A new group begins with the first entry; one that was lost, where retention last saw it. `kind` is
    "handler" or "ordered" (which also get their `again` streams) or "projection". `types` join those that other workers
    declared. Raises DeclarationError if the group is of the other kind, WrongKeyType and RedisError.
    Registering comes first: from then on retention keeps everything for the group.
    """
    field = f"{topic.name}:{group}"

    async def register() -> str:
        await redis.execute("HSETNX", keys.topics(), field, kind)
        stored: bytes = await redis.execute("HGET", keys.topics(), field)
        return stored.decode()

    names = list(types)
    stored = await _persist(redis, register)
    if stored != kind:
        raise DeclarationError(
            f"group {group!r} of topic {topic.name!r} is of kind {stored!r} in Redis, but is declared as {kind!r}; "
            f"choose another name, or remove the old group first: streamlib groups rm {topic.name} {group}"
        )

    async def create() -> None:
        await declare_types(redis, keys, topic.name, group, names)
        for start in range(0, topic.partitions, _AT_ONCE):
            some = range(start, min(start + _AT_ONCE, topic.partitions))
            created = (_create(redis, keys, topic.name, topic.partitions, group, kind, one) for one in some)
            for outcome in await asyncio.gather(*created, return_exceptions=True):
                if isinstance(outcome, BaseException):
                    raise outcome

    await _persist(redis, create)


async def create_group(
    redis: RedisDoor, keys: Keys, topic: str, group: str, kind: str, positions: Sequence[str]
) -> None:
    """Register a group that does not exist yet, and create it on every partition behind the id given for it.

    The positions are remembered first: if this breaks off, whoever creates the rest begins there too. Raises
    WrongKeyType and RedisError.
    """

    async def create() -> None:
        for partition, position in enumerate(positions):
            await remember_position(redis, keys, topic, group, partition, position)
        await redis.execute("HSETNX", keys.topics(), f"{topic}:{group}", kind)
        for partition in range(len(positions)):
            await _create(redis, keys, topic, len(positions), group, kind, partition)

    await _persist(redis, create)


async def forget_group(redis: RedisDoor, keys: Keys, topic: str, group: str) -> None:
    """Take the group out of the registry, its entry in the list of groups last. Safe to send twice."""
    await redis.execute("UNLINK", keys.group(topic, group))
    await redis.execute("UNLINK", keys.limit(topic, group))
    await redis.execute("UNLINK", keys.replay(topic, group))
    await redis.execute("HDEL", keys.topics(), f"{topic}:{group}")


async def topics(redis: RedisDoor, keys: Keys) -> dict[str, int]:
    """Every declared topic and its partition count. Raises what the client raises."""
    return {name: int(value) for name, value in (await _registered(redis, keys)).items() if ":" not in name}


async def groups_of(redis: RedisDoor, keys: Keys, topic: str) -> dict[str, str]:
    """The declared groups of a topic, with their kinds. Raises what the client raises."""
    found = (await _registered(redis, keys)).items()
    return {name.partition(":")[2]: kind for name, kind in found if name.startswith(f"{topic}:")}


async def declare_types(redis: RedisDoor, keys: Keys, topic: str, group: str, types: Iterable[str]) -> None:
    """Say that the group handles these types as of now. Safe to send twice; raises what the client raises."""
    server_s = (await redis.execute("TIME"))[0]
    declared = [part for name in types for part in (_TYPE + name.encode(), server_s)]
    if declared:
        await redis.execute("HSET", keys.group(topic, group), *declared)


async def live_types(redis: Executes, keys: Keys, topic: str, group: str, within_s: float = math.inf) -> frozenset[str]:
    """The event types that some worker of the group said to handle within the last `within_s` seconds."""
    server_s = int((await redis.execute("TIME"))[0])
    flat: list[bytes] = await redis.execute("HGETALL", keys.group(topic, group))
    return frozenset(
        name.removeprefix(_TYPE).decode()
        for name, said_s in zip(flat[::2], flat[1::2], strict=True)
        if name.startswith(_TYPE) and server_s - int(said_s) <= within_s
    )


async def remember_position(
    redis: RedisDoor, keys: Keys, topic: str, group: str, partition: int, position: str
) -> None:
    """Keep the id up to which the group is done with a partition. Raises what the client raises."""
    await redis.execute("HSET", keys.group(topic, group), f"pos:{partition}", position)


async def remembered_position(redis: RedisDoor, keys: Keys, topic: str, group: str, partition: int) -> str | None:
    """The id up to which the group was done when retention last looked. Raises what the client raises."""
    stored: bytes | None = await redis.execute("HGET", keys.group(topic, group), f"pos:{partition}")
    return stored.decode() if stored is not None else None


async def restore_group(
    redis: RedisDoor, keys: Keys, topic: TopicSpec, group: str, partition: int, kind: str = "handler"
) -> str:
    """Make a lost group again (after NOGROUP) and return the id after which it reads.

    That is the remembered position, or "0" where none is known or the stream is behind it (an older copy of
    the data came back): rather twice than never. A lost registry entry is made again too. Safe to send twice;
    raises what the client raises, and WrongKeyType.
    """
    await redis.execute("HSETNX", keys.topics(), topic.name, topic.partitions)
    await redis.execute("HSETNX", keys.topics(), f"{topic.name}:{group}", kind)
    return await _create(redis, keys, topic.name, topic.partitions, group, kind, partition)


async def last_id(redis: RedisDoor, stream: str) -> str:
    """The id of the last entry ever added, "0-0" where there is no stream. Raises what the client raises."""
    if not await redis.execute("EXISTS", stream):
        return "0-0"
    found: bytes = (await stream_facts(redis, stream))[b"last-generated-id"]
    return found.decode()


async def _create(
    redis: RedisDoor, keys: Keys, topic: str, partitions: int, group: str, kind: str, partition: int
) -> str:
    names = keys.stream(topic, partition, partitions)
    position = await remembered_position(redis, keys, topic, group, partition)
    if position is None or entry_order(position) > entry_order(await last_id(redis, names.stream)):
        position = _BEGIN
    await _create_one(redis, names.stream, group, position)
    if kind != "projection":
        await _create_one(redis, names.again(group), group, _BEGIN)
    return position


async def _create_one(redis: RedisDoor, stream: str, group: str, position: str) -> None:
    try:
        await redis.execute("XGROUP", "CREATE", stream, group, position, "MKSTREAM")
    except CLIENT_ERRORS as error:
        if "BUSYGROUP" in str(error):
            return
        if error_code(error) == "WRONGTYPE":
            raise WrongKeyType(
                f"key {stream!r} in {redact(redis.settings.url)} is no stream ({error}); rename or remove it "
                "or set redis.namespace"
            ) from error
        raise


async def _registered(redis: RedisDoor, keys: Keys) -> dict[str, str]:
    flat: list[bytes] = await redis.execute("HGETALL", keys.topics())
    return {name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)}


async def _persist(redis: RedisDoor, operation: Callable[[], Awaitable[T]]) -> T:
    try:
        return await redis.persist(operation, give_up_s=redis.settings.retry_s)
    except CLIENT_ERRORS as error:
        raise translate(error, redis.settings.url) from error
