"""Elements of aggregates' lists, "<entry id> <commit id> <fields>", and the way back from them to events."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from msgspec import Struct

from streamlib.codec import NativeCodec
from streamlib.errors import DecodeError
from streamlib.event import Event, event_type, event_version
from streamlib.message import Message, Position
from streamlib.redisio.later import pack, unpack
from streamlib.topic import TopicSpec

_ID = b"2:id36:"
_BEHIND_ID = len(_ID) + 36


class Stored(Struct, frozen=True):
    """One event of an aggregate as it is stored."""

    version: int
    position: Position
    commit_id: str
    message: Message


class ElementReader:
    """Reads the elements of one class's aggregates on one topic.

    Who loads an aggregate needs no envelopes, only types, versions and data. So an element that looks as the append
    script writes most of them is cut where its type and its data must lie. For any other one, and for data that cannot
    be read, there is the long way: it knows every layout, and has the words for each error.
    """

    def __init__(self, topic: TopicSpec, aggregate: str) -> None:
        """`aggregate` names the class in errors."""
        self._topic = topic
        self._aggregate = aggregate
        self._readers: dict[bytes, Callable[[bytes], Event]] = {}
        """For the data behind the packed fields `type` and `v`."""
        codec = topic.codec
        if type(codec) is NativeCodec:  # a subclass may lay out entries in a way of its own
            for cls in topic.registry.classes:
                head = pack([b"type", event_type(cls).encode(), b"v", b"%d" % event_version(cls)])
                self._readers[head] = codec.reader(cls)

    def events(self, aggregate_id: str, partition: int, after: int, elements: Sequence[bytes]) -> Iterator[Event]:
        """The typed events of the elements that come after a version. Raises what `event` and `stored` raise."""
        readers, key = self._readers, pack([b"key", aggregate_id.encode(), b"data"])
        for number, element in enumerate(elements):
            try:
                _, _, packed = element.split(b" ", 2)
                front, _, rest = packed.partition(key)
                _, _, data = rest.partition(b":")
                if front[: len(_ID)] != _ID:
                    raise KeyError(front)
                event = readers[front[_BEHIND_ID:]](data)  # which refuses what may come behind the data
            except Exception:  # noqa: BLE001 - whatever it was, the long way tells it
                event = self.event(aggregate_id, stored(self._topic, partition, after + number + 1, element))
            yield event

    def event(self, aggregate_id: str, element: Stored) -> Event:
        """The typed event. Raises DecodeError (UnknownType, SchemaError), and what users' classes and codecs raise."""
        try:
            return self._topic.decode(element.message)
        except DecodeError as error:
            label = f"{self._aggregate} {aggregate_id!r}, version {element.version}"
            raise type(error)(f"{label}: {error}") from error


def stored(topic: TopicSpec, partition: int, version: int, element: bytes) -> Stored:
    """An element taken apart. Raises DecodeError."""
    entry, _, rest = element.partition(b" ")
    commit, _, packed = rest.partition(b" ")
    entry_id = entry.decode(errors="replace")
    try:
        message = topic.codec.read(entry_id, unpack(packed))
    except DecodeError as error:
        raise type(error)(f"topic {topic.name!r}, version {version} of an aggregate: {error}") from error
    return Stored(version, Position(topic.name, partition, entry_id), commit.decode(errors="replace"), message)


def entry_of(element: bytes) -> str:
    """The id of the topic's entry that an element stands for."""
    return element.partition(b" ")[0].decode(errors="replace")
