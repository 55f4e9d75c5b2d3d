"""Folds a batch of entries into row changes, in memory: it can be repeated and thrown away."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from streamlib.codec import Fields
from streamlib.errors import Reject, SchemaError
from streamlib.event import Event
from streamlib.redisio.commits import MAX_BYTES, Batch, Loaded
from streamlib.redisio.dead_letter import Failure, dead_letter_fields
from streamlib.redisio.indexes import ViewKeys
from streamlib.redisio.places import NOTHING, Changes, Shelves, Stored
from streamlib.redisio.rows import Raws, RowFields
from streamlib.worker.preparing import Prepared, Stop
from streamlib.worker.projection import Projection
from streamlib.worker.seen import Seen

MAX_CACHED_ROWS = 10_000


class Needs(Struct, frozen=True):
    """What has to be loaded before a batch is folded: the marks of events, and rows. Of the commits made so far,
    `before` had ended when this was asked: what the others write, Redis may not show."""

    events: list[str]
    rows: list[str]
    before: int


class Folded(Struct):
    """A batch to commit. `consumed` entries are in it; `halted` says why the next one is not.

    `settled`: event id -> when the event was added to the stream, ms.
    """

    batch: Batch
    consumed: int
    rows: dict[str, Stored]
    folded: int
    skipped: int
    duplicates: int
    dead: list[Failure]
    halted: Stop | None
    settled: dict[str, int]


class Folder:
    """Folds the entries of one partition, each batch upon those that were accepted before it, committed or not.

    `seen` tells copies in a rebuild; without it the events' idempotency keys do.
    """

    def __init__(self, projection: Projection[Any], keys: ViewKeys, consumer: str, seen: Seen | None = None) -> None:
        self.projection = projection
        self.seen = seen
        self.keys = keys
        self.shelves = Shelves(projection.codec, projection.indexes, keys)
        self._consumer = consumer
        self._cache: OrderedDict[str, Stored] = OrderedDict()
        self._accepted = 0
        self._ended = 0
        self._recent: deque[tuple[int, Mapping[str, int]]] = deque()

    def needs(self, prepared: Sequence[Prepared]) -> Needs:
        """What to load before these are folded; the rows that are cached stay so until then."""
        rows = dict.fromkeys([one.row_id for one in prepared if one.event is not None])
        missing = []
        for row_id in rows:
            if row_id in self._cache:
                self._cache.move_to_end(row_id)
            else:
                missing.append(row_id)
        asked = prepared if self.seen is None else ()
        events = dict.fromkeys([one.event_id for one in asked if one.event_id])
        return Needs(list(events), missing, self._ended)

    def fold(self, prepared: Sequence[Prepared], needs: Needs, loaded: Loaded, checkpoint: str) -> Folded:
        """Fold as many entries as one commit may hold."""
        while self._recent and self._recent[0][0] <= needs.before:
            self._recent.popleft()
        return _Run(self, prepared, loaded).folded(checkpoint)

    def accept(self, folded: Folded) -> None:
        """Fold on upon this batch, which is about to be committed."""
        self._accepted += 1
        self._recent.append((self._accepted, folded.settled))
        for row_id, stored in folded.rows.items():
            self._cache[row_id] = stored
            self._cache.move_to_end(row_id)
        while len(self._cache) > MAX_CACHED_ROWS:
            self._cache.popitem(last=False)

    def committed(self, folded: Folded) -> None:
        """The oldest batch that was accepted and not committed yet is now."""
        self._ended += 1
        if self.seen is not None:
            self.seen.add(folded.settled)

    def forget(self) -> None:
        """Drop what is cached, and what was accepted and not committed: what Redis holds may be something else."""
        self._cache.clear()
        self._recent.clear()
        self._ended = self._accepted

    def base(self, row_id: str, loaded: Loaded) -> Stored:
        """The row as it is before this batch. Raises SchemaError when the stored one cannot be used."""
        if row_id in self._cache:
            return self._cache[row_id]
        fields = loaded.rows[row_id]
        if not fields:
            return NOTHING
        label = self.label(row_id)
        if isinstance(fields, str):
            raise SchemaError(f"{label} is a {fields}, not a hash; remove or rename that key")
        codec = self.projection.codec
        raws = codec.raws(fields)
        row = codec.read(raws, label)
        return self.shelves.stored(row_id, row, raws, NOTHING, codec.kept(row))

    def settled(self, loaded: Loaded) -> Mapping[str, int]:
        """Events that were settled before this batch and when: 0 where idempotency keys say so, and the stream's time
        for commits that those may not show yet."""
        found = {event_id: 0 for event_id, state in loaded.states.items() if state[:1] in (b"d", b"x")}
        for _, settled in self._recent:
            found.update(settled)
        return found

    def label(self, row_id: str) -> str:
        """How errors call a row."""
        return f"row {self.keys.row(row_id)}"

    def bury(self, one: Prepared, failure: Failure) -> Fields:
        return dead_letter_fields(
            one.entry.fields,
            failure,
            attempts=1,
            entry_id=one.entry.id,
            group=self.keys.group,
            consumer=self._consumer,
            at_ms=0,  # the commit script puts the server's time
        )


class _Run:
    """One pass over a batch: rows change in `_staged` only."""

    def __init__(self, folder: Folder, prepared: Sequence[Prepared], loaded: Loaded) -> None:
        self._folder = folder
        self._prepared = prepared
        self._loaded = loaded
        self._before = folder.settled(loaded)
        self._staged: dict[str, Stored] = {}
        self._base: dict[str, Stored] = {}
        self._marks: dict[str, str] = {}
        self._settled: dict[str, int] = {}
        self._dead: list[tuple[Failure, Fields]] = []
        self._folded = self._skipped = self._copies = 0

    def folded(self, checkpoint: str) -> Folded:
        size, consumed, halted = 0, 0, None
        for one in self._prepared:
            size += one.entry.size
            if size > MAX_BYTES and consumed:
                break
            result = self._fold_one(one)
            if isinstance(result, Failure):
                if self._folder.projection.on_error == "halt":
                    halted = Stop(one.entry.id, result)
                    break
                self._dead.append((result, self._folder.bury(one, result)))
                self._settle(one, "x")
            elif result is not None:
                self._staged[one.row_id] = result
                self._settle(one, "d")
                self._folded += 1
                size += _size(result.raws)
            consumed += 1
        last = self._prepared[consumed - 1].entry if consumed else None
        new = (last.position or last.id) if last is not None else checkpoint
        return self._finish(checkpoint, new, consumed, halted)

    def _fold_one(self, one: Prepared) -> Stored | Failure | None:
        """The entry's row after it; the failure if it must not be applied, None if it changes nothing."""
        if one.event_id and self._is_copy(one.event_id, one.entry.at_ms):
            self._copies += 1
            return None
        if one.failure is not None:
            return one.failure
        if one.event is None:
            self._skipped += 1
            return None
        try:
            return self._apply(one.row_id, one.event)
        except SchemaError as error:
            return Failure.of("schema", error)
        except Exception as error:  # noqa: BLE001 - a fold may raise anything; it ends as a dead letter or a halt
            return Failure.of("rejected", error)

    def _apply(self, row_id: str, event: Event) -> Stored:
        """The row after the event."""
        folder, projection, codec = self._folder, self._folder.projection, self._folder.projection.codec
        before = self._staged.get(row_id) or self._base.get(row_id)
        if before is None:
            before = self._base[row_id] = folder.base(row_id, self._loaded)
        row = before.row
        if row is None and before.exists:
            # Anew for every event: a fold that changes a list in a row and then raises leaves no trace.
            row = codec.read(before.raws, folder.label(row_id))
        after = projection.folds[type(event)](row, event)
        if after is None:
            return NOTHING
        if type(after) is not codec.cls:
            raise Reject(
                f"the fold of {type(event).__name__} returned a {type(after).__name__}, not a "
                f"{codec.cls.__name__} or None"
            )
        raws, kept = codec.write(after)
        row = codec.read(raws, folder.label(row_id)) if kept is None else kept
        return folder.shelves.stored(row_id, row, raws, before, kept)

    def _is_copy(self, event_id: str, at_ms: int) -> bool:
        seen, settled_at = self._folder.seen, self._settled.get(event_id)
        if settled_at is None:
            settled_at = self._before.get(event_id)
        if seen is None:
            return settled_at is not None
        if settled_at is None:
            settled_at = seen.at_ms(event_id)
        return settled_at is not None and at_ms - settled_at < seen.window_ms

    def _settle(self, one: Prepared, state: str) -> None:
        if not one.event_id:
            return
        event_id, at_ms, seen = one.event_id, one.entry.at_ms, self._folder.seen
        if seen is not None:
            self._settled.pop(event_id, None)  # again, a window later: it stands behind what came in between
        self._settled[event_id] = at_ms
        if seen is None or (not one.entry.position and seen.is_young(at_ms)):
            self._marks[event_id] = state

    def _finish(self, old: str, new: str, consumed: int, halted: Stop | None) -> Folded:
        rows: dict[str, RowFields | None] = {}
        changes: Changes = {}
        inexact: set[str] = set()
        names, delta, move = self._folder.projection.codec.names, 0, self._folder.shelves.move
        for row_id, after in self._staged.items():
            before = self._base[row_id]
            if before is after:
                continue
            if changed := _changed(names, before.raws, after.raws):
                rows[row_id] = changed
            elif before.exists and not after.exists:
                rows[row_id] = None
            delta += after.exists - before.exists
            move(changes, row_id, before, after)
            if after.inexact:
                inexact.update(after.inexact)
        batch = Batch(
            old=old, new=new, entries=consumed, marks=self._marks, rows=rows, row_delta=delta,
            indexes=changes, inexact=sorted(inexact), dead=[fields for _, fields in self._dead],
        )  # fmt: skip
        return Folded(
            batch, consumed, self._base | self._staged, self._folded, self._skipped, self._copies,
            [failure for failure, _ in self._dead], halted, self._settled,
        )  # fmt: skip


def _size(raws: Raws) -> int:
    return sum([len(raw) for raw in raws if raw is not None])


def _changed(names: Sequence[bytes], before: Raws, after: Raws) -> RowFields:
    """The values to set, by their names."""
    if not before:
        return {name: raw for name, raw in zip(names, after, strict=False) if raw is not None}
    return {
        name: raw
        for name, raw, was in zip(names, after, before, strict=False)  # there are none after a deletion
        if raw != was and raw is not None
    }
