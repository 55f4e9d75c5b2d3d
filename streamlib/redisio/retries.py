"""Moves due retries into the stream that the group reads."""

from __future__ import annotations

from streamlib.keys import StreamKeys
from streamlib.redisio.scripts import Executes, Script

_promote = Script("promote")
BATCH = 100


async def promote(redis: Executes, keys: StreamKeys, group: str) -> tuple[int, int]:
    """The number of events moved and the ms until the next is due (0: now, -1: none waits). Safe to send twice."""
    moved, next_ms = await _promote.run(redis, [keys.retry(group), keys.retry_body(group), keys.again(group)], [BATCH])
    return moved, next_ms
