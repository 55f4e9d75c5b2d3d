"""Topics that are made to be removed again, in a namespace that nobody else has; nothing else is ever touched."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from streamlib.errors import RedisUnavailable, Refused, StreamlibError
from streamlib.keys import Keys, StreamKeys
from streamlib.ops.places import partitions_of
from streamlib.redisio import group_keys, registry
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.failures import CLIENT_ERRORS, translate

LASTS_S = 6 * 3600
"""After this time what a killed process left behind is gone by itself."""
_CHUNK = 500
_PATIENCE_S = 10.0
"""Whatever redis.retry_s is: a server that was only busy is left clean, and a person waits for it."""


@asynccontextmanager
async def scratch(redis: RedisDoor) -> AsyncIterator[Keys]:
    """The keys of a new namespace; whatever is declared there is removed at the end, also after an error or a
    cancellation. Everybody who writes there has to have ended by then.

    Raises RedisUnavailable, which names what is left, when it cannot be removed.
    """
    keys = Keys.scratch()
    try:
        yield keys
    finally:
        try:
            await redis.persist(partial(remove, redis, keys), give_up_s=_PATIENCE_S)
        except (StreamlibError, *CLIENT_ERRORS) as error:
            raise RedisUnavailable(
                f"{translate(error, redis.settings.url)}. Keys of this run may be left, each with {keys.namespace} in "
                f"its name; they expire within {LASTS_S // 3600} hours, or remove them with redis-cli (--scan "
                f"--pattern '*{keys.namespace}*' lists them)"
            ) from error


async def remove(redis: RedisDoor, keys: Keys) -> None:
    """Delete every topic of a scratch namespace by the names of its keys. May be done again after it broke off.

    The keyspace is not walked: it may be large, and is somebody's. Raises Refused for any other namespace, and what the
    client raises.
    """
    _check(keys)
    for topic in await registry.topics(redis, keys):
        groups = await registry.groups_of(redis, keys, topic)
        for stream in await partitions_of(redis, keys, topic):
            await _remove_marks(redis, stream, list(groups))
            for group in groups:
                await group_keys.destroy(redis, stream, group)
            for name in _of_stream(stream):
                await redis.execute("UNLINK", name)
        for group in groups:
            await registry.forget_group(redis, keys, topic, group)
    for name in (keys.workers(), keys.views(), keys.topics()):  # the list of what there is goes last
        await redis.execute("UNLINK", name)


async def expire(redis: RedisDoor, keys: Keys) -> None:
    """Let all that is declared now, and the workers' register, go away by itself if this process is killed. Raises
    Refused for another namespace, and what the client raises."""
    _check(keys)
    names = [keys.topics(), keys.workers()]
    for topic in await registry.topics(redis, keys):
        groups = await registry.groups_of(redis, keys, topic)
        names += [keys.group(topic, group) for group in groups]
        for stream in await partitions_of(redis, keys, topic):
            names += [*_of_stream(stream), *map(stream.again, groups)]
    for name in names:
        await redis.execute("PEXPIRE", name, LASTS_S * 1000)


def _check(keys: Keys) -> None:
    if not keys.are_scratch:
        raise Refused(f"namespace {keys.namespace!r} is no scratch namespace; nothing in it was touched")


def _of_stream(stream: StreamKeys) -> list[str]:
    """The stream goes last: it tells the names of the done marks."""
    return [stream.producers(), stream.later(), stream.later_body(), stream.stream]


async def _remove_marks(redis: RedisDoor, stream: StreamKeys, groups: list[str]) -> None:
    after = "-"
    while entries := await redis.execute("XRANGE", stream.stream, after, "+", "COUNT", _CHUNK):
        event_ids = [fields[1].decode() for _, fields in entries]
        for group in groups:
            await redis.execute("UNLINK", *stream.idems(group, event_ids))
        after = "(" + entries[-1][0].decode()
