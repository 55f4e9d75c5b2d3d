"""Where a generation of a view stands: its checkpoint, and the stream it is made from."""

from __future__ import annotations

from msgspec import Struct

from streamlib.codec import Fields
from streamlib.redisio.failures import CLIENT_ERRORS
from streamlib.redisio.indexes import ViewKeys
from streamlib.redisio.large_entries import Room, stream_facts
from streamlib.redisio.scripts import Executes

ROLLED_BACK = "source_rolled_back"
START = "0-0"


class ViewHead(Struct, frozen=True):
    """The last entry that the view contains, "0-0" before the first, and why it must not go on, if so."""

    checkpoint: str
    halted: str


async def view_head(redis: Executes, keys: ViewKeys) -> ViewHead:
    checkpoint, halted = await redis.execute("HMGET", keys.head, "checkpoint", "halted")
    return ViewHead((checkpoint or START.encode()).decode(), (halted or b"").decode())


async def entries_read(redis: Executes, keys: ViewKeys) -> int:
    """How many entries of the stream the generation has behind it."""
    return int(await redis.execute("HGET", keys.head, "read") or 0)


class Extent(Struct, frozen=True):
    """How many entries a stream holds of all that were ever added, and the last one's id."""

    length: int
    added: int
    last: str


async def extent_of(redis: Executes, stream: str) -> Extent:
    if not await redis.execute("EXISTS", stream):
        return Extent(0, 0, START)
    info = await stream_facts(redis, stream)
    return Extent(info[b"length"], info[b"entries-added"], info[b"last-generated-id"].decode())


async def mark_halted(redis: Executes, keys: ViewKeys) -> None:
    """Keep every worker from going on with a view that contains events its stream has lost."""
    await redis.execute("HSET", keys.head, "halted", ROLLED_BACK)


async def read_entries(
    redis: Executes, stream: str, after: str, count: int, block_ms: int | None, room: Room
) -> list[tuple[str, Fields]]:
    """The entries behind `after`, at most `count` and what there is `room` for, waiting up to `block_ms` for the first;
    None does not wait."""
    if room.bounded and (some := await room.entries_after(redis, stream, after, count)):
        return [(entry_id.decode(), fields) for entry_id, fields in some]
    block = [] if block_ms is None else ["BLOCK", block_ms]
    try:
        reply = await redis.execute("XREAD", "COUNT", count, *block, "STREAMS", stream, after)
    except CLIENT_ERRORS as error:
        room.failed(error)
        raise
    return [(entry_id.decode(), fields) for entry_id, fields in reply[0][1]] if reply else []
