"""Rows as Redis hashes: each field is one hash field, text as it is, everything else as JSON."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import msgspec

from streamlib.codec import can_hold_nan, refuse_nan
from streamlib.errors import DeclarationError, PublishError, SchemaError
from streamlib.event import check_resolvable
from streamlib.keys import MAX_ID_BYTES
from streamlib.read_model import ReadModel

Row = TypeVar("Row", bound=ReadModel)

RowFields = dict[bytes, bytes]
"""A row as stored: hash field -> value."""

_encode = msgspec.json.Encoder().encode


class FieldCodec:
    """Between the values of one field and their stored form."""

    def __init__(self, label: str, field_type: Any) -> None:
        self.label = label
        self.type = field_type
        self._is_text = field_type is str
        self._decoder = msgspec.json.Decoder(field_type)
        self._can_hold_nan = can_hold_nan(field_type)

    def encode(self, value: Any) -> bytes:
        """The stored form. Raises SchemaError for a value that is not of the field's type."""
        if self._is_text:
            return self._text(value)
        try:
            if self._can_hold_nan:
                refuse_nan(value, self.label)
            raw = _encode(value)
            self._decoder.decode(raw)
        except PublishError as error:
            raise SchemaError(str(error)) from error
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise SchemaError(f"{self.label} cannot hold {_shown(value)}: {error}") from error
        return raw

    def decode(self, raw: bytes) -> Any:
        """The value. Raises ValueError, of which msgspec's errors and UnicodeDecodeError are kinds."""
        return raw.decode() if self._is_text else self._decoder.decode(raw)

    def canonical(self, value: Any) -> Any:
        """The value as it would come back from a row. Raises SchemaError."""
        return self.decode(self.encode(value))

    def _text(self, value: Any) -> bytes:
        if not isinstance(value, str):
            raise SchemaError(f"{self.label} cannot hold {_shown(value)}: it is no str")
        try:
            return value.encode()
        except UnicodeEncodeError as error:
            raise SchemaError(f"{self.label} cannot hold {_shown(value)}: it is not valid Unicode") from error


class RowCodec(Generic[Row]):
    """Between the rows of one read model class and their hashes."""

    def __init__(self, cls: type[Row]) -> None:
        given: Any = cls
        if not (inspect.isclass(given) and issubclass(given, ReadModel) and given is not ReadModel):
            raise DeclarationError(f"{cls!r} is not a subclass of streamlib.ReadModel")
        check_resolvable(cls)
        infos = msgspec.structs.fields(cls)
        if not infos:
            raise DeclarationError(f"{cls.__name__} has no fields: Redis keeps no empty hash")
        self.cls = cls
        self.fields = {info.name: FieldCodec(f"{cls.__name__}.{info.name}", info.type) for info in infos}
        self._stored = [(info.name, info.name.encode(), self.fields[info.name]) for info in infos]
        self._required = {info.name for info in infos if info.required}

    def encode(self, row: Row) -> RowFields:
        """The row as stored. Raises SchemaError when a value cannot be kept."""
        return {stored: codec.encode(getattr(row, name)) for name, stored, codec in self._stored}

    def decode(self, fields: Mapping[bytes, bytes], label: str) -> Row:
        """The row in a hash; a field that is not stored takes its default. Raises SchemaError."""
        values: dict[str, Any] = {}
        try:
            for name, stored, codec in self._stored:
                raw = fields.get(stored)
                if raw is not None:
                    values[name] = codec.decode(raw)
            missing = self._required - values.keys()
            if missing:
                raise SchemaError(f"{label} has no field {', '.join(sorted(missing))}; rebuild the view")
            return self.cls(**values)
        except (ValueError, TypeError, RecursionError) as error:
            raise SchemaError(f"{label} does not fit {self.cls.__name__}: {error}; rebuild the view") from error


def check_row_id(value: Any, label: str) -> str:
    """The row id that a key value stands for: 1 to 200 bytes without NUL. Raises SchemaError."""
    text = "" if value is None else str(value)
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise SchemaError(f"{label} is {_shown(value)}: not valid Unicode") from error
    if not 1 <= size <= MAX_ID_BYTES or "\x00" in text:
        raise SchemaError(f"{label} is {_shown(value)}: a row id is 1 to {MAX_ID_BYTES} bytes without NUL")
    return text


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
