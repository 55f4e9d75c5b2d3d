"""Retention: trims by age and length, never past what a group still needs, and forgets idle producers."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from streamlib.keys import Keys, StreamKeys
from streamlib.message import entry_before
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.failures import CLIENT_ERRORS
from streamlib.redisio.registry import groups_of, remember_position
from streamlib.redisio.scripts import Arg, Script
from streamlib.settings import RetentionSettings
from streamlib.topic import TopicSpec

_trim = Script("trim")
_prune = Script("prune_producers")

AT_ONCE = 10_000
"""Entries per script: the server answers nobody else meanwhile."""

PRODUCER_IDLE_MS = 2 * 3_600_000
"""Twice the longest `redis.retry_s`: a producer that may still send its last batch again is known."""


class PartitionTrim(Struct, frozen=True):
    """What became of one partition.

    `blocked_by` names the group that still needs entries which are due, "" if none does. `positions` has, for
    every group that exists, the id up to which it is done.
    """

    partition: int
    trimmed: int
    blocked_by: str
    positions: dict[str, str]


class TrimResult(Struct, frozen=True):
    """What became of one topic."""

    partitions: tuple[PartitionTrim, ...]
    producers_forgotten: int

    @property
    def trimmed(self) -> int:
        return sum(part.trimmed for part in self.partitions)

    @property
    def blocked_by(self) -> frozenset[str]:
        """The groups that hold back what is due."""
        return frozenset(part.blocked_by for part in self.partitions if part.blocked_by)


async def trim_once(redis: RedisDoor, keys: Keys, topic: TopicSpec, retention: RetentionSettings) -> TrimResult:
    """Trim every partition of the topic, remember where its groups are, forget idle producers.

    An entry goes when it is older than `max_age_s` or beyond the newest `max_len`, and every declared or
    existing group has finished it. Safe to send twice; raises what the client raises, once all partitions that
    answer have had their turn.
    """
    declared = sorted(await groups_of(redis, keys, topic.name))
    parts: list[PartitionTrim] = []
    errors: list[Exception] = []
    forgotten = 0
    for partition in range(topic.partitions):
        names = keys.stream(topic.name, partition, topic.partitions)
        try:
            parts.append(await _trim_partition(redis, names, partition, retention, declared))
            for group, position in parts[-1].positions.items():
                if group in declared:
                    await remember_position(redis, keys, topic.name, group, partition, position)
            forgotten += await _forget_producers(redis, names)
        except CLIENT_ERRORS as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return TrimResult(tuple(parts), forgotten)


async def _trim_partition(
    redis: RedisDoor, names: StreamKeys, partition: int, retention: RetentionSettings, declared: list[str]
) -> PartitionTrim:
    args: list[Arg] = [int(retention.max_age_s * 1000), retention.max_len, AT_ONCE, *declared]
    trimmed, more = 0, True
    reply: list[Any] = []
    while more:
        reply = await _trim.run(redis, [names.stream], args)
        trimmed += reply[0]
        more = bool(reply[1])
    rows = [part.decode() for part in reply[3:]]
    positions = {
        group: entry_before(pending) if pending else delivered
        for group, delivered, pending in zip(rows[::3], rows[1::3], rows[2::3], strict=True)
    }
    return PartitionTrim(partition, trimmed, reply[2].decode(), positions)


async def _forget_producers(redis: RedisDoor, names: StreamKeys) -> int:
    forgotten, cursor = 0, b"0"
    while True:
        cursor, count = await _prune.run(redis, [names.producers()], [cursor, PRODUCER_IDLE_MS])
        forgotten += int(count)
        if cursor == b"0":
            return forgotten
