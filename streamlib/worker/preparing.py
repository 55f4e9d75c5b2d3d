"""Reads the entries of a partition into events for rows, before anything is known of those rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct

from streamlib.codec import Fields
from streamlib.errors import DecodeError, SchemaError, UnknownType
from streamlib.event import Event, event_version, stored_name
from streamlib.message import Message, entry_time_ms
from streamlib.redisio.dead_letter import Failure
from streamlib.redisio.read_model import partition_of
from streamlib.redisio.rows import check_row_id
from streamlib.worker.projection import Projection


class _Known(Struct, frozen=True):
    """How events of a type and version are decoded, and how errors call their row's id."""

    decode: Callable[[Message], Event]
    label: str


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
    """An entry with what is known of it before folding: an event for a row, or why there is none."""

    entry: RawEntry
    message: Message | None = None
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

    def __init__(self, projection: Projection[Any], partition: int) -> None:
        self._projection = projection
        self._partition = partition
        self._known: dict[tuple[str, int], _Known] = {}
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
        topic, projection = self._projection.topic, self._projection
        try:
            one.message = message = topic.codec.read(one.entry.id, one.entry.fields)
            known = self._known.get((message.type, message.version)) or self._look_up(message)
            if known is None:
                return None
            one.row_id = check_row_id(getattr(event := known.decode(message), projection.key), known.label)
            if topic.partitions > 1 and partition_of(one.row_id, topic.partitions) != self._partition:
                raise SchemaError(
                    f"row {one.row_id!r} lives on another partition: the event was published with a key "
                    f"that is not its {projection.key!r}"
                )
            one.event = event
        except UnknownType as error:
            return self._unknown(one, error)
        except DecodeError as error:
            one.failure = Failure.of("schema" if isinstance(error, SchemaError) else "decode", error)
        except Exception as error:  # noqa: BLE001 - an event class runs code of its user's (__post_init__, hooks)
            one.failure = Failure.of("decode", error)
        return None

    def _look_up(self, message: Message) -> _Known | None:
        """What is known of the events of a type and version; None if they are not folded. Raises UnknownType."""
        cls = self._projection.topic.registry.find(message.type, message.version)
        if cls not in self._projection.folds:
            return None
        label = f"{cls.__name__}.{self._projection.key}"
        known = self._known[message.type, message.version] = _Known(self._decoder(cls, message.version), label)
        return known

    def _decoder(self, cls: type[Event], version: int) -> Callable[[Message], Event]:
        """Decodes as the topic does, which has the words for what is wrong."""
        topic = self._projection.topic
        if event_version(cls) != version or not hasattr(topic.codec, "reader"):
            return topic.decode
        read: Callable[[bytes], Event] = topic.codec.reader(cls)

        def decode(message: Message) -> Event:
            try:
                return read(message.data)
            except Exception:  # noqa: BLE001 - the same again, the long way
                return topic.decode(message)

        return decode

    def _unknown(self, one: Prepared, error: UnknownType) -> Stop | None:
        """What other workers of this group can read waits for them; the rest goes by the topic's rule."""
        message, projection = one.message, self._projection
        folds = message is not None and projection.folds_type(message.type)
        if message is not None and not folds and message.type in projection.topic.registry.type_names:
            return None
        self.meets_unknown = True
        if folds or (message is not None and stored_name(message.type, message.version) in self.elsewhere):
            return Stop(one.entry.id, Failure.of("unknown_type", error))
        if projection.topic.unknown == "dead-letter":
            one.failure = Failure.of("unknown_type", error)
        return None
