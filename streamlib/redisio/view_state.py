"""Where a view stands: its live generation and checkpoint, and the stream it is made from."""

from __future__ import annotations

from msgspec import Struct

from streamlib.codec import Fields
from streamlib.keys import Keys
from streamlib.redisio.indexes import ViewKeys
from streamlib.redisio.scripts import Executes

ROLLED_BACK = "source_rolled_back"
START = "0-0"
FIRST = 1


class ViewHead(Struct, frozen=True):
    """The last entry that the view contains, "0-0" before the first, and why it must not go on, if so."""

    checkpoint: str
    halted: str


async def live_generation(redis: Executes, keys: Keys, topic: str, view: str) -> int:
    """The generation that readers see."""
    return int(await redis.execute("HGET", keys.views(), f"{topic}:{view}") or FIRST)


async def declare_view(redis: Executes, keys: Keys, topic: str, view: str) -> None:
    """Register the view; a generation that was chosen before stays. Safe to send twice."""
    await redis.execute("HSETNX", keys.views(), f"{topic}:{view}", FIRST)


async def view_head(redis: Executes, keys: ViewKeys) -> ViewHead:
    checkpoint, halted = await redis.execute("HMGET", keys.head, "checkpoint", "halted")
    return ViewHead((checkpoint or START.encode()).decode(), (halted or b"").decode())


async def mark_halted(redis: Executes, keys: ViewKeys) -> None:
    """Keep every worker from going on with a view that contains events its stream has lost."""
    await redis.execute("HSET", keys.head, "halted", ROLLED_BACK)


async def read_entries(redis: Executes, stream: str, after: str, count: int, block_ms: int) -> list[tuple[str, Fields]]:
    """The entries behind `after`, waiting up to `block_ms` for the first."""
    reply = await redis.execute("XREAD", "COUNT", count, "BLOCK", block_ms, "STREAMS", stream, after)
    return [(entry_id.decode(), fields) for entry_id, fields in reply[0][1]] if reply else []
