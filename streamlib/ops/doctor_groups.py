"""What endangers events in groups: nobody handles them, they died lately, retention waits for a stranger."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct

from streamlib.keys import Keys, StreamKeys
from streamlib.message import entry_time_ms
from streamlib.ops.findings import Code, Diagnosis, Severity
from streamlib.ops.inspect import GroupInfo, inspect
from streamlib.ops.places import Place, partitions_of, places
from streamlib.ops.workers import live_ms
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.group_keys import groups_on
from streamlib.redisio.indexes import GENERATION
from streamlib.redisio.members import members
from streamlib.redisio.registry import groups_of

LATELY_S = 3_600
MOST_COUNTED = 1_000
"""Entries with nobody to reclaim them are counted so far on each stream."""
_AT_ONCE = 16


class GroupFacts(Struct, frozen=True, kw_only=True):
    """One declared group. `stuck` are entries that were delivered, and that nobody renewed for a lease;
    `newest_dead_s` is the age of the newest dead letter, None without any."""

    topic: str
    info: GroupInfo
    workers: int
    stuck: int
    newest_dead_s: float | None
    lease_s: float

    @property
    def where(self) -> str:
        return f"group {self.info.group} of {self.topic}"

    @property
    def alive(self) -> bool:
        """Whether anybody works on it; a process that rebuilds a view is no worker, and an owner."""
        return bool(self.workers or self.info.owners)

    @property
    def waiting(self) -> int:
        """Events that no worker has at hand."""
        return self.info.backlog - self.info.pending


class Stranger(Struct, frozen=True):
    """A consumer group on a topic's streams that no app declared."""

    topic: str
    group: str
    streams: list[str]


async def live_groups(redis: RedisDoor, keys: Keys, lease_ms: int) -> Counter[str]:
    """ "<topic>:<group>" -> how many live workers run it. Raises what the client raises."""
    seen = await members(redis, keys, live_ms(lease_ms))
    return Counter(name for one in seen for name in one.member.groups)


async def look_at_groups(
    redis: RedisDoor, keys: Keys, topic: str, live: Mapping[str, int], lease_ms: int
) -> list[GroupFacts]:
    """Every declared group of a topic. Raises what the client raises."""
    [about] = await inspect(redis, keys, topic)
    there = await places(redis, keys, topic)
    facts = []
    for group in about.groups:
        own = [place for place in there if place.group == group.group]
        facts.append(
            GroupFacts(
                topic=topic,
                info=group,
                workers=live.get(f"{topic}:{group.group}", 0),
                stuck=await _stuck(redis, own, lease_ms) if group.pending or group.retrying else 0,
                newest_dead_s=await _newest_dead_s(redis, own) if group.dead else None,
                lease_s=lease_ms / 1000,
            )
        )
    return facts


async def strangers(redis: RedisDoor, keys: Keys, topic: str) -> list[Stranger]:
    """Consumer groups on a topic's streams that no app declared. Raises what the client raises."""
    declared = await groups_of(redis, keys, topic)
    streams = [place.stream for place in await partitions_of(redis, keys, topic)]
    found: dict[str, list[str]] = {}
    for start in range(0, len(streams), _AT_ONCE):
        some = streams[start : start + _AT_ONCE]
        for stream, groups in zip(some, await asyncio.gather(*(groups_on(redis, s) for s in some)), strict=True):
            for group in groups - declared.keys():
                found.setdefault(group, []).append(stream)
    return [Stranger(topic, group, on) for group, on in sorted(found.items())]


def check_group(facts: GroupFacts) -> list[Diagnosis]:
    """Every finding about one group."""
    return [found for check in _CHECKS for found in check(facts)]


def stuck_pending(facts: GroupFacts) -> list[Diagnosis]:
    """With a live worker they are reclaimed."""
    if facts.alive or not facts.stuck:
        return []
    more = " or more" if facts.stuck >= MOST_COUNTED else ""
    what = f"{facts.stuck}{more} events were delivered and never finished, and no live worker runs the group"
    why = "nobody reclaims them: they are not lost, and not handled"
    return [_found("stuck_pending", "danger", facts, what, why, _start(facts))]


def dead_group(facts: GroupFacts) -> list[Diagnosis]:
    """A group without workers whose events wait for longer than a restart of its workers may take."""
    late = facts.info.oldest_undelivered_seconds > facts.lease_s or facts.info.retrying
    if facts.alive or not facts.waiting or not late:
        return []
    what = (
        f"{facts.waiting} events wait, the oldest for {_lasting(facts.info.oldest_seconds)}, and no live worker runs it"
    )
    why = "nobody handles them, and the topic keeps every event for it until limits.topic_len or memory is full"
    return [_found("dead_group", "danger", facts, what, why, _start(facts))]


def paused(facts: GroupFacts) -> list[Diagnosis]:
    if not facts.info.paused or not facts.info.backlog:
        return []
    what = f"it is paused, and {facts.info.backlog} events wait"
    why = "the topic keeps every event for it until limits.topic_len or memory is full"
    resume = f"streamlib groups resume {facts.topic} {facts.info.group}"
    return [_found("paused_group", "warning", facts, what, why, resume)]


def halted_keys(facts: GroupFacts) -> list[Diagnosis]:
    if not facts.info.halted_keys:
        return []
    what = f"{facts.info.halted_keys} keys are halted"
    why = "their events wait until somebody decides"
    advice = f"streamlib keys ls {facts.topic} {facts.info.group}, then keys resume or keys skip"
    return [_found("halted_keys", "warning", facts, what, why, advice)]


def dead_letters(facts: GroupFacts) -> list[Diagnosis]:
    if facts.newest_dead_s is None or facts.newest_dead_s > LATELY_S:
        return []
    what = f"{facts.info.dead} dead letters, the newest of {_lasting(facts.newest_dead_s)} ago"
    why = "these events were given up, and more come; they are kept until somebody replays or purges them"
    advice = f"streamlib dlq groups --topic {facts.topic} --group {facts.info.group}, mend the cause, then dlq replay"
    return [_found("dead_letters_growing", "warning", facts, what, why, advice)]


def check_stranger(stranger: Stranger) -> Diagnosis:
    streams = ", ".join(stranger.streams[:3]) + (", ..." if len(stranger.streams) > 3 else "")
    return Diagnosis(
        code="unregistered_group",
        severity="warning",
        where=f"group {stranger.group} of {stranger.topic}",
        what=f"it is on {streams}, and no app declared it",
        why="retention keeps every event until it has read and acknowledged it",
        advice=f"declare it, or remove it: XGROUP DESTROY {stranger.streams[0]} {stranger.group}",
    )


_CHECKS: tuple[Callable[[GroupFacts], list[Diagnosis]], ...] = (
    stuck_pending, dead_group, paused, halted_keys, dead_letters,
)  # fmt: skip


async def _stuck(redis: RedisDoor, own: Sequence[Place], lease_ms: int) -> int:
    streams = [
        (stream, place.group)
        for place in own
        if place.kind != "projection"
        for stream in (place.keys.stream, place.keys.again(place.group))
    ]
    counted = 0
    for stream, group in streams:
        if group in await groups_on(redis, stream):
            counted += len(await redis.execute("XPENDING", stream, group, "IDLE", lease_ms, "-", "+", MOST_COUNTED))
    return counted


async def _newest_dead_s(redis: RedisDoor, own: Sequence[Place]) -> float | None:
    now_s = int((await redis.execute("TIME"))[0])
    newest = [await _newest_ms(redis, place.keys, place.group) for place in own]
    found = [ms for ms in newest if ms is not None]
    return max(now_s - max(found) / 1000, 0.0) if found else None


async def _newest_ms(redis: RedisDoor, keys: StreamKeys, group: str) -> int | None:
    found = await redis.execute("XREVRANGE", keys.dead(group), "+", "-", "COUNT", 1)
    return entry_time_ms(found[0][0].decode()) if found else None


def _start(facts: GroupFacts) -> str:
    run, view = "start its workers (streamlib run APP)", GENERATION.sub("", facts.info.group)
    if facts.info.kind == "projection" and view != facts.info.group:
        return f"{run}, or go on with the rebuild: streamlib rebuild APP {view}, or end it with --abandon or --drop"
    remove = f"streamlib groups rm {facts.topic} {facts.info.group}"
    return f"{run}, or remove it, with an archive of what it owes: {remove}"


def _lasting(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes} min" if minutes < 120 else f"{minutes // 60} h"


def _found(code: Code, severity: Severity, facts: GroupFacts, what: str, why: str, advice: str) -> Diagnosis:
    return Diagnosis(code=code, severity=severity, where=facts.where, what=what, why=why, advice=advice)
