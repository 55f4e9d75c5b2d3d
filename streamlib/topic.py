"""A topic as declared: its name, event classes, key, partitions and codec."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import msgspec
from msgspec import Struct

from streamlib.codec import Codec, NativeCodec, PlainCodec
from streamlib.errors import DeclarationError, PublishError, SchemaError
from streamlib.event import Event, Registry, event_type, event_version
from streamlib.keys import MAX_ID_BYTES, check_name
from streamlib.message import Message, new_event_id
from streamlib.versions import Upcasters

Unknown = Literal["park", "dead-letter", "skip"]
MAX_PARTITIONS = 1024
_DURABILITY = re.compile(r"primary|fsync|replicas:[1-9]\d?")


class TopicSpec(Struct, frozen=True, kw_only=True, eq=False):
    """What `app.topic(...)` declares. `dedup_window_s` 0 keeps no keys for copies sent by other producers."""

    name: str
    registry: Registry
    key: str | None = None
    partitions: int = 1
    codec: Codec = NativeCodec()
    unknown: Unknown = "park"
    dedup_window_s: float = 0
    durability: str = "primary"

    def __post_init__(self) -> None:
        check_name("topic", self.name)
        if not self.registry.classes:
            raise DeclarationError(f"topic {self.name!r} declares no event classes")
        if not 1 <= self.partitions <= MAX_PARTITIONS:
            raise DeclarationError(f"topic {self.name!r}: partitions={self.partitions}, not 1 to {MAX_PARTITIONS}")
        if self.unknown not in ("park", "dead-letter", "skip"):
            raise DeclarationError(
                f"topic {self.name!r}: unknown={self.unknown!r}; choose 'park', 'dead-letter' or 'skip'"
            )
        if not _DURABILITY.fullmatch(self.durability):
            raise DeclarationError(
                f"topic {self.name!r}: durability={self.durability!r}; choose 'primary', 'fsync' or 'replicas:n'"
            )
        for cls in self.registry.classes:
            if self.key is not None and self.key not in cls.__struct_fields__:
                raise DeclarationError(
                    f"topic {self.name!r} is keyed by {self.key!r}, but {cls.__name__} has no such field"
                )

    def key_of(self, event: Event) -> str:
        """The event's key as text, "" on a topic without a key. Raises PublishError for None."""
        if self.key is None:
            return ""
        value: Any = getattr(event, self.key)
        if value is None:
            raise PublishError(f"{event_type(type(event))}.{self.key} is None, but topic {self.name!r} is keyed by it")
        return value if isinstance(value, str) else str(value)

    def checked_key(self, event: Event, key: str | None = None) -> str:
        """The key under which the event is stored, its own unless one is given. Raises PublishError."""
        return checked_id("key", self.key_of(event) if key is None else key, may_be_empty=True)

    def message(
        self,
        event: Event,
        *,
        event_id: str | None = None,
        key: str | None = None,
        time_ms: int | None = None,
        correlation_id: str | None = None,
        causation_id: str | None = None,
        traceparent: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Message:
        """The event in its envelope, encoded. Raises PublishError and DeclarationError."""
        self.check_declared(type(event))
        if time_ms is not None and not 0 <= time_ms < 10**16:
            raise PublishError(f"time_ms {time_ms} is no time in ms since 1970")
        if headers and not all(isinstance(part, str) for pair in headers.items() for part in pair):
            raise PublishError(f"headers {headers!r}: names and values are texts")
        others = {"correlation id": correlation_id, "causation id": causation_id, "traceparent": traceparent}
        for kind, text in others.items():
            if text:
                checked_id(kind, text)
        return Message(
            id=checked_id("event id", event_id) if event_id is not None else new_event_id(),
            type=event_type(type(event)),
            version=event_version(type(event)),
            key=self.checked_key(event, key),
            data=self.codec.encode(event),
            time_ms=time_ms,
            correlation_id=correlation_id,
            causation_id=causation_id,
            traceparent=traceparent,
            headers=dict(headers) if headers else {},
        )

    def messages(self, events: Sequence[Event], ids: Iterator[str]) -> Iterator[Message | PublishError]:
        """For each event, when its turn comes, what `message` makes of it, or its error; it gets the next of the ids.

        Raises DeclarationError, of whichever event, before the first.
        """
        for cls in set(map(type, events)):
            self.check_declared(cls)
        return map(self._message, events, ids)

    def _message(self, event: Event, event_id: str) -> Message | PublishError:
        cls = type(event)
        try:
            return Message(
                id=event_id,
                type=event_type(cls),
                version=event_version(cls),
                key=self.checked_key(event),
                data=self.codec.encode(event),
            )
        except PublishError as error:
            return error

    def messages_of_key(self, key: str, events: Sequence[Event], ids: Iterable[str]) -> list[Message]:
        """The events of one key, whatever the topic's is, each with one of the ids. Raises PublishError and
        DeclarationError, for the first that cannot be stored."""
        checked_id("key", key)
        names: dict[type[Event], tuple[str, int]] = {}
        encode, made = self.codec.encode, []
        for event, event_id in zip(events, ids, strict=True):
            cls = type(event)
            if cls not in names:
                self.check_declared(cls)
                names[cls] = event_type(cls), event_version(cls)
            type_name, version = names[cls]
            made.append(Message(id=event_id, type=type_name, version=version, key=key, data=encode(event)))
        return made

    def check_declared(self, cls: type[Event]) -> None:
        """Raise DeclarationError for a class that is none of the topic's."""
        if cls not in self.registry:
            raise DeclarationError(
                f"topic {self.name!r} does not declare {cls.__qualname__}; it has {sorted(self.registry.type_names)}"
            )

    def decode(self, message: Message) -> Event:
        """The typed event of a stored message, raised to its class's version. Raises UnknownType, SchemaError,
        DecodeError.

        Classes run code of their users' (`__post_init__`) and codecs may be foreign: anything else may come out, too.
        """
        cls = self.registry.find(message.type, message.version)
        if event_version(cls) == message.version:
            return self.codec.decode(message, cls)
        raised = raise_version(self.registry, self.codec, message)
        try:
            return self.codec.decode(raised, cls)
        except SchemaError as error:
            raise SchemaError(f"{error}; so the upcasters left what was stored as version {message.version}") from error

    def partition_of(self, message: Message) -> int:
        """crc32(key) mod P; events without a key are spread by their id."""
        return partition_of_key(message.key or message.id, self.partitions)


def raise_version(registry: Registry, codec: Codec, message: Message) -> Message:
    """The message with its data raised to the version of its class, by the upcasters; itself where it is of that.

    Raises UnknownType, SchemaError, DecodeError, and DeclarationError for a codec that cannot tell data apart.
    """
    version = event_version(registry.find(message.type, message.version))
    if version == message.version:
        return message
    if not hasattr(codec, "decode_plain"):  # whether it is a PlainCodec costs more to ask than all of the rest
        raise DeclarationError(_cannot_raise(codec))
    plain, label = cast(PlainCodec, codec), f"{message.type} {message.id}"
    data = registry.upcasters.raise_(message.type, message.version, plain.decode_plain(message), label)
    return msgspec.structs.replace(message, version=version, data=plain.encode_plain(data, label))


def check_upcasts(upcasters: Upcasters, topics: Iterable[TopicSpec]) -> None:
    """Raise DeclarationError where a way up has a hole, or lies on a topic whose codec cannot go it."""
    upcasters.check()
    for topic in topics:
        for cls in topic.registry.classes:
            if upcasters.raised_to(event_type(cls), event_version(cls)) and not isinstance(topic.codec, PlainCodec):
                raise DeclarationError(f"topic {topic.name!r}, {event_type(cls)}: {_cannot_raise(topic.codec)}")


def _cannot_raise(codec: Codec) -> str:
    return (
        f"{type(codec).__name__} has no decode_plain and encode_plain, so upcasters cannot see what it stores; give it "
        "both (see streamlib.codec.PlainCodec), or declare the old classes beside the new one"
    )


def partition_of_key(key: str, partitions: int) -> int:
    """crc32(key) mod P: where events of this key lie, whoever publishes them."""
    return zlib.crc32(key.encode()) % partitions if partitions > 1 else 0


def checked_id(kind: str, text: str, *, may_be_empty: bool = False) -> str:
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError as error:
        raise PublishError(f"{kind} {text!r} is not valid Unicode") from error
    if size > MAX_ID_BYTES or "\x00" in text or not (text or may_be_empty):
        raise PublishError(f"{kind} {text[:40]!r} has {size} bytes; 1 to {MAX_ID_BYTES} without NUL are allowed")
    return text
