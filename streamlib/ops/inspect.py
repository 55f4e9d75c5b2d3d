"""Looks at topics and groups in Redis: how much waits, how much is under way, how old the oldest is.

What one group still has to do is told in three numbers that share no entry, and `backlog` is their sum:
`lag` (entries of the topic never delivered to the group), `pending` (entries of the topic delivered and not
acknowledged) and `retrying` (events that left the topic's pending list for another run: scheduled ones, and
all that lie in the group's `again` stream, delivered or not). Each number is exact at the moment it is read;
while workers run, an event that moves between two reads may be seen in both places or in neither.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from streamlib.errors import NotFound
from streamlib.keys import Keys, StreamKeys
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.key_states import halted_count
from streamlib.redisio.large_entries import id_after, stream_facts
from streamlib.redisio.ownership import owner_of
from streamlib.redisio.pauses import is_paused
from streamlib.redisio.registry import groups_of, remembered_position, topics
from streamlib.redisio.scripts import Executes

COUNT_BOUND = 100_000
CHUNK = 1_000
CHUNK_BYTES = 4 * 1024 * 1024
PARTITIONS_AT_ONCE = 8

Id = tuple[int, int]


class Owner(Struct, frozen=True):
    """Who works on one partition alone, while its lease holds. `worker` is its id, as `streamlib ps` shows it."""

    partition: int
    worker: str


class GroupInfo(Struct, frozen=True, kw_only=True):
    """One group over all partitions of its topic. Ages are seconds of server time, 0 when there is nothing.

    `lag` is None when Redis does not know it and counting hit its bound; `backlog` then has the part counted.
    `owners` are those of a projection or an ordered group, by partition; `halted_keys` those of an ordered group that
    wait for an operator.
    """

    group: str
    kind: str
    lag: int | None
    lag_known: bool
    pending: int
    retrying: int
    dead: int
    consumers: int
    oldest_seconds: float
    oldest_pending_seconds: float
    oldest_undelivered_seconds: float
    backlog: int
    paused: bool = False
    owners: list[Owner] = []
    halted_keys: int = 0


class TopicInfo(Struct, frozen=True, kw_only=True):
    """One topic over all its partitions, or over the one asked for; `length` counts the entries that Redis holds,
    `delayed` the events that are to come later."""

    topic: str
    partitions: int
    length: int
    delayed: int = 0
    groups: list[GroupInfo]
    partition: int | None = None


class _Stream(Struct, frozen=True):
    """What XINFO says about one stream; ids are None for an empty one."""

    length: int
    first: Id | None
    last: Id
    max_deleted: Id
    groups: dict[str, dict[str, Any]]


class _Share(Struct, kw_only=True):
    """One group's part in one partition."""

    lag: int = 0
    lag_exact: bool = True
    pending: int = 0
    retrying: int = 0
    dead: int = 0
    consumers: frozenset[str] = frozenset()
    oldest_pending: Id | None = None
    oldest_undelivered: Id | None = None
    oldest_pending_again: Id | None = None
    oldest_undelivered_again: Id | None = None
    owner: Owner | None = None
    halted_keys: int = 0


async def inspect(
    redis: RedisDoor,
    keys: Keys,
    topic: str | None = None,
    *,
    partition: int | None = None,
    count_bound: int = COUNT_BOUND,
) -> list[TopicInfo]:
    """Every declared topic, or one, with its declared groups, by name; all partitions added up, or one.

    Topics that do not have that partition are left out. `count_bound` is how many entries per group and partition are
    counted one by one where Redis cannot tell the lag. Raises NotFound for a topic that is not declared or a
    partition that it does not have, and what the client raises.
    """
    known = await topics(redis, keys)
    if topic is not None and topic not in known:
        raise NotFound(f"topic {topic!r} is not declared here; declared: {', '.join(sorted(known)) or 'none'}")
    wanted = sorted(known) if topic is None else [topic]
    if topic is not None and partition is not None and partition >= known[topic]:
        raise NotFound(f"topic {topic!r} has {known[topic]} partitions, 0 to {known[topic] - 1}; not {partition}")
    return [
        await _topic(redis, keys, name, known[name], partition, count_bound)
        for name in wanted
        if partition is None or partition < known[name]
    ]


async def _topic(
    redis: RedisDoor, keys: Keys, topic: str, partitions: int, only: int | None, count_bound: int
) -> TopicInfo:
    kinds = await groups_of(redis, keys, topic)
    now_ms = await _server_ms(redis)
    length, delayed, shares = 0, 0, dict[str, list[_Share]]((group, []) for group in sorted(kinds))
    numbers = range(partitions) if only is None else [only]
    for start in range(0, len(numbers), PARTITIONS_AT_ONCE):
        found = await asyncio.gather(
            *(
                _Partition(redis, keys, topic, number, partitions, count_bound).look(kinds, now_ms)
                for number in numbers[start : start + PARTITIONS_AT_ONCE]
            )
        )
        for entries, waiting, part in found:
            length += entries
            delayed += waiting
            for group, share in part.items():
                shares[group].append(share)
    return TopicInfo(
        topic=topic,
        partitions=partitions,
        length=length,
        delayed=delayed,
        groups=[
            _sum_up(group, kinds[group], parts, now_ms, paused=await is_paused(redis, keys, topic, group))
            for group, parts in shares.items()
        ],
        partition=only,
    )


class _Partition:
    """One partition stream, seen with the eyes of each group."""

    def __init__(
        self, redis: RedisDoor, keys: Keys, topic: str, number: int, partitions: int, count_bound: int
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._topic = topic
        self._number = number
        self._names: StreamKeys = keys.stream(topic, number, partitions)
        self._count_bound = count_bound

    async def look(self, kinds: dict[str, str], now_ms: int) -> tuple[int, int, dict[str, _Share]]:
        """The stream's length, the number of delayed events, and the share of each group."""
        stream = await _stream(self._redis, self._names.stream)
        delayed = await self._redis.execute("ZCARD", self._names.later())
        shares = {group: await self._share(stream, group, kind, now_ms) for group, kind in kinds.items()}
        return stream.length, delayed, shares

    async def _share(self, stream: _Stream, group: str, kind: str, now_ms: int) -> _Share:
        share = _Share(dead=await self._redis.execute("XLEN", self._names.dead(group)))
        row = stream.groups.get(group)
        position = await self._position(stream, group, row)
        if stream.length:
            await self._undelivered(share, stream, position, row)
        if row is not None and row["pending"]:
            share.pending = row["pending"]
            share.oldest_pending = await self._oldest_pending(self._names.stream, group)
        if row is not None and row["consumers"]:
            consumers = await self._redis.execute("XINFO", "CONSUMERS", self._names.stream, group)
            share.consumers = frozenset(_text(_flat(consumer)["name"]) for consumer in consumers)
        if kind != "projection":
            await self._again(share, group)
        if kind != "handler":
            share.owner = await self._owner(group, now_ms)
        if kind == "ordered":
            share.halted_keys = await halted_count(self._redis, self._names, group)
        return share

    async def _owner(self, group: str, now_ms: int) -> Owner | None:
        worker = await owner_of(self._redis, self._names.owner(group), now_ms)
        return Owner(self._number, worker) if worker is not None else None

    async def _position(self, stream: _Stream, group: str, row: dict[str, Any] | None) -> Id:
        """Last delivered id. A lost group will go on where retention remembers it, or at the start."""
        if row is not None:
            return _id(row["last-delivered-id"])
        remembered = await remembered_position(self._redis, self._keys, self._topic, group, self._number)
        position = _id((remembered or "0").encode())
        return position if position <= stream.last else (0, 0)

    async def _undelivered(self, share: _Share, stream: _Stream, position: Id, row: dict[str, Any] | None) -> None:
        share.oldest_undelivered = await _first_after(self._redis, self._names.stream, position)
        if share.oldest_undelivered is None:
            return
        if share.oldest_undelivered == stream.first:
            share.lag = stream.length
            return
        told: int | None = row["lag"] if row is not None else None
        # Redis 7.0 tells the lag wrongly, for ever, of a group that once read past a deleted entry. (So it does
        # after a trim by hand of what a group had not read; that leaves no trace to see here.)
        if told is not None and stream.max_deleted == (0, 0) and 1 <= told <= stream.length:
            share.lag = told
            return
        share.lag, share.lag_exact = await _count_after(self._redis, self._names.stream, position, self._count_bound)

    async def _again(self, share: _Share, group: str) -> None:
        """Scheduled retries, and the stream of due ones: an ack there deletes, its length is what is open."""
        name = self._names.again(group)
        due = await self._redis.execute("XLEN", name)
        share.retrying = due + await self._redis.execute("ZCARD", self._names.retry(group))
        if not due:
            return
        row = (await _groups(self._redis, name)).get(group)
        position = _id(row["last-delivered-id"]) if row is not None else (0, 0)
        share.oldest_undelivered_again = await _first_after(self._redis, name, position)
        if row is not None and row["pending"]:
            share.oldest_pending_again = await self._oldest_pending(name, group)

    async def _oldest_pending(self, stream: str, group: str) -> Id | None:
        found = await self._redis.execute("XPENDING", stream, group, "-", "+", 1)
        return _id(found[0][0]) if found else None


async def _stream(redis: Executes, name: str) -> _Stream:
    if not await redis.execute("EXISTS", name):
        return _Stream(0, None, (0, 0), (0, 0), {})
    info = {_text(key): value for key, value in (await stream_facts(redis, name)).items()}
    first = info["first-entry"]
    return _Stream(
        length=info["length"],
        first=_id(first[0]) if first else None,
        last=_id(info["last-generated-id"]),
        max_deleted=_id(info["max-deleted-entry-id"]),
        groups=await _groups(redis, name),
    )


async def _groups(redis: Executes, stream: str) -> dict[str, dict[str, Any]]:
    rows = [_flat(row) for row in await redis.execute("XINFO", "GROUPS", stream)]
    return {_text(row["name"]): row for row in rows}


async def _first_after(redis: Executes, stream: str, position: Id) -> Id | None:
    found = await id_after(redis, stream, f"{position[0]}-{position[1]}")
    return _id(found) if found else None


async def _count_after(redis: Executes, stream: str, position: Id, bound: int) -> tuple[int, bool]:
    """How many entries follow `position`, and whether that is all of them. Reads chunks of bounded size."""
    counted, chunk = 0, min(32, bound)
    while counted < bound:
        entries = await redis.execute("XRANGE", stream, f"({position[0]}-{position[1]}", "+", "COUNT", chunk)
        counted += len(entries)
        if len(entries) < chunk:
            return counted, True
        position = _id(entries[-1][0])
        mean = sum(sum(map(len, fields)) for _, fields in entries) // len(entries) + 1
        chunk = max(1, min(CHUNK, CHUNK_BYTES // mean, bound - counted))
    return counted, await _first_after(redis, stream, position) is None


def _sum_up(group: str, kind: str, shares: Sequence[_Share], now_ms: int, *, paused: bool) -> GroupInfo:
    lag_known = all(share.lag_exact for share in shares)
    lag = sum(share.lag for share in shares)
    pending = sum(share.pending for share in shares)
    retrying = sum(share.retrying for share in shares)
    oldest_pending_s = _age_s(now_ms, [id for s in shares for id in (s.oldest_pending, s.oldest_pending_again)])
    oldest_undelivered_s = _age_s(
        now_ms, [id for s in shares for id in (s.oldest_undelivered, s.oldest_undelivered_again)]
    )
    return GroupInfo(
        group=group,
        kind=kind,
        lag=lag if lag_known else None,
        lag_known=lag_known,
        pending=pending,
        retrying=retrying,
        dead=sum(share.dead for share in shares),
        consumers=len(frozenset[str]().union(*(share.consumers for share in shares))),
        oldest_seconds=max(oldest_pending_s, oldest_undelivered_s),
        oldest_pending_seconds=oldest_pending_s,
        oldest_undelivered_seconds=oldest_undelivered_s,
        backlog=lag + pending + retrying,
        paused=paused,
        owners=[share.owner for share in shares if share.owner is not None],
        halted_keys=sum(share.halted_keys for share in shares),
    )


def _age_s(now_ms: int, ids: Sequence[Id | None]) -> float:
    """Entry ids begin with the server's milliseconds; ids that a producer chose may lie ahead."""
    return max((max(now_ms - found[0], 0) / 1000 for found in ids if found is not None), default=0.0)


async def _server_ms(redis: Executes) -> int:
    seconds, micros = await redis.execute("TIME")
    return int(seconds) * 1000 + int(micros) // 1000


def _flat(reply: list[Any]) -> dict[str, Any]:
    return {_text(name): value for name, value in zip(reply[::2], reply[1::2], strict=True)}


def _id(raw: bytes) -> Id:
    milliseconds, _, sequence = raw.partition(b"-")
    return int(milliseconds), int(sequence or 0)


def _text(raw: bytes) -> str:
    return raw.decode(errors="surrogateescape")
