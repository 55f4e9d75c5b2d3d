"""Removes consumers that are gone, only with nothing pending."""

from __future__ import annotations

from streamlib.redisio.scripts import Executes, Script

_remove = Script("remove_consumer")


async def remove_idle(redis: Executes, stream: str, group: str, idle_ms: int) -> int:
    """Remove the consumers of a group that were not seen for `idle_ms`; how many. Safe to send twice."""
    removed: int = await _remove.run(redis, [stream], [group, "", idle_ms])
    return removed


async def remove(redis: Executes, stream: str, group: str, consumer: str) -> bool:
    """Remove one consumer now; False if it has something pending or is not there."""
    removed: int = await _remove.run(redis, [stream], [group, consumer, 0])
    return removed == 1
