"""Rows as Redis hashes: each field is one hash field, text as it is, everything else as JSON."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Generic, TypeVar
from uuid import UUID

import msgspec
from msgspec.structs import astuple

from streamlib.errors import DeclarationError, PublishError, SchemaError
from streamlib.event import check_resolvable
from streamlib.finite import can_hold_nan, refuse_nan
from streamlib.keys import MAX_ID_BYTES
from streamlib.read_model import ReadModel

Row = TypeVar("Row", bound=ReadModel)

RowFields = dict[bytes, bytes]
"""A row as stored: hash field -> value."""

Raws = tuple[bytes | None, ...]
"""The values of a stored row in the order of its class's fields, None where one is not stored."""

_encode = msgspec.json.Encoder().encode

Keep = Callable[[Any], bytes | None]
"""The stored form of a value that comes back from it as it is and that nobody can change; None for any other."""


Check = Callable[[Any], Any]
"""Tells whether a value of a type that a field keeps is kept, by the truth of what it answers or by raising."""

PLAIN_CHARS = 200
"""Longer texts are written to know how much a commit holds."""
_PLAIN_NUMBERS = 10**30


class FieldCodec:
    """Between the values of one field and their stored form."""

    def __init__(self, label: str, field_type: Any) -> None:
        self.label = label
        self.type = field_type
        self._is_text = field_type is str
        self._decoder = msgspec.json.Decoder(field_type)
        self._can_hold_nan = can_hold_nan(field_type)
        self.keep: dict[type, Keep] = {str: str.encode} if self._is_text else _keeps(field_type)

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
        self.names = tuple(info.name.encode() for info in infos)
        self._keeps = [codec.keep for codec in self.fields.values()]
        self._is_simple = not hasattr(cls, "__post_init__") and not cls.__struct_config__.dict
        self._checks: dict[tuple[type, ...], list[tuple[int, Check]]] = {}
        self.most_plain_bytes = PLAIN_CHARS * len(infos)
        """About what a plain row takes, at most."""
        self._required = {info.name for info in infos if info.required}

    def encode(self, row: Row) -> RowFields:
        """The row as stored. Raises SchemaError when a value cannot be kept."""
        values = zip(self.names, self.fields.values(), astuple(row), strict=True)
        return {stored: codec.encode(value) for stored, codec, value in values}

    def write(self, row: Row) -> tuple[Raws, Row | None]:
        """The row's values as stored, and what may be used instead of reading them anew: the row itself, where it would
        come back as it is and nothing in it can be changed, else None. Raises SchemaError for what cannot be kept."""
        try:
            raws = [keep[type(value)](value) for keep, value in zip(self._keeps, astuple(row), strict=True)]
        except (KeyError, TypeError, ValueError, OverflowError):  # the long way tells which field it is, and why
            raws = [None]
        if None in raws:
            return tuple(self.encode(row).values()), None
        return tuple(raws), row if self._is_simple else None

    def is_plain(self, row: Any) -> bool:
        """Whether this is a small row that `write` surely answers with, so that nobody need write it to know."""
        if type(row) is not self.cls:
            return False
        values = astuple(row)
        kinds = tuple(map(type, values))
        checks = self._checks.get(kinds)
        if checks is None:
            if not self._is_simple or any(kind not in keep for kind, keep in zip(kinds, self._keeps, strict=True)):
                return False
            found = [_check_of(kind, keep[kind]) for kind, keep in zip(kinds, self._keeps, strict=True)]
            checks = self._checks[kinds] = [(n, check) for n, check in enumerate(found) if check is not None]
        try:
            for n, check in checks:
                if not check(values[n]):
                    return False
        except (ArithmeticError, ValueError):  # NaN has no order; a lone surrogate has no bytes
            return False
        return True

    def kept(self, row: Row) -> Row | None:
        """The same of a row that was read."""
        try:
            return self.write(row)[1]
        except SchemaError:  # what others have written there, or an older version
            return None

    def decode(self, fields: Mapping[bytes, bytes], label: str) -> Row:
        """The row in a hash; a field that is not stored takes its default. Raises SchemaError."""
        return self.read(self.raws(fields), label)

    def raws(self, fields: Mapping[bytes, bytes]) -> Raws:
        """The values in a hash."""
        return tuple([fields.get(stored) for stored in self.names])

    def read(self, raws: Raws, label: str) -> Row:
        """The row of these values; one that is not stored takes its default. Raises SchemaError."""
        values: dict[str, Any] = {}
        try:
            for (name, codec), raw in zip(self.fields.items(), raws, strict=True):
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
    if type(value) is str and value.isascii() and 0 < len(value) <= MAX_ID_BYTES and "\x00" not in value:
        return value
    text = "" if value is None else str(value)
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise SchemaError(f"{label} is {_shown(value)}: not valid Unicode") from error
    if not 1 <= size <= MAX_ID_BYTES or "\x00" in text:
        raise SchemaError(f"{label} is {_shown(value)}: a row id is 1 to {MAX_ID_BYTES} bytes without NUL")
    return text


def kinds_of(field_type: Any) -> list[msgspec.inspect.Type]:
    """The types that a field may hold."""
    info = msgspec.inspect.type_info(field_type)
    while isinstance(info, msgspec.inspect.Metadata):
        info = info.type
    return list(info.types) if isinstance(info, msgspec.inspect.UnionType) else [info]


def _keeps(field_type: Any) -> dict[type, Keep]:
    """How values of a field that holds one simple type, and None perhaps, are stored, by their types."""
    kinds = kinds_of(field_type)
    if sum(not isinstance(kind, msgspec.inspect.NoneType) for kind in kinds) > 1:
        return {}
    return {kind: keep for node in kinds for kind, keep in _keep_of(node).items()}


def _keep_of(node: msgspec.inspect.Type) -> dict[type, Keep]:
    if isinstance(node, msgspec.inspect.EnumType):
        return {node.cls: _encode}
    if isinstance(node, msgspec.inspect.LiteralType):
        return {kind: {v: _encode(v) for v in node.values if type(v) is kind}.get for kind in map(type, node.values)}
    if type(node) not in _KEEP or any(getattr(node, name, None) is not None for name in _BOUNDS):
        return {}
    kind, keep = _KEEP[type(node)]
    return {kind: keep}


def _keep_decimal(value: Decimal) -> bytes | None:
    return _encode(value) if value.is_finite() else None


def _keep_float(value: float) -> bytes | None:
    return _encode(value) if math.isfinite(value) else None


def _keep_int(value: int) -> bytes | None:
    return _encode(value) if -(1 << 63) <= value < 1 << 64 else None


def _keep_datetime(value: datetime) -> bytes | None:
    is_kept = (value.tzinfo is None or value.tzinfo is UTC) and not value.fold
    return _encode(value) if is_kept else None


def _is_plain_text(value: str) -> bool:
    return len(value) <= PLAIN_CHARS and (value.isascii() or value.encode() != b"")


def _is_plain_number(value: Any) -> bool:
    return bool(-_PLAIN_NUMBERS < value < _PLAIN_NUMBERS)


def _is_plain_int(value: int) -> bool:
    return -(1 << 63) <= value < 1 << 63


def _check_of(kind: type, keep: Keep) -> Check | None:
    """How to know that a value is kept; None where all are."""
    if kind is str and keep in (str.encode, _encode):
        return _is_plain_text
    if keep in _CHECKS:
        return _CHECKS[keep]
    return lambda value: keep(value) is not None


_CHECKS: dict[Keep, Check | None] = {
    _encode: None,
    _keep_int: _is_plain_int,
    _keep_float: _is_plain_number,
    _keep_decimal: _is_plain_number,
}
_KEEP: dict[type[msgspec.inspect.Type], tuple[type, Keep]] = {
    msgspec.inspect.StrType: (str, _encode),
    msgspec.inspect.IntType: (int, _keep_int),
    msgspec.inspect.BoolType: (bool, _encode),
    msgspec.inspect.NoneType: (type(None), _encode),
    msgspec.inspect.DecimalType: (Decimal, _keep_decimal),
    msgspec.inspect.FloatType: (float, _keep_float),
    msgspec.inspect.DateType: (date, _encode),
    msgspec.inspect.DateTimeType: (datetime, _keep_datetime),
    msgspec.inspect.UUIDType: (UUID, _encode),
}
_BOUNDS = ("gt", "ge", "lt", "le", "multiple_of", "min_length", "max_length", "pattern", "tz")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
