"""Folds entries into row changes, in memory: one batch for a commit at a time, to be thrown away and repeated."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from streamlib.codec import Fields
from streamlib.errors import Reject, SchemaError
from streamlib.redisio.commits import MAX_BYTES, MAX_EVENTS, MAX_ROWS, Batch, Loaded
from streamlib.redisio.dead_letter import Failure, dead_letter_fields
from streamlib.redisio.indexes import ViewKeys
from streamlib.redisio.places import NOTHING, Changes, Shelves, Stored
from streamlib.redisio.rows import Raws, RowFields
from streamlib.worker.preparing import Prepared, RawEntry, Stop
from streamlib.worker.projection import Projection
from streamlib.worker.seen import Seen

MAX_CACHED_ROWS = 10_000


class Needs(Struct, frozen=True):
    """What has to be loaded before entries are folded: the marks of events, and rows. Of the commits made so far,
    `before` had ended when this was asked: what the others write, Redis may not show."""

    events: list[str]
    rows: list[str]
    before: int


class Folded(Struct, frozen=True):
    """A batch to commit. `halted` says why the entry behind it is not in it.

    `settled`: event id -> when the event was added to the stream, ms.
    """

    batch: Batch
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
        self._open: _Run | None = None
        self._accepted = 0
        self._ended = 0
        self._recent: deque[tuple[int, Mapping[str, int]]] = deque()

    def needs(self, prepared: Sequence[Prepared]) -> Needs:
        """What to load before these are folded; the rows that are cached stay so until then."""
        missing = []
        for row_id in dict.fromkeys([one.row_id for one in prepared if one.event is not None]):
            if row_id in self._cache:
                self._cache.move_to_end(row_id)
            elif self._open is None or row_id not in self._open.base:
                missing.append(row_id)
        asked = prepared if self.seen is None else ()
        return Needs(list(dict.fromkeys([one.event_id for one in asked if one.event_id])), missing, self._ended)

    def has_room(self, prepared: Sequence[Prepared]) -> bool:
        """Whether the open batch should take these too."""
        return self._open is not None and self._open.has_room(prepared)

    def fold(self, prepared: Sequence[Prepared], needs: Needs, loaded: Loaded) -> int:
        """Fold as many of the entries as the open batch may hold, and answer how many these are."""
        while self._recent and self._recent[0][0] <= needs.before:
            self._recent.popleft()
        run = self._open = self._open or _Run(self)
        return run.fold(prepared, loaded)

    def close(self, checkpoint: str) -> Folded | None:
        """The batch that is open, which begins behind this checkpoint; None if there is none."""
        run, self._open = self._open, None
        return run.folded(checkpoint) if run is not None else None

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
        """Drop what is cached and what was not committed: what Redis holds may be something else."""
        self._cache.clear()
        self._open = None
        self._recent.clear()
        self._ended = self._accepted

    def base_of(self, row_id: str, loaded: Loaded) -> Stored:
        """The row as it is before the batch. Raises SchemaError when the stored one cannot be used."""
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

    def settled(self, loaded: Loaded) -> list[Mapping[str, int]]:
        """Events that were settled before the batch and when, the last ones first: those of commits that may not show
        yet by the stream's time, 0 where idempotency keys say so."""
        found = {event_id: 0 for event_id, state in loaded.states.items() if state[:1] in (b"d", b"x")}
        return [*[settled for _, settled in reversed(self._recent)], found]

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
    """A batch that is being folded: rows change in `_now` only.

    A row that is surely stored as it is (`RowCodec.is_plain`) is so once, at the end, however many events changed it;
    any other one after each event, which may turn out to be one whose row cannot be stored.
    """

    def __init__(self, folder: Folder) -> None:
        self.base: dict[str, Stored] = {}
        self._folder = folder
        self._now: dict[str, Any] = {}
        self._earlier: list[Mapping[str, int]] = []
        self._marks: dict[str, str] = {}
        self._settled: dict[str, int] = {}
        self._dead: list[tuple[Failure, Fields]] = []
        self._size = self._entries = 0
        self._last: RawEntry | None = None
        self._halted: Stop | None = None
        self._changed = self._skipped = self._copies = 0

    def has_room(self, prepared: Sequence[Prepared]) -> bool:
        return (
            self._entries + len(prepared) <= MAX_EVENTS
            and self._size + sum([one.entry.size for one in prepared]) <= MAX_BYTES
            and len(self.base.keys() | {one.row_id for one in prepared}) <= MAX_ROWS
        )

    def fold(self, prepared: Sequence[Prepared], loaded: Loaded) -> int:
        """Answers how many of them are in the batch."""
        self._earlier = self._folder.settled(loaded)
        may_be_copies, consumed = self._may_be_copies(prepared), 0
        for one in prepared:
            self._size += one.entry.size
            if self._size > MAX_BYTES and self._entries:
                break
            failure = one.failure
            if may_be_copies and self._is_copy(one.event_id, one.entry.at_ms):
                self._copies += 1
            elif one.event is None and failure is None:
                self._skipped += 1
            else:
                failure = failure or self._apply(one, loaded)
                if failure is None:
                    self._changed += 1
                    self._settle(one, "d")
                elif self._folder.projection.on_error == "halt":
                    self._halted = Stop(one.entry.id, failure)
                    break
                else:
                    self._dead.append((failure, self._folder.bury(one, failure)))
                    self._settle(one, "x")
            self._last = one.entry
            self._entries += 1
            consumed += 1
        return consumed

    def _apply(self, one: Prepared, loaded: Loaded) -> Failure | None:
        """Change the event's row; answers why it must not be."""
        row_id, event, codec = one.row_id, one.event, self._folder.projection.codec
        try:
            now = self._now.get(row_id)
            if now is None:
                now = self._now[row_id] = self.base[row_id] = self._folder.base_of(row_id, loaded)
            row = now if type(now) is codec.cls else self._row_of(row_id, now)
            after = self._folder.projection.folds[type(event)](row, event)  # type: ignore[index]
            if codec.is_plain(after):
                self._now[row_id] = after
                if type(now) is not codec.cls:
                    self._size += codec.most_plain_bytes
            else:
                self._now[row_id] = self._stored(one, after)
        except SchemaError as error:
            return Failure.of("schema", error)
        except Exception as error:  # noqa: BLE001 - a fold may raise anything; it ends as a dead letter or a halt
            return Failure.of("rejected", error)
        return None

    def _row_of(self, row_id: str, stored: Stored) -> Any:
        if stored.row is not None or not stored.exists:
            return stored.row
        # Anew for every event: a fold that changes a list in a row and then raises leaves no trace.
        return self._folder.projection.codec.read(stored.raws, self._folder.label(row_id))

    def _stored(self, one: Prepared, after: Any) -> Stored:
        """What a fold returned, as it is stored. Raises Reject for what is no row, SchemaError for what cannot be."""
        codec, row_id = self._folder.projection.codec, one.row_id
        if after is None:
            return NOTHING
        if type(after) is not codec.cls:
            raise Reject(
                f"the fold of {type(one.event).__name__} returned a {type(after).__name__}, not a "
                f"{codec.cls.__name__} or None"
            )
        stored = self._encoded(row_id, after)
        self._size += sum([len(raw) for raw in stored.raws if raw is not None])
        return stored

    def _encoded(self, row_id: str, row: Any) -> Stored:
        codec = self._folder.projection.codec
        raws, kept = codec.write(row)
        row = codec.read(raws, self._folder.label(row_id)) if kept is None else kept
        return self._folder.shelves.stored(row_id, row, raws, self.base[row_id], kept)

    def _may_be_copies(self, prepared: Sequence[Prepared]) -> bool:
        """Whether some of the events may be copies of each other or of others; mostly there are none to look for."""
        event_ids = [one.event_id for one in prepared if one.event_id]
        different, seen = set(event_ids), self._folder.seen
        return (
            len(different) < len(event_ids)
            or not all(settled.keys().isdisjoint(different) for settled in (self._settled, *self._earlier))
            or (seen is not None and seen.has_any(different))
        )

    def _is_copy(self, event_id: str, at_ms: int) -> bool:
        seen, settled_at = self._folder.seen, None
        for settled in (self._settled, *self._earlier):
            settled_at = settled.get(event_id)
            if settled_at is not None:
                break
        if seen is None:
            return settled_at is not None
        if settled_at is None:
            settled_at = seen.at_ms(event_id)
        return settled_at is not None and at_ms - settled_at < seen.window_ms

    def _settle(self, one: Prepared, state: str) -> None:
        event_id, at_ms, seen = one.event_id, one.entry.at_ms, self._folder.seen
        if not event_id:
            return
        if seen is not None:
            self._settled.pop(event_id, None)  # again, a window later: it stands behind what came in between
        self._settled[event_id] = at_ms
        if seen is None or (not one.entry.position and seen.is_young(at_ms)):
            self._marks[event_id] = state

    def folded(self, old: str) -> Folded:
        """The batch, from this checkpoint on."""
        rows: dict[str, RowFields | None] = {}
        changes: Changes = {}
        inexact: set[str] = set()
        known: dict[str, Stored] = {}
        names, delta, move = self._folder.projection.codec.names, 0, self._folder.shelves.move
        for row_id, now in self._now.items():
            before = self.base[row_id]
            known[row_id] = after = now if type(now) is Stored else self._encoded(row_id, now)
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
        last = self._last
        batch = Batch(
            old=old, new=old if last is None else last.position or last.id, entries=self._entries, marks=self._marks,
            rows=rows, row_delta=delta, indexes=changes, inexact=sorted(inexact),
            dead=[fields for _, fields in self._dead],
        )  # fmt: skip
        return Folded(
            batch, known, self._changed, self._skipped, self._copies, [failure for failure, _ in self._dead],
            self._halted, self._settled,
        )  # fmt: skip


def _changed(names: Sequence[bytes], before: Raws, after: Raws) -> RowFields:
    """The values to set, by their names."""
    if not before:
        return {name: raw for name, raw in zip(names, after, strict=False) if raw is not None}
    return {
        name: raw
        for name, raw, was in zip(names, after, before, strict=False)  # there are none after a deletion
        if raw != was and raw is not None
    }
