"""Tries every command that a run needs, before it begins: a right that is missing in the middle is told late."""

from __future__ import annotations

from typing import Any

from streamlib.errors import RedisUnavailable
from streamlib.keys import SCRATCH, Keys
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.failures import CLIENT_ERRORS, ErrorClass, NoScriptError, classify
from streamlib.settings import redact

_GROUP = "rights"
_SOON_MS = 60_000


async def check_rights(redis: RedisDoor) -> None:
    """On scratch keys; leaves none behind. Raises RedisUnavailable, which names what is denied, and what the client
    raises."""
    keys = Keys.scratch()
    stream = keys.stream("rights", 0, 1)
    names = [stream.stream, stream.idem(_GROUP, "e"), stream.retry(_GROUP), stream.producers(), keys.workers()]
    for name in names:  # first: what could not be removed again is not made
        if error := await _denied(redis, ("UNLINK", name)):
            raise _refusal(redis, ["UNLINK"], error)
    denied: dict[str, Exception] = {}
    try:
        for command in _commands(*names):
            if error := await _denied(redis, command):
                denied.setdefault(" ".join(command[:2]) if command[0] in ("XGROUP", "XINFO") else command[0], error)
    finally:
        for name in names:
            await redis.execute("UNLINK", name)
    if denied:
        raise _refusal(redis, list(denied), next(iter(denied.values())))


def _commands(stream: str, mark: str, retry: str, producers: str, workers: str) -> list[tuple[Any, ...]]:
    return [
        ("TIME",),
        ("EXISTS", stream),
        ("TYPE", stream),
        ("XGROUP", "CREATE", stream, _GROUP, "0", "MKSTREAM"),
        ("XADD", stream, "*", "id", "e"),
        ("XREADGROUP", "GROUP", _GROUP, "c", "COUNT", 1, "STREAMS", stream, ">"),
        ("XAUTOCLAIM", stream, _GROUP, "c", _SOON_MS, "0"),
        ("XPENDING", stream, _GROUP),
        ("XACK", stream, _GROUP, "0-1"),
        ("XDEL", stream, "0-1"),
        ("XLEN", stream),
        ("XRANGE", stream, "-", "+", "COUNT", 1),
        ("XREVRANGE", stream, "+", "-", "COUNT", 1),
        ("XINFO", "GROUPS", stream),
        ("XGROUP", "DESTROY", stream, _GROUP),
        ("SET", mark, "d", "PX", _SOON_MS),
        ("GET", mark),
        ("MGET", mark),
        ("PEXPIRE", mark, _SOON_MS),
        ("PERSIST", mark),
        ("ZADD", retry, 1, "e"),
        ("ZCARD", retry),
        ("ZRANGEBYSCORE", retry, 0, 0),
        ("HSETNX", producers, "p", "1"),
        ("HGET", producers, "p"),
        ("HMGET", producers, "p"),
        ("HSET", workers, "w", "1"),
        ("HGETALL", workers),
        ("HDEL", workers, "w"),
        ("EVALSHA", "0" * 40, 1, stream),
        ("EVAL", "return 1", 1, stream),
    ]


async def _denied(redis: RedisDoor, command: tuple[Any, ...]) -> Exception | None:
    """Why the user may not send this, None if it may."""
    try:
        await redis.execute(*command)
    except NoScriptError:
        return None
    except CLIENT_ERRORS as error:
        if classify(error) is ErrorClass.CONFIG:
            return error
        if "NOGROUP" in str(error):  # the command that makes the group is what is denied
            return None
        raise
    return None


def _refusal(redis: RedisDoor, commands: list[str], error: Exception) -> RedisUnavailable:
    return RedisUnavailable(
        f"Redis at {redact(redis.settings.url)} denies its user {', '.join(commands)} ({error}); a worker needs that. "
        f"Grant it for the keys of this command (ACL SETUSER <user> ~*{SCRATCH}* and + each of these), or name another "
        "user in --redis"
    )
