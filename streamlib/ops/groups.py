"""Groups as an operator sees them: list, create, pause, resume."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from streamlib.errors import NotFound, Refused
from streamlib.keys import Keys, check_name
from streamlib.message import entry_before, entry_order, entry_time_ms
from streamlib.ops.inspect import inspect
from streamlib.ops.places import places
from streamlib.ops.workers import live_ms
from streamlib.redisio import pauses
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.group_keys import groups_on
from streamlib.redisio.members import members
from streamlib.redisio.registry import GroupKind, create_group, groups_of, last_id, topics

BEGIN, END = "begin", "end"
_FIRST = "0-0"

Change = Literal["pause", "resume"]


class GroupRow(Struct, frozen=True, kw_only=True):
    """One declared group, and the ids of the live workers that run it."""

    topic: str
    group: str
    kind: str
    paused: bool
    workers: list[str]
    lag: int | None
    pending: int
    retrying: int
    dead: int
    halted_keys: int


async def rows(redis: RedisDoor, keys: Keys, topic: str | None, lease_ms: int) -> list[GroupRow]:
    """Every declared group, or those of one topic, by name. Raises NotFound."""
    found = await inspect(redis, keys, topic)
    seen = await members(redis, keys, live_ms(lease_ms))
    return [
        GroupRow(
            topic=one.topic,
            group=group.group,
            kind=group.kind,
            paused=group.paused,
            workers=[s.member.worker_id for s in seen if f"{one.topic}:{group.group}" in s.member.groups],
            lag=group.lag,
            pending=group.pending,
            retrying=group.retrying,
            dead=group.dead,
            halted_keys=group.halted_keys,
        )
        for one in found
        for group in one.groups
    ]


async def create(redis: RedisDoor, keys: Keys, topic: str, group: str, kind: GroupKind, begin_at: str) -> list[str]:
    """Declare a group before any worker runs it; the ids behind which it begins, one for each partition.

    `begin_at` is "begin", "end" or the id of the first entry it gets. Raises NotFound, DeclarationError, and Refused
    for a group that exists or a view that should begin in the middle.
    """
    check_name("group", group)
    known = await topics(redis, keys)
    if topic not in known:
        raise NotFound(f"no topic {topic!r} in this Redis; it has: {', '.join(sorted(known)) or 'none'}")
    kinds = await groups_of(redis, keys, topic)
    if group in kinds:
        raise Refused(f"group {group!r} of topic {topic!r} exists (kind {kinds[group]!r}); nothing was changed")
    if kind == "projection" and begin_at != BEGIN:
        raise Refused(f"projection {group!r} can only begin with the first entry: rows are made of all events")
    streams = [keys.stream(topic, number, known[topic]).stream for number in range(known[topic])]
    for stream in streams:
        if group in await groups_on(redis, stream):
            raise Refused(
                f"stream {stream!r} has a consumer group {group!r} that streamlib did not make; choose another name, "
                f"or remove it: XGROUP DESTROY {stream} {group}"
            )
    positions = await _positions(redis, streams, begin_at)
    await create_group(redis, keys, topic, group, kind, positions)
    return positions


async def change(redis: RedisDoor, keys: Keys, topic: str, group: str, act: Change) -> bool:
    """Pause or resume a declared group; False if it was so before. Safe to repeat. Raises NotFound."""
    await places(redis, keys, topic, group)
    done = pauses.pause if act == "pause" else pauses.resume
    return await done(redis, keys, topic, group)


async def _positions(redis: RedisDoor, streams: list[str], begin_at: str) -> list[str]:
    if begin_at == BEGIN:
        return [_FIRST] * len(streams)
    ends = [await last_id(redis, stream) for stream in streams]
    if begin_at == END:
        return ends
    server_ms = int((await redis.execute("TIME"))[0]) * 1000 + 999
    newest = max(ends, key=entry_order)
    if entry_order(begin_at) > entry_order(newest) and entry_time_ms(begin_at) > server_ms:
        raise NotFound(
            f"there is no entry {begin_at} yet, the newest is {newest}; --from end begins with what comes next"
        )
    # Behind the last entry is the end: a position that a stream has not reached is not kept.
    return [min(entry_before(begin_at), end, key=entry_order) for end in ends]
