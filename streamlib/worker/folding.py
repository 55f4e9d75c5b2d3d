"""Folds a batch of entries into row changes, in memory: it can be repeated and thrown away."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from streamlib.codec import Fields
from streamlib.errors import DecodeError, Reject, SchemaError, UnknownType
from streamlib.event import Event, stored_name
from streamlib.message import Message, entry_time_ms
from streamlib.redisio.commits import MAX_BYTES, Batch, IndexChange, Loaded
from streamlib.redisio.dead_letter import Failure, dead_letter_fields
from streamlib.redisio.indexes import Entry, ViewKeys
from streamlib.redisio.read_model import partition_of
from streamlib.redisio.rows import RowFields, check_row_id
from streamlib.worker.projection import Projection
from streamlib.worker.seen import Seen

MAX_CACHED_ROWS = 10_000


class RawEntry(Struct, frozen=True):
    """An entry as it was read. `position` is the checkpoint behind it where that is not its own id: of the past."""

    id: str
    fields: Fields
    position: str = ""


class Prepared(Struct):
    """An entry with what is known of it before folding: an event for a row, or why there is none."""

    entry: RawEntry
    message: Message | None = None
    event: Event | None = None
    row_id: str = ""
    failure: Failure | None = None


class Stored(Struct, frozen=True):
    """A row as Redis has it, and where its indexes have it. A row that does not exist has no fields."""

    fields: RowFields
    entries: dict[str, Entry]
    inexact: tuple[str, ...] = ()


class Stop(Struct, frozen=True):
    """Why folding ends before an entry."""

    entry_id: str
    failure: Failure


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
    """Folds the entries of one partition. Its cache holds committed rows only.

    `elsewhere` are the types and versions that some worker of this projection folds. `seen` tells copies in a rebuild;
    without it the events' idempotency keys do.
    """

    def __init__(
        self, projection: Projection[Any], keys: ViewKeys, partition: int, consumer: str, seen: Seen | None = None
    ) -> None:
        self.projection = projection
        self.seen = seen
        self.keys = keys
        self._partition = partition
        self._consumer = consumer
        self.elsewhere: frozenset[str] = frozenset()
        self.meets_unknown = False
        self._cache: OrderedDict[str, Stored] = OrderedDict()

    def prepare(self, entries: Sequence[RawEntry]) -> tuple[list[Prepared], Stop | None]:
        """Read the entries, up to the first one that only other workers can read."""
        prepared: list[Prepared] = []
        self.meets_unknown = False
        for entry in entries:
            one = Prepared(entry)
            stop = self._read(one)
            if stop is not None:
                return prepared, stop
            prepared.append(one)
        return prepared, None

    def needs(self, prepared: Sequence[Prepared]) -> tuple[list[str], list[str]]:
        """The event ids whose marks, and the row ids whose rows, have to be loaded before folding."""
        asked = prepared if self.seen is None else ()
        events = dict.fromkeys(one.message.id for one in asked if one.message is not None)
        rows = dict.fromkeys(one.row_id for one in prepared if one.event is not None)
        return list(events), [row_id for row_id in rows if row_id not in self._cache]

    def fold(self, prepared: Sequence[Prepared], loaded: Loaded, checkpoint: str) -> Folded:
        """Fold as many entries as one commit may hold."""
        return _Run(self, prepared, loaded).folded(checkpoint)

    def accept(self, folded: Folded) -> None:
        """Remember the rows and the events of a batch that was committed."""
        if self.seen is not None:
            self.seen.add(folded.settled)
        for row_id, stored in folded.rows.items():
            self._cache[row_id] = stored
            self._cache.move_to_end(row_id)
        while len(self._cache) > MAX_CACHED_ROWS:
            self._cache.popitem(last=False)

    def forget(self) -> None:
        """Drop the cache: what Redis holds may be something else."""
        self._cache.clear()

    def base(self, row_id: str, loaded: Loaded) -> Stored:
        """The committed row. Raises SchemaError when the stored one cannot be used."""
        if row_id in self._cache:
            return self._cache[row_id]
        fields, label = loaded.rows[row_id], f"row {self.keys.row(row_id)}"
        if isinstance(fields, str):
            raise SchemaError(f"{label} is a {fields}, not a hash; remove or rename that key")
        return self.stored(row_id, fields, label)

    def stored(self, row_id: str, fields: RowFields, label: str) -> Stored:
        """The row with its index entries. Raises SchemaError when it does not fit the class."""
        if not fields:
            return Stored({}, {})
        row = self.projection.codec.decode(fields, label)
        indexes = self.projection.indexes
        return Stored(fields, indexes.entries(self.keys, row_id, row), indexes.inexact(row))

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

    def _read(self, one: Prepared) -> Stop | None:
        topic, projection = self.projection.topic, self.projection
        try:
            one.message = message = topic.codec.read(one.entry.id, one.entry.fields)
            cls = topic.registry.find(message.type, message.version)
            if cls not in projection.folds:
                return None
            one.event = event = topic.decode(message)
            one.row_id = check_row_id(getattr(event, projection.key), f"{cls.__name__}.{projection.key}")
            if partition_of(one.row_id, topic.partitions) != self._partition:
                raise SchemaError(
                    f"row {one.row_id!r} lives on another partition: the event was published with a key "
                    f"that is not its {projection.key!r}"
                )
        except UnknownType as error:
            return self._unknown(one, error)
        except DecodeError as error:
            one.event = None
            one.failure = Failure.of("schema" if isinstance(error, SchemaError) else "decode", error)
        except Exception as error:  # noqa: BLE001 - an event class runs code of its user's (__post_init__, hooks)
            one.event = None
            one.failure = Failure.of("decode", error)
        return None

    def _unknown(self, one: Prepared, error: UnknownType) -> Stop | None:
        """What other workers of this group can read waits for them; the rest goes by the topic's rule."""
        message, projection = one.message, self.projection
        folds = message is not None and projection.folds_type(message.type)
        if message is not None and not folds and message.type in projection.topic.registry.type_names:
            return None
        self.meets_unknown = True
        if folds or (message is not None and stored_name(message.type, message.version) in self.elsewhere):
            return Stop(one.entry.id, Failure.of("unknown_type", error))
        if projection.topic.unknown == "dead-letter":
            one.failure = Failure.of("unknown_type", error)
        return None


class _Run:
    """One pass over a batch: rows change in `_staged` only."""

    def __init__(self, folder: Folder, prepared: Sequence[Prepared], loaded: Loaded) -> None:
        self._folder = folder
        self._prepared = prepared
        self._loaded = loaded
        self._staged: dict[str, Stored] = {}
        self._base: dict[str, Stored] = {}
        self._marks: dict[str, str] = {}
        self._settled: dict[str, int] = {}
        self._dead: list[tuple[Failure, Fields]] = []
        self._counts: Counter[str] = Counter()

    def folded(self, checkpoint: str) -> Folded:
        size, consumed, halted = 0, 0, None
        for one in self._prepared:
            size += sum(map(len, one.entry.fields))
            if size > MAX_BYTES and consumed:
                break
            failure = self._fold_one(one)
            if failure is not None:
                if self._folder.projection.on_error == "halt":
                    halted = Stop(one.entry.id, failure)
                    break
                self._dead.append((failure, self._folder.bury(one, failure)))
                self._settle(one, "x")
            if one.row_id in self._staged:
                size += sum(map(len, self._staged[one.row_id].fields.values()))
            consumed += 1
        last = self._prepared[consumed - 1].entry if consumed else None
        new = (last.position or last.id) if last is not None else checkpoint
        return self._finish(checkpoint, new, consumed, halted)

    def _fold_one(self, one: Prepared) -> Failure | None:
        """Apply one entry; the failure if it must not be applied."""
        message = one.message
        if message is not None and self._is_copy(message.id, one.entry.id):
            self._counts["duplicate"] += 1
            return None
        if one.failure is not None:
            return one.failure
        if one.event is None or message is None:
            self._counts["skipped"] += 1
            return None
        try:
            self._staged[one.row_id] = self._apply(one.row_id, one.event)
        except SchemaError as error:
            return Failure.of("schema", error)
        except Exception as error:  # noqa: BLE001 - a fold may raise anything; it ends as a dead letter or a halt
            return Failure.of("rejected", error)
        self._settle(one, "d")
        self._counts["folded"] += 1
        return None

    def _apply(self, row_id: str, event: Event) -> Stored:
        """The row after the event, without fields when it is deleted."""
        folder, projection = self._folder, self._folder.projection
        if row_id not in self._base:
            self._base[row_id] = folder.base(row_id, self._loaded)
        fields, label = self._staged.get(row_id, self._base[row_id]).fields, f"row {folder.keys.row(row_id)}"
        # Decoded anew for every event: a fold that changes a list in a row and then raises leaves no trace.
        row = projection.codec.decode(fields, label) if fields else None
        after = projection.folds[type(event)](row, event)
        if after is None:
            return Stored({}, {})
        if type(after) is not projection.codec.cls:
            raise Reject(
                f"the fold of {type(event).__name__} returned a {type(after).__name__}, not a "
                f"{projection.codec.cls.__name__} or None"
            )
        return folder.stored(row_id, projection.codec.encode(after), label)

    def _is_copy(self, event_id: str, entry_id: str) -> bool:
        seen = self._folder.seen
        if seen is None:
            return event_id in self._settled or self._loaded.states.get(event_id, b"")[:1] in (b"d", b"x")
        at_ms = self._settled.get(event_id, seen.at_ms(event_id))
        return at_ms is not None and entry_time_ms(entry_id) - at_ms < seen.window_ms

    def _settle(self, one: Prepared, state: str) -> None:
        if one.message is None:
            return
        at_ms, seen = entry_time_ms(one.entry.id), self._folder.seen
        self._settled.pop(one.message.id, None)  # again, a window later: it stands behind what came in between
        self._settled[one.message.id] = at_ms
        if seen is None or (not one.entry.position and seen.is_young(at_ms)):
            self._marks[one.message.id] = state

    def _finish(self, old: str, new: str, consumed: int, halted: Stop | None) -> Folded:
        rows: dict[str, RowFields | None] = {}
        changes: dict[str, IndexChange] = {}
        kept: dict[str, Stored] = {}
        inexact: set[str] = set()
        delta = 0
        for row_id, before in self._base.items():
            kept[row_id] = after = self._staged.get(row_id, before)
            changed = {name: raw for name, raw in after.fields.items() if before.fields.get(name) != raw}
            if changed or (before.fields and not after.fields):
                rows[row_id] = changed or None
                delta += bool(after.fields) - bool(before.fields)
                _change_indexes(changes, before.entries, after.entries)
                inexact.update(after.inexact)
        batch = Batch(
            old=old, new=new, entries=consumed, marks=self._marks, rows=rows, row_delta=delta,
            indexes=changes, inexact=sorted(inexact), dead=[fields for _, fields in self._dead],
        )  # fmt: skip
        return Folded(
            batch, consumed, kept, self._counts["folded"], self._counts["skipped"], self._counts["duplicate"],
            [failure for failure, _ in self._dead], halted, self._settled,
        )  # fmt: skip


def _change_indexes(changes: dict[str, IndexChange], before: dict[str, Entry], after: dict[str, Entry]) -> None:
    for key in before.keys() | after.keys():
        old, new = before.get(key), after.get(key)
        if old == new:
            continue
        change = changes.setdefault(key, IndexChange([], []))
        if old is not None and (new is None or new[0] != old[0]):
            change.removed.append(old[0])
        if new is not None:
            change.set.append(new)
