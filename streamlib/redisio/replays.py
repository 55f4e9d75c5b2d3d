"""Replays of a range: what each partition still holds, the plan of the run, and its steps, batch by batch."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from streamlib.codec import Fields
from streamlib.errors import Fenced
from streamlib.keys import StreamKeys
from streamlib.message import Message
from streamlib.redisio.again import Again, pack
from streamlib.redisio.large_entries import stream_facts
from streamlib.redisio.marks import Marks, Members, agreed, members
from streamlib.redisio.scripts import Arg, Executes, Script

_begin = Script("replay_begin")
_step = Script("replay_range")
_end = Script("replay_end")

KEPT_MS = 7 * 86_400_000
"""How long a run that broke off can be gone on with."""
ENDED_MS = 3_600_000
"""How long it stays known how far a run had come that has ended: whoever else was at it learns that nothing is left."""

NO_STREAM = -1


class Outcome(enum.IntEnum):
    """What becomes of an event that is to be replayed; see replay_range.lua."""

    REPLAYED = 0
    BUSY = 1
    WAITING = 2
    DEAD = 3


class Totals(Struct, frozen=True):
    """Entries of a range by what became of them; the first four are those that were asked for and may be replayed."""

    replayed: int = 0
    busy: int = 0
    waiting: int = 0
    dead: int = 0
    filtered: int = 0
    foreign: int = 0
    not_delivered: int = 0
    copies: int = 0

    @property
    def entries(self) -> int:
        return sum(self.numbers)

    @property
    def numbers(self) -> tuple[int, ...]:
        return msgspec.structs.astuple(self)

    def __add__(self, other: Totals) -> Totals:
        return Totals(*(a + b for a, b in zip(self.numbers, other.numbers, strict=True)))


class Range(Struct, frozen=True):
    """Of one partition the ids of the first and the last entry that are meant; and as the run began, up to which the
    group had been given entries, and how many had been removed (NO_STREAM: there was none)."""

    start: str
    end: str
    delivered: str
    removed: int = 0


class Plan(Struct, frozen=True, kw_only=True):
    """A run as it began. `request` tells whether another one wants the same; `ranges` are by partition."""

    number: int
    request: str
    begun_ms: int
    ranges: list[Range]


class Progress(Struct, frozen=True):
    """How far a run has come on one partition: behind which entry it goes on ("" at the start), and its totals."""

    position: str = ""
    totals: Totals = Totals()


class Candidate(Struct, frozen=True):
    """An event that is to be replayed: where it lies, its envelope and its entry's fields."""

    entry_id: str
    message: Message
    fields: list[bytes]


class Batch(Struct, frozen=True):
    """Entries up to and with `upto`: what may be replayed, and how many of the others were left out for what."""

    upto: str
    events: list[Candidate]
    left_out: Totals


class History(Struct, frozen=True):
    """What a stream holds. `first` is "" where it is empty, `removed` counts entries that were added and are gone,
    `deleted` is the greatest id that somebody deleted; `delivered` is the group's position, None without that group."""

    first: str
    last: str
    removed: int
    deleted: str
    delivered: str | None


_plans = msgspec.json.Decoder(Plan)


async def history(redis: Executes, stream: str, group: str | None) -> History | None:
    """What XINFO says of a stream and its group; None where there is no stream. Raises what the client raises."""
    if not await redis.execute("EXISTS", stream):
        return None
    info = await stream_facts(redis, stream)
    delivered = None
    for row in map(_flat, await redis.execute("XINFO", "GROUPS", stream)):
        if group is not None and row[b"name"] == group.encode():
            delivered = row[b"last-delivered-id"].decode()
    return History(
        first=_first(info),
        last=info[b"last-generated-id"].decode(),
        removed=info[b"entries-added"] - info[b"length"],
        deleted=info[b"max-deleted-entry-id"].decode(),
        delivered=delivered,
    )


async def begins_with(redis: Executes, stream: str) -> tuple[str, int]:
    """The first entry of a stream, "" where it has none, and how many were removed, or NO_STREAM."""
    if not await redis.execute("EXISTS", stream):
        return "", NO_STREAM
    info = await stream_facts(redis, stream)
    return _first(info), info[b"entries-added"] - info[b"length"]


def _first(info: dict[bytes, Any]) -> str:
    first = info[b"first-entry"]
    return first[0].decode() if first else ""


async def read_page(redis: Executes, stream: str, start: str, end: str, count: int) -> list[tuple[str, Fields]]:
    """Entries (id, fields) from `start` (with "(" before it: behind it) to `end`. Raises what the client raises."""
    found = await redis.execute("XRANGE", stream, start, end, "COUNT", count)
    return [(entry_id.decode(), fields) for entry_id, fields in found]


# -- the run ----------------------------------------------------------------------------------------------------------


async def begun(redis: Executes, key: str) -> Plan | None:
    """The run that has begun and not ended. Raises what the client raises."""
    plan = await redis.execute("HGET", key, "plan")
    return _plans.decode(plan) if plan is not None else None


async def begin(redis: Executes, key: str, plan: Plan, *, instead: bool) -> Plan:
    """Note that this run begins; the run that stands now. `instead`: of one that has not ended. Safe to send twice."""
    stored = await _begin.run(redis, [key], [plan.number, msgspec.json.encode(plan), KEPT_MS, "1" if instead else "0"])
    return _plans.decode(stored)


async def keep(redis: Executes, key: str) -> None:
    """The run goes on: keep its plan, or its progress on a partition, longer."""
    await redis.execute("PEXPIRE", key, KEPT_MS)


async def end(redis: Executes, key: str, number: int, *, in_ms: int = 0) -> None:
    """Forget the plan of this run, or its progress on a partition. Safe to send twice."""
    await _end.run(redis, [key], [number, in_ms])


async def progress_of(redis: Executes, keys: StreamKeys, group: str) -> tuple[int, Progress]:
    """The number of the last run that came to this partition, and how far it has come. 0 for none."""
    names = Totals.__struct_fields__
    run, position, *totals = await redis.execute("HMGET", keys.replay(group), "run", "position", *names)
    if run is None or position is None:
        return 0, Progress()
    return int(run), Progress(position.decode(), Totals(*(int(number or 0) for number in totals)))


async def step(
    redis: Executes, keys: StreamKeys, group: str, number: int, behind: str, batch: Batch, *, window_ms: int
) -> tuple[bool, Progress]:
    """Copy a batch into the group's stream of returning events, unless the run has come further than `behind`.

    Whether it stands at the end of this batch now, and where it stands. Safe to send twice. Raises Fenced when a later
    run has taken over, and what the client raises.
    """
    reply = await _ask(redis, keys, group, batch, [number, behind, batch.upto, window_ms, KEPT_MS, "0"])
    if not reply:
        raise Fenced(f"another replay of group {group!r} has begun in the place of this one (--anew)")
    code, position, *totals = reply
    return bool(code), Progress(position.decode(), Totals(*totals))


async def look(redis: Executes, keys: StreamKeys, group: str, batch: Batch) -> list[Outcome]:
    """What would become of the events of a batch. Writes nothing. Raises what the client raises."""
    if not batch.events:
        return []
    _, *codes = await _ask(redis, keys, group, batch, [0, "", batch.upto, 0, KEPT_MS, "1"])
    return [Outcome(code) for code in codes]


async def _ask(redis: Executes, keys: StreamKeys, group: str, batch: Batch, run: Sequence[Arg]) -> Any:
    """The reply of replay_range.lua, of which `run` are ARGV[2..7]; without bodies when it only looks."""
    event_ids, marks, looks = [one.message.id for one in batch.events], Marks(), run[-1] == "1"
    out = batch.left_out

    async def ask(told: Members) -> Any:
        args: list[Arg] = [
            group, *run, out.filtered, out.foreign, out.not_delivered, out.copies, marks.plan(keys.stream).text,
        ]  # fmt: skip
        for one, digest in zip(batch.events, told.digests, strict=True):
            body = b"" if looks else pack(Again(one.entry_id, 0, 0, "replayed", one.fields))
            args += (one.entry_id, one.message.id, digest, body)
        named = [keys.stream, keys.again(group), keys.retry(group), keys.replay(group), keys.marks(group)]
        return await _step.run(redis, [*named, *keys.idems(group, event_ids), *told.keys], args)

    return await agreed(marks, keys.stream, lambda: members(marks, keys, group, event_ids), ask)


def _flat(reply: list[Any]) -> dict[bytes, Any]:
    return dict(zip(reply[::2], reply[1::2], strict=True))
