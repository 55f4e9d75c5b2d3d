"""Reads the entries of a partition into events for rows, before anything is known of those rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct

from streamlib.codec import Fields, NativeCodec
from streamlib.errors import DecodeError, SchemaError, UnknownType
from streamlib.event import Event, event_version, stored_name
from streamlib.message import ENVELOPE_BYTES, Message, entry_time_ms
from streamlib.redisio.dead_letter import Failure
from streamlib.redisio.large_entries import check_whole
from streamlib.redisio.read_model import partition_of
from streamlib.redisio.rows import check_row_id
from streamlib.worker.decoding import too_large
from streamlib.worker.projection import Projection


class _Known(Struct, frozen=True):
    """How the data of events of a type and version are read, and how errors call their row's id."""

    read: Callable[[bytes], Event]
    label: str


Brief = Callable[[Fields], tuple[str, bytes, bytes, bytes] | None]


class RawEntry(Struct, frozen=True, gc=False):
    """An entry as it was read: its `size` in bytes, and when it was added to the stream, ms.

    `position` is the checkpoint behind it where that is not its own id: of the past.
    """

    id: str
    fields: Fields
    size: int
    at_ms: int
    position: str = ""

    @classmethod
    def of(cls, entry_id: str, fields: Fields, position: str = "") -> RawEntry:
        return cls(entry_id, fields, len(b"".join(fields)), entry_time_ms(entry_id), position)


class Prepared(Struct, gc=False):
    """An entry with what is known of it before folding: an event for a row, or why there is none. One whose envelope
    could not be read has no event id."""

    entry: RawEntry
    event_id: str = ""
    event: Event | None = None
    row_id: str = ""
    failure: Failure | None = None


class Stop(Struct, frozen=True):
    """Why folding ends before an entry."""

    entry_id: str
    failure: Failure


class Preparer:
    """Reads the entries of one partition for one projection.

    `elsewhere` are the types and versions that some worker of this projection folds; `meets_unknown` tells whether the
    last entries had any that this process does not know.
    """

    def __init__(self, projection: Projection[Any], partition: int, payload_bytes: int) -> None:
        self._projection = projection
        self._payload_bytes, self._entry_bytes = payload_bytes, payload_bytes + ENVELOPE_BYTES
        self._partition = partition
        codec = projection.topic.codec
        self._brief: Brief = codec.brief if type(codec) is NativeCodec else _no_brief  # others may read in another way
        self._known: dict[tuple[bytes, bytes], _Known] = {}
        self.elsewhere: frozenset[str] = frozenset()
        self.meets_unknown = False

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

    def _read(self, one: Prepared) -> Stop | None:
        brief = self._brief(one.entry.fields)
        if brief is not None:
            one.event_id, type_name, version, data = brief
            known = self._known.get((type_name, version))
            if known is not None and len(data) <= self._payload_bytes:
                try:
                    event = known.read(data)
                except Exception:  # noqa: BLE001 - the same again, the long way, which has the words for what is wrong
                    return self._read_long(one)
                self._place(one, event, known.label)
                return None
        return self._read_long(one)

    def _read_long(self, one: Prepared) -> Stop | None:
        topic, message = self._projection.topic, None
        try:
            check_whole(one.entry.id, one.entry.fields)
            message = topic.codec.read(one.entry.id, one.entry.fields)
            one.event_id = message.id
            cls = topic.registry.find(message.type, message.version)
            if cls not in self._projection.folds:
                return None
            if len(message.data) > self._payload_bytes or one.entry.size > self._entry_bytes:
                raise too_large(message, one.entry.size, self._payload_bytes)
            event, label = topic.decode(message), f"{cls.__name__}.{self._projection.key}"
        except UnknownType as error:
            return self._unknown(one, message, error)
        except DecodeError as error:
            one.failure = Failure.of("schema" if isinstance(error, SchemaError) else "decode", error)
            return None
        except Exception as error:  # noqa: BLE001 - an event class runs code of its user's (__post_init__, hooks)
            one.failure = Failure.of("decode", error)
            return None
        stored = message.type.encode(), b"%d" % message.version
        if stored not in self._known and event_version(cls) == message.version and hasattr(topic.codec, "reader"):
            self._known[stored] = _Known(topic.codec.reader(cls), label)
        self._place(one, event, label)
        return None

    def _place(self, one: Prepared, event: Event, label: str) -> None:
        """Find the event's row."""
        topic = self._projection.topic
        try:
            one.row_id = check_row_id(getattr(event, self._projection.key), label)
            if topic.partitions > 1 and partition_of(one.row_id, topic.partitions) != self._partition:
                raise SchemaError(
                    f"row {one.row_id!r} lives on another partition: the event was published with a key "
                    f"that is not its {self._projection.key!r}"
                )
            one.event = event
        except SchemaError as error:
            one.failure = Failure.of("schema", error)
        except Exception as error:  # noqa: BLE001 - an id of a class of the user's, that cannot be shown
            one.failure = Failure.of("decode", error)

    def _unknown(self, one: Prepared, message: Message | None, error: UnknownType) -> Stop | None:
        """What other workers of this group can read waits for them; the rest goes by the topic's rule."""
        projection = self._projection
        folds = message is not None and projection.folds_type(message.type)
        if message is not None and not folds and message.type in projection.topic.registry.type_names:
            return None
        self.meets_unknown = True
        if folds or (message is not None and stored_name(message.type, message.version) in self.elsewhere):
            return Stop(one.entry.id, Failure.of("unknown_type", error))
        if projection.topic.unknown == "dead-letter":
            one.failure = Failure.of("unknown_type", error)
        return None


def _no_brief(fields: Fields) -> None:
    """Of a codec that has none."""
