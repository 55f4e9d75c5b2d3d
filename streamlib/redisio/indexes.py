"""Indexes of a read model: in which sorted sets a row stands, under which member and score."""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime
from decimal import Context, Decimal
from typing import Any

import msgspec
from msgspec import Struct, inspect

from streamlib.errors import DeclarationError, SchemaError
from streamlib.keys import MAX_ID_BYTES, StreamKeys
from streamlib.read_model import Exact, Index, Ordered, Prefix, ReadModel
from streamlib.redisio.rows import RowCodec, kinds_of

_EXACT_TYPES = (
    inspect.StrType, inspect.IntType, inspect.BoolType, inspect.FloatType, inspect.DecimalType,
    inspect.DateType, inspect.DateTimeType, inspect.TimeType, inspect.TimeDeltaType, inspect.UUIDType,
    inspect.EnumType, inspect.LiteralType, inspect.BytesType,
)  # fmt: skip
_NUMBERS = (inspect.IntType, inspect.FloatType, inspect.DecimalType)
_EXACT_SECONDS = 2.0**32  # below (year 2106), neighbouring microseconds have scores of their own
_NONE = "\x00none"
PAGING = frozenset({"limit", "after"})
FIRST = 1
"""The generation that a view begins with."""


class ViewKeys(Struct, frozen=True):
    """The keys of one generation of a view on one partition."""

    stream: StreamKeys
    view: str
    generation: int

    @property
    def group(self) -> str:
        return group_of(self.view, self.generation)

    @property
    def head(self) -> str:
        return self.stream.view(self.view, self.generation)

    def row(self, row_id: str) -> str:
        return self.stream.row(self.view, self.generation, row_id)

    def rows(self, row_ids: Iterable[str]) -> list[str]:
        """The same for many, in their order."""
        before = self.row("")
        return [before + row_id for row_id in row_ids]

    @property
    def all_rows(self) -> str:
        return self.stream.all_rows(self.view, self.generation)

    def exact(self, field: str, text: str) -> str:
        return self.stream.exact(self.view, self.generation, field, text)

    def exact_keys(self, field: str) -> Callable[[str], str]:
        """The same for many texts of one field."""
        return self.exact(field, "").__add__

    def sorted_by(self, field: str) -> str:
        return self.stream.sorted_by(self.view, self.generation, field)


GENERATION = re.compile(r"\.g\d+$")
"""How the group of a later generation ends."""


def group_of(view: str, generation: int) -> str:
    """The group that a generation reads with: its place in the streams, owners, idempotency keys and dead letters."""
    return view if generation == FIRST else f"{view}.g{generation}"


class Indexes:
    """The declared indexes of one read model. Raises DeclarationError for what cannot be indexed so."""

    def __init__(self, codec: RowCodec[Any], indexes: Sequence[Index]) -> None:
        self.exact = _named(codec, indexes, Exact)
        for field in set(self.exact) & PAGING:
            raise DeclarationError(
                f"Exact({field!r}) on {codec.cls.__name__}: limit= and after= of find() are for paging; "
                "call the field something else"
            )
        self.ordered = _named(codec, indexes, Ordered)
        self.prefix = _named(codec, indexes, Prefix)
        self._mixed = {field for field in self.ordered if _is_mixed(codec.fields[field].type)}
        both = sorted(set(self.ordered) & set(self.prefix))
        if both:
            raise DeclarationError(f"{codec.cls.__name__}.{both[0]} has both Ordered and Prefix; choose one")

    def is_mixed(self, field: str) -> bool:
        """Whether an Ordered field may hold Decimals beside other numbers."""
        return field in self._mixed

    def inexact(self, row: ReadModel) -> tuple[str, ...]:
        """The Ordered fields in which this row's value may share its score with another value."""
        return tuple(
            field
            for field in self.ordered
            if (value := getattr(row, field)) is not None and (field in self._mixed or not is_plain(value))
        )


def exact_text(value: Any) -> str:
    """The text that stands for a value in the key of its Exact index: one text for equal values."""
    if type(value) is str and value.isascii() and len(value) <= MAX_ID_BYTES and value[:1] != "\x00":
        return value
    if value is None:
        return _NONE
    if isinstance(value, str) and type(value) is str:
        text = value
    elif isinstance(value, Decimal):
        text = str(Context(prec=max(len(value.as_tuple().digits), 1)).normalize(value)) if value else "0"
    elif isinstance(value, float):
        text = repr(value or 0.0)
    elif isinstance(value, datetime):
        text = _aware(value).isoformat()
    else:
        raw = msgspec.json.encode(value).decode()
        text = msgspec.json.decode(raw) if raw.startswith('"') else raw
    if text.startswith("\x00") or len(text.encode()) > MAX_ID_BYTES:
        return "\x00" + hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    return text


def score(value: Any) -> float:
    """The score of a value in its Ordered index: a greater value never has a lesser score."""
    if isinstance(value, datetime):
        return _aware(value).timestamp()
    if isinstance(value, date):
        return float(value.toordinal())
    try:
        return float(value)
    except OverflowError:  # whole numbers past the largest double; Decimals become infinity by themselves
        return float("inf") if value > 0 else float("-inf")


def order_key(value: Any) -> Any:
    """What to compare instead of a value, so that all values of an Ordered field compare exactly."""
    return _aware(value) if isinstance(value, datetime) else value


def is_plain(value: Any) -> bool:
    """Whether a value is the one that its score stands for; two plain values of one kind never share a score."""
    found = score(value)
    if isinstance(value, Decimal):
        return math.isfinite(found) and value == Decimal(repr(found))
    if isinstance(value, datetime):
        return abs(found) < _EXACT_SECONDS
    return isinstance(value, date) or bool(value == found)


def prefix_text(text: str) -> str:
    """NFC and case-folded."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def prefix_member(text: str, row_id: str) -> bytes:
    return f"{prefix_text(text)}\x00{row_id}".encode()


def _aware(value: datetime) -> datetime:
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _is_mixed(field_type: Any) -> bool:
    """Decimals beside other numbers: 0.1 the Decimal and 0.1 the float differ and share a score."""
    kinds = [kind for kind in kinds_of(field_type) if not isinstance(kind, inspect.NoneType)]
    return len(kinds) > 1 and any(isinstance(kind, inspect.DecimalType) for kind in kinds)


def _named(codec: RowCodec[Any], indexes: Sequence[Index], kind: type[Index]) -> tuple[str, ...]:
    """The fields that have an index of this kind, each checked to be fit for it."""
    fields = [index.field for index in indexes if isinstance(index, kind)]
    for field in fields:
        label = f"{kind.__name__}({field!r}) on {codec.cls.__name__}"
        if field not in codec.fields:
            raise DeclarationError(f"{label}: no such field; it has {', '.join(codec.fields)}")
        if fields.count(field) > 1:
            raise DeclarationError(f"{label} is declared twice")
        kinds = [one for one in kinds_of(codec.fields[field].type) if not isinstance(one, inspect.NoneType)]
        if not kinds or not _fits(kind, kinds):
            raise DeclarationError(f"{label}: {_WANTED[kind]}")
    return tuple(fields)


_WANTED: dict[type[Index], str] = {
    Exact: "the field must hold texts, numbers, truth values, enums, dates, times, UUIDs or bytes",
    Ordered: "the field must hold numbers, or dates, or datetimes (or None)",
    Prefix: "the field must hold texts (or None)",
}


def _fits(kind: type[Index], kinds: list[inspect.Type]) -> bool:
    if kind is Exact:
        return all(isinstance(one, _EXACT_TYPES) for one in kinds)
    if kind is Prefix:
        return all(isinstance(one, inspect.StrType) for one in kinds)
    if all(isinstance(one, _NUMBERS) for one in kinds):
        return True
    return len(kinds) == 1 and isinstance(kinds[0], inspect.DateType | inspect.DateTimeType)


def unknown_index(field: str, kind: type[Index], have: tuple[str, ...]) -> SchemaError:
    """The error for a question that no index answers."""
    known = ", ".join(have) or "none"
    return SchemaError(f"{field!r} has no {kind.__name__} index; fields that have one: {known}")
