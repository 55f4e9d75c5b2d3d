"""Reads what a batch needs and writes what folding it changed: the projector's two scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum

from msgspec import Struct

from streamlib.codec import Fields
from streamlib.redisio.indexes import ViewKeys
from streamlib.redisio.rows import RowFields
from streamlib.redisio.scripts import Arg, Executes, Script

_load = Script("load_rows", reads_only=True)
_commit = Script("commit")

INEXACT = "inexact:"

MAX_EVENTS = 4_000
"""So many at most are in one commit. What many events did to a row is written once."""
MAX_ROWS = 1_000
"""The rows that a commit may change before it takes no further events. They are what costs: the server does nothing
else meanwhile."""
MAX_BYTES = 4 * 1024 * 1024


class Loaded(Struct, frozen=True):
    """`states`: event id -> its mark. `rows`: row id -> its fields, or the type of a key that is no hash."""

    states: dict[str, bytes]
    rows: dict[str, RowFields | str]


class IndexChange(Struct):
    """What happens to one index: members to remove, and members to set to the scores in the same places."""

    removed: list[bytes]
    members: list[bytes]
    scores: list[float | bytes]


class Batch(Struct, frozen=True, kw_only=True):
    """What one commit changes: `marks` event id -> "d", "x"; `rows` row id -> fields to set, None deletes.

    `inexact` names the Ordered fields in which different values may share a score from now on.
    """

    old: str
    new: str
    entries: int
    marks: Mapping[str, str]
    rows: Mapping[str, RowFields | None]
    row_delta: int
    indexes: Mapping[str, IndexChange]
    inexact: Sequence[str]
    dead: Sequence[Fields]


class Verdict(Enum):
    """How a commit ended; everything but OK wrote nothing."""

    OK = "OK"
    FENCED = "FENCED"
    WRONG_TYPE = "WRONGTYPE"
    BEHIND = "BEHIND"


class Answer(Struct, frozen=True):
    """`detail` names the key of the wrong type, the stream's last id, or why the group did not move."""

    verdict: Verdict
    detail: str = ""


async def load(redis: Executes, keys: ViewKeys, group: str, event_ids: Sequence[str], row_ids: Sequence[str]) -> Loaded:
    """The idempotency states of these events, and these rows, in one round trip."""
    if not event_ids and not row_ids:
        return Loaded({}, {})
    marks = keys.stream.idems(group, event_ids)
    states, rows = await _load.run(redis, [*marks, *keys.rows(row_ids)], [len(marks)])
    return Loaded(
        {event_id: state for event_id, state in zip(event_ids, states, strict=False) if state is not None},
        {row_id: _row(row) if row else {} for row_id, row in zip(row_ids, rows, strict=True)},
    )


async def commit(
    redis: Executes, keys: ViewKeys, group: str, *, owner: str, epoch: int, window_ms: int, batch: Batch
) -> Answer:
    """Apply a batch if we still own the partition and the view stands at `batch.old`. Safe to send twice."""
    shapes: dict[tuple[bytes, ...], list[str]] = {}
    for row_id, row in batch.rows.items():
        shapes.setdefault(tuple(row or ()), []).append(row_id)
    named = [
        keys.stream.stream,
        keys.stream.owner(group),
        keys.head,
        keys.stream.dead(group),
        *keys.stream.idems(group, batch.marks),
        *keys.rows([row_id for row_ids in shapes.values() for row_id in row_ids]),
        *batch.indexes,
    ]
    args: list[Arg] = [
        owner, epoch, batch.old, batch.new, group, window_ms, batch.entries, batch.row_delta,
        "".join(batch.marks.values()), len(batch.rows), len(batch.indexes), len(batch.dead),
    ]  # fmt: skip
    for shape, row_ids in shapes.items():
        args += (len(row_ids), len(shape), *shape)
        for row_id in row_ids:
            args += (batch.rows[row_id] or {}).values()
    for change in batch.indexes.values():
        args += (len(change.removed), *change.removed, *_scored(change.members, change.scores))
    args += (len(batch.inexact) * 2, *(part for field in batch.inexact for part in (f"{INEXACT}{field}", 1)))
    for fields in batch.dead:
        args += (len(fields), *fields)
    verdict, detail, *_ = await _commit.run(redis, named, args)
    return Answer(Verdict(verdict.decode()), detail.decode("utf-8", "replace"))


async def load_both(
    redis: Executes, one: ViewKeys, other: ViewKeys, row_ids: Sequence[str]
) -> tuple[list[tuple[RowFields, RowFields]], bool]:
    """These rows of two generations, read at one moment, and whether both contained the same events then.

    A key that is no hash counts as a row without fields.
    """
    heads = [one.head, other.head]
    rows = [keys.row(row_id) for keys in (one, other) for row_id in row_ids]
    _, replies = await _load.run(redis, [*heads, *rows], [0])
    found = [row if isinstance(row, dict) else {} for row in map(_row, replies)]
    first, second = found[2 : 2 + len(row_ids)], found[2 + len(row_ids) :]
    return list(zip(first, second, strict=True)), found[0].get(b"checkpoint") == found[1].get(b"checkpoint")


def _scored(members: Sequence[bytes], scores: Sequence[float | bytes]) -> list[Arg]:
    """The count of members, the score that they share ("" if they do not), and these, with their scores if so."""
    different = set(scores)
    if len(different) == 1:
        return [len(members), _text(different.pop()), *members]
    return [len(members), "", *[part for pair in zip(map(_text, scores), members, strict=True) for part in pair]]


def _text(score: float | bytes) -> str | bytes:
    return score if isinstance(score, bytes) else repr(score)


def _row(reply: list[bytes] | bytes) -> RowFields | str:
    if isinstance(reply, bytes):
        return reply.decode()
    return dict(zip(reply[::2], reply[1::2], strict=True))
