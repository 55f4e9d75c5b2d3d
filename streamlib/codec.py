"""Between entries and events: how an event becomes the fields of a stream entry, and back."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import msgspec

from streamlib.data import DataCodec, DataFormat
from streamlib.errors import DecodeError, PublishError
from streamlib.event import Event, event_type, event_version
from streamlib.keys import MAX_ID_BYTES
from streamlib.message import MAX_HEADER_BYTES, MAX_HEADERS, Message, header_bytes

Fields = list[bytes]
"""The fields of an entry as Redis keeps them: name, value, name, value, ..."""

_REQUIRED = (b"id", b"type", b"v", b"key", b"data")
_PLAIN = list(_REQUIRED)
_VERSIONS = {b"%d" % version: version for version in range(1, 100)}
_OPTIONAL = (b"ts", b"corr", b"cause", b"traceparent", b"h")
_KNOWN = frozenset(_REQUIRED + _OPTIONAL)
_headers = msgspec.json.Decoder(dict[str, str])
_MAX_ENCODED_HEADERS = 6 * MAX_HEADER_BYTES + 6 * MAX_HEADERS + 2
"""Bytes of the field `h`: a control character of one byte is six in JSON."""


class Codec(Protocol):
    """What a topic needs to read and write the entries of one layout."""

    def read(self, entry_id: str, fields: Fields) -> Message:
        """The envelope of an entry. Raises DecodeError."""

    def write(self, message: Message) -> Fields:
        """The entry's fields. Raises PublishError where this layout cannot hold the message."""

    def encode(self, event: Event) -> bytes:
        """The event's data. Raises PublishError."""

    def decode(self, message: Message, cls: type[Event]) -> Event:
        """The typed event. Raises SchemaError or DecodeError."""


@runtime_checkable
class PlainCodec(Protocol):
    """What a codec needs besides, so that upcasters can raise data of older versions."""

    def decode_plain(self, message: Message) -> dict[str, Any]:
        """The event's data without a class. Raises SchemaError or DecodeError."""

    def encode_plain(self, data: dict[str, Any], label: str) -> bytes:
        """Such data, so that `decode` reads them; `label` names the event. Raises SchemaError."""


class NativeCodec:
    """The layout of design: `id type v key data`, then what is set of `ts corr cause traceparent h`."""

    def __init__(self, data_format: DataFormat = "json") -> None:
        self._data = DataCodec(data_format)
        self.encode = self._data.encode
        self.decode = self._data.decode
        self.encode_plain = self._data.encode_plain
        self.reader = self._data.reader

    def read(self, entry_id: str, fields: Fields) -> Message:
        if fields[::2] == _PLAIN and len(fields) == 10:  # as most entries are; what is wrong with one is told below
            event_id, type_name, version, key, data = fields[1::2]
            if (
                version in _VERSIONS
                and 0 < len(event_id) <= MAX_ID_BYTES
                and b"\x00" not in event_id
                and len(key) <= MAX_ID_BYTES
                and len(type_name) <= MAX_ID_BYTES
            ):
                try:
                    return Message(
                        id=event_id.decode(), type=type_name.decode(), version=_VERSIONS[version],
                        key=key.decode(), data=data,
                    )  # fmt: skip
                except UnicodeDecodeError:
                    return self._read_named(entry_id, fields)
        return self._read_named(entry_id, fields)

    def brief(self, fields: Fields) -> tuple[str, bytes, bytes, bytes] | None:
        """Event id, type, version and data of a common entry, which is all that a fold needs; None where `read` has to
        look."""
        if fields[::2] != _PLAIN or len(fields) != 10:
            return None
        event_id, type_name, version, key, data = fields[1::2]
        if not 0 < len(event_id) <= MAX_ID_BYTES or b"\x00" in event_id or not (event_id.isascii() and key.isascii()):
            return None
        if len(key) > MAX_ID_BYTES or len(type_name) > MAX_ID_BYTES:
            return None
        return event_id.decode(), type_name, version, data

    def _read_named(self, entry_id: str, fields: Fields) -> Message:
        named = _named(entry_id, fields)
        missing = [name.decode() for name in _REQUIRED if name not in named]
        if missing:
            raise DecodeError(f"entry {entry_id} has no field {', '.join(missing)}")
        if len(named) > len(_REQUIRED) and not named.keys() <= _KNOWN:
            extra = sorted(_show(name) for name in named.keys() - _KNOWN)
            raise DecodeError(f"entry {entry_id} has unknown fields {', '.join(extra)}")
        return Message(
            id=_event_id(entry_id, named[b"id"]),
            type=_short(entry_id, "type", named[b"type"]),
            version=_whole(entry_id, "v", named[b"v"]),
            key=_short(entry_id, "key", named[b"key"]),
            data=named[b"data"],
            **(_optional(entry_id, named) if len(named) > len(_REQUIRED) else {}),
        )

    def write(self, message: Message) -> Fields:
        try:
            fields = [
                b"id", message.id.encode(), b"type", message.type.encode(), b"v", b"%d" % message.version,
                b"key", message.key.encode(), b"data", message.data,
            ]  # fmt: skip
            if message.time_ms is not None:
                fields += (b"ts", b"%d" % message.time_ms)
            if message.correlation_id is not None:
                fields += (b"corr", message.correlation_id.encode())
            if message.causation_id is not None:
                fields += (b"cause", message.causation_id.encode())
            if message.traceparent is not None:
                fields += (b"traceparent", message.traceparent.encode())
            if message.headers:
                fields += (b"h", msgspec.json.encode(message.headers))
        except UnicodeEncodeError as error:
            raise PublishError(f"{message.type} {message.id!r}: {error.object!r} is not valid Unicode") from error
        return fields

    def decode_plain(self, message: Message) -> dict[str, Any]:
        return self._data.decode_plain(message.data, _label(message))


class FlatCodec:
    """Entries of other programs whose fields are the event's own: `XADD readings * sensor a7 celsius 21.5`.

    Values are text and are converted to the class's types. The type is that of `event`, unless the field
    `type_field` names another. The event id is the entry id.
    """

    def __init__(self, event: type[Event], *, type_field: str = "") -> None:
        self._default = event
        self._type_field = type_field.encode()
        self._data = DataCodec("json", strict=False)
        self.encode = self._data.encode
        self.decode = self._data.decode
        self.encode_plain = self._data.encode_plain

    def read(self, entry_id: str, fields: Fields) -> Message:
        named = _named(entry_id, fields)
        type_name, version = event_type(self._default), event_version(self._default)
        if self._type_field and self._type_field in named:
            type_name = _short(entry_id, "type", named.pop(self._type_field))
        values = {_text(entry_id, "name", k): _text(entry_id, _show(k), v) for k, v in named.items()}
        return Message(id=entry_id, type=type_name, version=version, data=msgspec.json.encode(values))

    def write(self, message: Message) -> Fields:
        values = msgspec.json.decode(message.data, type=dict[str, Any])
        nested = [name for name, value in values.items() if isinstance(value, dict | list)]
        if nested:
            raise PublishError(f"{message.type}: a flat entry cannot hold the nested field {nested[0]!r}")
        fields = [part for k, v in values.items() if v is not None for part in (k.encode(), _flat(v))]
        if self._type_field:
            fields += (self._type_field, message.type.encode())
        return fields

    def decode_plain(self, message: Message) -> dict[str, Any]:
        return self._data.decode_plain(message.data, _label(message))


class RawCodec:
    """Entries of other programs that hold the whole event, encoded, in one field (others are kept as headers)."""

    def __init__(self, event: type[Event], *, field: str = "data", data_format: DataFormat = "json") -> None:
        self._default = event
        self._field = field.encode()
        self._data = DataCodec(data_format)
        self.encode = self._data.encode
        self.decode = self._data.decode
        self.encode_plain = self._data.encode_plain

    def read(self, entry_id: str, fields: Fields) -> Message:
        named = _named(entry_id, fields)
        data = named.pop(self._field, None)
        if data is None:
            raise DecodeError(f"entry {entry_id} has no field {_show(self._field)}")
        headers = {_text(entry_id, "name", k): _text(entry_id, _show(k), v) for k, v in named.items()}
        return Message(
            id=entry_id,
            type=event_type(self._default),
            version=event_version(self._default),
            data=data,
            headers=headers,
        )

    def write(self, message: Message) -> Fields:
        fields = [self._field, message.data]
        for name, value in message.headers.items():
            fields += (name.encode(), value.encode())
        return fields

    def decode_plain(self, message: Message) -> dict[str, Any]:
        return self._data.decode_plain(message.data, _label(message))


def _label(message: Message) -> str:
    return f"{message.type} {message.id}"


def _named(entry_id: str, fields: Fields) -> dict[bytes, bytes]:
    if not fields:
        raise DecodeError(f"entry {entry_id} has no fields")
    if len(fields) % 2:
        raise DecodeError(f"entry {entry_id} has a field without a value")
    named = dict(zip(fields[::2], fields[1::2], strict=True))
    if len(named) * 2 != len(fields):
        raise DecodeError(f"entry {entry_id} repeats a field name")
    return named


def _event_id(entry_id: str, raw: bytes) -> str:
    text = _text(entry_id, "id", raw)
    if not text or len(raw) > MAX_ID_BYTES or "\x00" in text:
        raise DecodeError(f"entry {entry_id}: an event id is 1 to {MAX_ID_BYTES} bytes without NUL")
    return text


def _short(entry_id: str, name: str, raw: bytes) -> str:
    if len(raw) > MAX_ID_BYTES:
        raise DecodeError(f"entry {entry_id}: field {name} has {len(raw)} bytes, at most {MAX_ID_BYTES} are allowed")
    return _text(entry_id, name, raw)


def _text(entry_id: str, name: str, raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise DecodeError(f"entry {entry_id}: field {name} is not UTF-8: {error.reason}") from error


def _whole(entry_id: str, name: str, raw: bytes) -> int:
    if raw.isdigit() and len(raw) <= 16:
        return int(raw)
    raise DecodeError(f"entry {entry_id}: field {name} is {_show(raw)}, not a whole number of up to 16 digits")


def _optional(entry_id: str, named: dict[bytes, bytes]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if b"ts" in named:
        found["time_ms"] = _whole(entry_id, "ts", named[b"ts"])
    names = (b"corr", "correlation_id"), (b"cause", "causation_id"), (b"traceparent", "traceparent")
    for field, attribute in names:
        if field in named:
            found[attribute] = _short(entry_id, field.decode(), named[field])
    if b"h" in named:
        found["headers"] = _read_headers(entry_id, named[b"h"])
    return found


def _read_headers(entry_id: str, raw: bytes) -> dict[str, str]:
    most = f"at most {MAX_HEADERS} headers of {MAX_HEADER_BYTES} bytes together are allowed"
    if len(raw) > _MAX_ENCODED_HEADERS:
        raise DecodeError(f"entry {entry_id}: field h has {len(raw)} bytes; {most}")
    try:
        headers = _headers.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError(f"entry {entry_id}: field h is no JSON object of texts: {error}") from error
    if len(headers) > MAX_HEADERS or header_bytes(headers) > MAX_HEADER_BYTES:
        raise DecodeError(f"entry {entry_id} has {len(headers)} headers of {header_bytes(headers)} bytes; {most}")
    return headers


def _flat(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else msgspec.json.encode(value)


def _show(raw: bytes) -> str:
    return repr(raw[:40])[1:]
