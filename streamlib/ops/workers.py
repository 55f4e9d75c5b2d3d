"""The workers that live: what each runs, and the partitions that it owns."""

from __future__ import annotations

import asyncio
from collections import defaultdict

from msgspec import Struct

from streamlib.keys import Keys
from streamlib.ops.places import Place, places
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.members import Member, Seen, members
from streamlib.redisio.ownership import owner_of

_AT_ONCE = 16


class Work(Struct, frozen=True, kw_only=True):
    """One group that a worker runs. `partitions` are those it owns, `refused` those it cannot serve now; None for a
    handler group, whose partitions all its workers share, and for a group that is not declared (any more)."""

    topic: str
    group: str
    kind: str | None
    partitions: list[int] | None
    refused: list[int] | None


class LiveWorker(Struct, frozen=True, kw_only=True):
    """A worker process, as it told of itself at its last beat."""

    worker: str
    host: str
    pid: int
    since_ms: int
    last_beat_seconds: float
    groups: list[Work]


def live_ms(lease_ms: int) -> int:
    """Whoever was silent for so long is no live worker: as long as the workers themselves wait for each other."""
    return lease_ms * 3 // 4


async def workers_of(redis: RedisDoor, keys: Keys, topic: str, group: str, lease_ms: int) -> list[Member]:
    """The live workers that run this group. Raises what the client raises."""
    seen = await members(redis, keys, live_ms(lease_ms))
    return [one.member for one in seen if f"{topic}:{group}" in one.member.groups]


async def live_workers(redis: RedisDoor, keys: Keys, lease_ms: int) -> list[LiveWorker]:
    """Everybody who beat lately, by worker id. Raises what the client raises."""
    seen = await members(redis, keys, live_ms(lease_ms))
    run = {name for one in seen for name in one.member.groups}
    kinds: dict[str, str] = {}
    exclusive: list[Place] = []
    for place in await places(redis, keys):
        name = f"{place.topic}:{place.group}"
        kinds[name] = place.kind
        if name in run and place.kind != "handler":
            exclusive.append(place)
    owned = await _owned(redis, exclusive)
    return [_live_worker(one, kinds, owned) for one in seen]


async def _owned(redis: RedisDoor, exclusive: list[Place]) -> dict[tuple[str, str], list[int]]:
    """(worker id, "<topic>:<group>") -> the partitions that it owns."""
    server_s, server_us = await redis.execute("TIME")
    now_ms = int(server_s) * 1000 + int(server_us) // 1000
    owned = defaultdict[tuple[str, str], list[int]](list)
    for start in range(0, len(exclusive), _AT_ONCE):
        some = exclusive[start : start + _AT_ONCE]
        owners = await asyncio.gather(*(owner_of(redis, one.keys.owner(one.group), now_ms) for one in some))
        for place, owner in zip(some, owners, strict=True):
            if owner is not None:
                owned[owner, f"{place.topic}:{place.group}"].append(place.partition)
    return owned


def _live_worker(seen: Seen, kinds: dict[str, str], owned: dict[tuple[str, str], list[int]]) -> LiveWorker:
    member = seen.member
    return LiveWorker(
        worker=member.worker_id,
        host=member.host,
        pid=member.pid,
        since_ms=member.started_ms,
        last_beat_seconds=seen.ago_ms / 1000,
        groups=[
            _work(name, kinds.get(name), owned.get((member.worker_id, name), []), refused)
            for name, refused in sorted(member.groups.items())
        ],
    )


def _work(name: str, kind: str | None, owned: list[int], refused: list[int]) -> Work:
    topic, _, group = name.partition(":")
    shared = kind in (None, "handler")
    return Work(
        topic=topic,
        group=group,
        kind=kind,
        partitions=None if shared else owned,
        refused=None if shared else refused,
    )
