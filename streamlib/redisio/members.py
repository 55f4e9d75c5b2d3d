"""The register of living workers: advice about who should own what, never a right to write."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from msgspec import Struct

from streamlib.keys import Keys
from streamlib.redisio.connection import SyncClient
from streamlib.redisio.scripts import Executes, Script

logger = logging.getLogger(__name__)
_beat = Script("beat")
_leave = Script("leave")
_CHANGES = "changes"
_MOST_DIGITS = 15


class Member(Struct, frozen=True, kw_only=True):
    """What a worker tells of itself. `groups`: "<topic>:<group>" -> the partitions that it cannot serve now."""

    worker_id: str
    host: str
    pid: int
    started_ms: int
    groups: dict[str, list[int]]


class Seen(Struct, frozen=True):
    """A worker and how long ago it beat, by the server's clock."""

    member: Member
    ago_ms: int


class Snapshot(Struct, frozen=True):
    """Who lived at one moment, the asker included; `changes` counts arrivals, departures and news."""

    seen: list[Seen]
    changes: int


async def beat(redis: Executes, keys: Keys, member: Member, live_ms: int) -> list[Seen]:
    """Say that we live; all who beat within `live_ms`, ours included. Safe to send twice."""
    return (await snapshot(redis, keys, member, live_ms)).seen


async def snapshot(redis: Executes, keys: Keys, member: Member, live_ms: int) -> Snapshot:
    """`beat`, with the count of changes for `changes`. Raises what the client raises."""
    now_ms, changes, flat = await _beat.run(redis, [keys.workers()], [*_told(member), live_ms])
    return Snapshot(_read(now_ms, flat), changes)


def beat_sync(redis: SyncClient, keys: Keys, member: Member, live_ms: int) -> None:
    """Say that we live, from a thread; it is not told who else does."""
    _beat.run_sync(redis, [keys.workers()], [*_told(member), live_ms])


async def changes(redis: Executes, keys: Keys) -> int:
    """How often workers came, went or told something new: asked between beats. Raises what the client raises."""
    told: bytes = await redis.execute("HGET", keys.workers(), _CHANGES) or b""
    return int(told) if told.isdigit() and len(told) <= _MOST_DIGITS else 0  # as beat.lua reads it


async def leave(redis: Executes, keys: Keys, worker_id: str) -> None:
    """Be no member any more, and let the others know. Safe to send twice; raises what the client raises."""
    await _leave.run(redis, [keys.workers()], [worker_id])


async def members(redis: Executes, keys: Keys, live_ms: int) -> list[Seen]:
    """All who beat within `live_ms`, by worker id; writes nothing. Raises what the client raises."""
    server_s, server_us = await redis.execute("TIME")
    now_ms = int(server_s) * 1000 + int(server_us) // 1000
    flat = await redis.execute("HGETALL", keys.workers())
    return [seen for seen in _read(now_ms, flat) if seen.ago_ms <= live_ms]


def _told(member: Member) -> tuple[str, bytes]:
    return member.worker_id, msgspec.json.encode(member)


def _read(now_ms: int, flat: list[Any]) -> list[Seen]:
    found = []
    for worker_id, value in zip(flat[::2], flat[1::2], strict=True):
        if worker_id == _CHANGES.encode():
            continue
        beat_ms, _, told = value.partition(b" ")
        try:
            member = msgspec.json.decode(told, type=Member)
            if member.worker_id.encode() != worker_id:
                raise ValueError(f"it speaks for worker {member.worker_id!r}")
            found.append(Seen(member, max(now_ms - int(beat_ms), 0)))
        except (msgspec.DecodeError, ValueError) as error:  # another version's, or nobody's: it takes no share
            logger.warning("member_not_read", extra={"worker": worker_id, "error": str(error)})
    return sorted(found, key=lambda seen: seen.member.worker_id)
