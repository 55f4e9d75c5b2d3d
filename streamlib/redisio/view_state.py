"""Where a view stands: its live generation and checkpoint, and the stream it is made from."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from streamlib.codec import Fields
from streamlib.keys import Keys
from streamlib.redisio.connection import CLIENT_ERRORS
from streamlib.redisio.indexes import ViewKeys
from streamlib.redisio.scripts import Executes

ROLLED_BACK = "source_rolled_back"
START = "0-0"


class ViewHead(Struct, frozen=True):
    """The last entry that the view contains, "0-0" before the first, and why it must not go on, if so."""

    checkpoint: str
    halted: str


async def live_generation(redis: Executes, keys: Keys, topic: str, view: str) -> int:
    """The generation that readers see; whoever asks first makes it 1."""
    field = f"{topic}:{view}"
    found = await redis.execute("HGET", keys.views(), field)
    if found is None:
        await redis.execute("HSETNX", keys.views(), field, 1)
        found = await redis.execute("HGET", keys.views(), field)
    return int(found or 1)


async def view_head(redis: Executes, keys: ViewKeys) -> ViewHead:
    checkpoint, halted = await redis.execute("HMGET", keys.head, "checkpoint", "halted")
    return ViewHead((checkpoint or START.encode()).decode(), (halted or b"").decode())


async def mark_halted(redis: Executes, keys: ViewKeys) -> None:
    """Keep every worker from going on with a view that contains events its stream has lost."""
    await redis.execute("HSET", keys.head, "halted", ROLLED_BACK)


async def last_entry_id(redis: Executes, stream: str) -> str:
    """The last id that the stream ever gave, "0-0" when there is no stream."""
    try:
        info = await redis.execute("XINFO", "STREAM", stream)
    except CLIENT_ERRORS as error:
        if "no such key" in str(error):
            return START
        raise
    named = dict(zip(info[::2], info[1::2], strict=True))
    last: bytes = named[b"last-generated-id"]
    return last.decode()


async def handled_types(redis: Executes, keys: Keys, topic: str, group: str) -> frozenset[str]:
    """The types that any worker of the group has registered."""
    raw = await redis.execute("HGET", keys.group(topic, group), "types")
    return frozenset(msgspec.json.decode(raw, type=list[str])) if raw else frozenset()


async def read_entries(redis: Executes, stream: str, after: str, count: int, block_ms: int) -> list[tuple[str, Fields]]:
    """The entries behind `after`, waiting up to `block_ms` for the first."""
    reply = await redis.execute("XREAD", "COUNT", count, "BLOCK", block_ms, "STREAMS", stream, after)
    return [(entry_id.decode(), fields) for entry_id, fields in reply[0][1]] if reply else []
