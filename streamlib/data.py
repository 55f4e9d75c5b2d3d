"""The data of events in one format, JSON or msgpack: how an event becomes its bytes, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec

from streamlib.errors import DeclarationError, DecodeError, PublishError, SchemaError
from streamlib.event import Event, event_type
from streamlib.finite import (
    MAX_DEPTH,
    MAX_EXPONENT,
    TooDeep,
    decimal_fields,
    fields_with_decimals,
    holds_nan,
    nesting_fields,
    refuse_nan,
    risky_fields,
)
from streamlib.message import Message

DataFormat = Literal["json", "msgpack"]


class DataCodec:
    """Keeps a decoder for each class. `strict` takes no text where the class has a number."""

    def __init__(self, data_format: DataFormat, *, strict: bool = True) -> None:
        if data_format not in ("json", "msgpack"):
            raise DeclarationError(f"data format {data_format!r}: choose 'json' or 'msgpack'")
        self._module: Any = msgspec.json if data_format == "json" else msgspec.msgpack
        self._encode = self._module.Encoder().encode
        self._plain = self._module.Decoder(dict[str, Any])
        self._is_json = data_format == "json"
        self._strict = strict
        self._readers: dict[type[Event], Callable[[bytes], Event]] = {}

    def encode(self, event: Event) -> bytes:
        cls = type(event)
        try:
            for name in risky_fields(cls):
                if holds_nan(getattr(event, name)):
                    refuse_nan(event, event_type(cls))
            data: bytes = self._encode(event)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise PublishError(f"{event_type(cls)} cannot be encoded: {error}") from error
        return data

    def decode(self, message: Message, cls: type[Event]) -> Event:
        read = self._readers.get(cls)
        if read is None:
            read = self._readers[cls] = self.reader(cls)
        try:
            return read(message.data)
        except (msgspec.DecodeError, ValueError, RecursionError):
            return self._decode_in_words(message, cls)

    def _decode_in_words(self, message: Message, cls: type[Event]) -> Event:
        """The same again, for what is wrong with it. Raises SchemaError or DecodeError."""
        label = f"{message.type} {message.id}"
        try:
            event: Event = self._module.Decoder(cls, strict=self._strict).decode(message.data)
        except msgspec.ValidationError as error:
            raise SchemaError(f"{label}: {error}") from error
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise DecodeError(f"{label}: {error}") from error
        _find_nan(event, label)
        return event

    def reader(self, cls: type[Event]) -> Callable[[bytes], Event]:
        """Reads data of this class as `decode` does, quicker, but without its words for what is wrong with them."""
        decoder = self._module.Decoder(cls, strict=self._strict)
        decode: Callable[[bytes], Event] = decoder.decode
        decimals, risky = decimal_fields(cls), risky_fields(cls)
        if self._is_json and self._strict:
            others, nesting = fields_with_decimals(cls), nesting_fields(cls)
        else:
            others, nesting = risky, ()
        others = tuple(name for name in others if name not in decimals)
        if not (decimals or others or nesting):
            return decode

        def read(data: bytes) -> Event:
            event = decode(data)
            for name in decimals:
                number = getattr(event, name)
                if not number.is_finite() or not -MAX_EXPONENT <= number.adjusted() <= MAX_EXPONENT:
                    raise ValueError(name)
            for name in others:
                if holds_nan(getattr(event, name)):
                    raise ValueError(name)
            if nesting and _may_nest(data):
                for name in nesting:
                    holds_nan(getattr(event, name))
            return event

        return read

    def decode_plain(self, data: bytes, label: str) -> dict[str, Any]:
        try:
            plain: dict[str, Any] = self._plain.decode(data)
        except msgspec.ValidationError as error:
            raise SchemaError(f"{label}: {error}") from error
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise DecodeError(f"{label}: {error}") from error
        return plain

    def encode_plain(self, data: dict[str, Any], label: str) -> bytes:
        _find_nan(data, label)
        try:
            encoded: bytes = self._encode(data)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise SchemaError(f"{label}: what the upcasters made of it cannot be stored: {error}") from error
        return encoded


def _find_nan(value: Any, label: str) -> None:
    """Raise SchemaError for a number anywhere in what was read that cannot be stored, DecodeError for deep nesting."""
    try:
        refuse_nan(value, label)
    except PublishError as error:
        raise SchemaError(str(error)) from error
    except TooDeep as error:
        raise DecodeError(f"{label}: {error}") from error


def _may_nest(data: bytes) -> bool:
    """Whether JSON has brackets enough to nest deeper than MAX_DEPTH."""
    return data.count(b"[") + data.count(b"{") > MAX_DEPTH
