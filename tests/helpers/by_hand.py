"""Streams read without a worker: by the loop that is written by hand, and by the reads of what is too large."""

import asyncio

from streamlib.keys import StreamKeys
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.large_entries import Entry, Room
from streamlib.redisio.load import RawLoop
from streamlib.redisio.scripts import Script
from tests.helpers.waiting import eventually

GROUP = "by-hand"


async def read_by_hand(redis: RedisDoor, stream: StreamKeys) -> list[bytes]:
    """The data of every event that a new group was given, once all are acknowledged."""
    handled: list[bytes] = []

    async def handle(data: bytes) -> None:
        handled.append(data)

    async def is_done() -> bool:
        stored = await redis.execute("XLEN", stream.stream)
        return len(handled) >= stored and not (await redis.execute("XPENDING", stream.stream, GROUP))[0]

    await redis.execute("XGROUP", "CREATE", stream.stream, GROUP, "0")
    loop = RawLoop(redis, stream, GROUP, lease_ms=30_000, window_ms=60_000)
    running = asyncio.create_task(loop.run(bytes, handle))
    try:
        await eventually(is_done)
    finally:
        running.cancel()
        await asyncio.wait({running})
    return handled


async def read_bounded(redis: RedisDoor, stream: str) -> list[Entry]:
    """The entries of a stream, read as after a reply that was lost for its size."""
    room = Room()
    room.failed(ConnectionError("closed by the server"))
    assert room.bounded
    told = await Script("stream_facts", reads_only=True).run(redis, [stream], [])
    assert dict(zip(told[::2], told[1::2], strict=True))[b"first-entry"][1] == []
    return await room.entries_after(redis, stream, "0-0", 1_000)
