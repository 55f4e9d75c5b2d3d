"""Finds topics, groups and partitions by the names a person gives, and says what there is when they are not there."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from streamlib.errors import NotFound
from streamlib.keys import Keys, StreamKeys
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.registry import groups_of, topics


class Place(Struct, frozen=True):
    """One group on one partition of its topic."""

    topic: str
    partition: int
    group: str
    kind: str
    keys: StreamKeys


async def places(
    redis: RedisDoor, keys: Keys, topic: str | None = None, group: str | None = None, partition: int | None = None
) -> list[Place]:
    """Every declared group on every partition, as far as they are wanted. Raises NotFound for a name that is none."""
    known = await topics(redis, keys)
    if topic is not None and topic not in known:
        raise NotFound(f"no topic {topic!r} in this Redis; there {_are(known)}")
    names = [topic] if topic is not None else sorted(known)
    where = f"topic {topic!r}" if topic is not None else "any topic"
    if partition is not None and not any(partition < known[name] for name in names):
        most = max((known[name] for name in names), default=0)
        last = f"the last is {most - 1}" if most else "there are none"
        raise NotFound(f"no partition {partition} of {where}; {last}")
    kinds = {name: await groups_of(redis, keys, name) for name in names}
    if group is not None and not any(group in groups for groups in kinds.values()):
        there = {name for found in kinds.values() for name in found}
        raise NotFound(f"no group {group!r} of {where}; there {_are(there)}")
    return [
        Place(name, number, one, kind, keys.stream(name, number, known[name]))
        for name in names
        for one, kind in sorted(kinds[name].items())
        if group in (None, one)
        for number in range(known[name])
        if partition in (None, number)
    ]


async def partitions_of(redis: RedisDoor, keys: Keys, topic: str) -> list[StreamKeys]:
    """The partitions of a declared topic. Raises NotFound."""
    known = await topics(redis, keys)
    if topic not in known:
        raise NotFound(f"no topic {topic!r} in this Redis; there {_are(known)}")
    return [keys.stream(topic, number, known[topic]) for number in range(known[topic])]


def _are(names: Iterable[str]) -> str:
    there = sorted(names)
    return f"are {', '.join(there)}" if there else "are none"
