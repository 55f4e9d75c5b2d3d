"""The pause flag of a group: one field in its registry hash, asked by every worker that runs it."""

from __future__ import annotations

from streamlib.keys import Keys
from streamlib.redisio.scripts import Executes

_FIELD = "paused"


async def pause(redis: Executes, keys: Keys, topic: str, group: str) -> bool:
    """Ask the group's workers to take nothing new; False if it was paused. Safe to send twice."""
    added: int = await redis.execute("HSET", keys.group(topic, group), _FIELD, "1")
    return added == 1


async def resume(redis: Executes, keys: Keys, topic: str, group: str) -> bool:
    """Let the group's workers go on; False if it was not paused. Safe to send twice."""
    removed: int = await redis.execute("HDEL", keys.group(topic, group), _FIELD)
    return removed == 1


async def is_paused(redis: Executes, keys: Keys, topic: str, group: str) -> bool:
    stored: bytes | None = await redis.execute("HGET", keys.group(topic, group), _FIELD)
    return stored == b"1"
