"""Looks at what lies in Redis after a run: what is wrong with the result, as texts; an empty list when it is right."""

from __future__ import annotations

from streamlib.keys import StreamKeys
from streamlib.redisio.connection import RedisDoor

_CHUNK = 500


async def wrong(redis: RedisDoor, stream: StreamKeys, group: str, *, handled: int, total: int) -> list[str]:
    """Whether `total` different events are stored, each was handled once, acknowledged and marked as done."""
    ids, unmarked = await _looked_through(redis, stream, group)
    pending = [(await redis.execute("XPENDING", one, group))[0] for one in (stream.stream, stream.again(group))]
    found = {
        "handled": (handled, total),
        "events in the stream": (len(ids), total),
        "different event ids": (len(set(ids)), total),
        "pending": (sum(pending), 0),
        "unread": (await _unread(redis, stream, group), 0),
        "retrying": (await redis.execute("ZCARD", stream.retry(group)), 0),
        "dead letters": (await redis.execute("XLEN", stream.dead(group)), 0),
        "without a done mark": (unmarked, 0),
    }
    return [f"{what}: {one:,}, expected {other:,}" for what, (one, other) in found.items() if one != other]


async def _looked_through(redis: RedisDoor, stream: StreamKeys, group: str) -> tuple[list[str], int]:
    """The event ids of the stream, and how many of them carry no done mark."""
    ids: list[str] = []
    unmarked, after = 0, "-"
    while entries := await redis.execute("XRANGE", stream.stream, after, "+", "COUNT", _CHUNK):
        some = [fields[1].decode() for _, fields in entries]
        marks = await redis.execute("MGET", *stream.idems(group, some))
        unmarked += sum(mark != b"d" for mark in marks)
        ids += some
        after = "(" + entries[-1][0].decode()
    return ids, unmarked


async def _unread(redis: RedisDoor, stream: StreamKeys, group: str) -> int:
    """Entries behind the last one that was delivered, up to a chunk."""
    reply = await redis.execute("XINFO", "GROUPS", stream.stream)
    rows = [dict(zip(row[::2], row[1::2], strict=True)) for row in reply]
    (last,) = [row[b"last-delivered-id"].decode() for row in rows if row[b"name"] == group.encode()]
    return len(await redis.execute("XRANGE", stream.stream, f"({last}", "+", "COUNT", _CHUNK))
