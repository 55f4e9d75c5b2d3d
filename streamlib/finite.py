"""What no event may hold: NaN and infinity, which JSON would store as null, numbers that a few bytes make as long as a
book, and nesting without end. Which classes can hold them, and whether a value does."""

from __future__ import annotations

import datetime
import math
import uuid
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from functools import cache
from typing import Any

import msgspec
from msgspec import inspect

from streamlib.errors import PublishError

MAX_DEPTH = 64
"""Lists, maps and structs inside one another, the event itself among them."""
MAX_EXPONENT = 6_144
"""Of a Decimal, either way, as in decimal128: `int` and `format` of 1e999999999 write a thousand million digits."""

_NEVER_NAN = frozenset({
    str, int, bool, bytes, type(None), datetime.datetime, datetime.date, datetime.time, datetime.timedelta, uuid.UUID,
    msgspec.msgpack.Ext,
})  # fmt: skip
_NUMBERS = Decimal, float
_ANY_NUMBER = inspect.FloatType, inspect.DecimalType, inspect.AnyType, inspect.CustomType


class TooDeep(ValueError):
    """Lists, maps and structs stand more than MAX_DEPTH deep in one another."""

    def __init__(self) -> None:
        super().__init__(f"nested more than {MAX_DEPTH} deep")


def can_hold_nan(cls: Any) -> bool:
    """Whether a value of this type can hold a float or Decimal anywhere, so also a NaN or an infinity."""
    return _holds(inspect.type_info(cls), _ANY_NUMBER, set())


def _holds(node: Any, kinds: tuple[Any, ...], seen: set[Any]) -> bool:
    if isinstance(node, kinds):
        return True
    if _is_record(node):
        if node.cls in seen:
            return False
        seen.add(node.cls)
    return any(_holds(part, kinds, seen) for part in _parts(node))


def _nests(node: Any, above: frozenset[Any]) -> bool:
    """Whether values of this type may nest without end."""
    if _is_record(node):
        if node.cls in above:
            return True
        above |= {node.cls}
    return isinstance(node, inspect.AnyType) or any(_nests(part, above) for part in _parts(node))


def _is_record(node: Any) -> bool:
    return isinstance(node, inspect.StructType | inspect.DataclassType | inspect.TypedDictType)


def _parts(node: Any) -> list[Any]:
    """The types that a type is made of."""
    if _is_record(node):
        return [field.type for field in node.fields]
    parts: list[Any] = []
    for name in ("item_type", "key_type", "value_type", "type", "types", "item_types"):
        part = getattr(node, name, ())
        parts += part if isinstance(part, tuple) else (part,)
    return [part for part in parts if isinstance(part, inspect.Type)]


@cache
def risky_fields(cls: type[msgspec.Struct]) -> tuple[str, ...]:
    """The fields to look into: events have many texts and few numbers."""
    return _fields(cls, lambda kind: _holds(kind, _ANY_NUMBER, set()) or _nests(kind, frozenset({cls})))


@cache
def fields_with_decimals(cls: type[msgspec.Struct]) -> tuple[str, ...]:
    """Those that may hold such a number after they were read from JSON: there NaN is a text, and only Decimals are."""
    return _fields(cls, lambda kind: _holds(kind, (inspect.DecimalType,), set()))


@cache
def nesting_fields(cls: type[msgspec.Struct]) -> tuple[str, ...]:
    """Those that may nest without end: they hold anything, or what they stand in."""
    return _fields(cls, lambda kind: _nests(kind, frozenset({cls})))


def decimal_fields(cls: type[msgspec.Struct]) -> tuple[str, ...]:
    """The fields that hold a Decimal and nothing else."""
    return _fields(cls, lambda kind: isinstance(kind, inspect.DecimalType))


def _fields(cls: Any, fits: Callable[[Any], bool]) -> tuple[str, ...]:
    found: Any = getattr(inspect.type_info(cls), "fields", ())
    return tuple(field.name for field in found if fits(field.type))


def _is_unfit(number: Decimal) -> bool:
    """NaN, infinite, or of an exponent beyond MAX_EXPONENT."""
    return not number.is_finite() or not -MAX_EXPONENT <= number.adjusted() <= MAX_EXPONENT


def holds_nan(value: Any) -> bool:
    """Whether a number that cannot be stored stands anywhere in a field's value; `refuse_nan` tells where.

    Raises TooDeep.
    """
    kind = type(value)
    if kind in _NEVER_NAN:
        return False
    if kind is float:
        return not math.isfinite(value)
    return _is_unfit(value) if kind is Decimal else _search((value,), MAX_DEPTH)


def refuse_nan(value: Any, label: str) -> None:
    """Raise PublishError, with the way to it, if a number that cannot be stored stands anywhere in `value`: an event, a
    field or plain data. Raises TooDeep."""
    if _search((value,), MAX_DEPTH + 1):
        way, number = _way_to(value)
        finite = isinstance(number, Decimal) and number.is_finite()
        what = f"exponents beyond {MAX_EXPONENT}" if finite else "NaN and infinity"
        raise PublishError(f"{label}{way} is {number:.6}: {what} cannot be stored")


def _search(values: Iterable[Any], left: int) -> bool:
    """Depth first, and never deeper than `left`: so it ends in what holds itself, too."""
    if not left:
        raise TooDeep
    for value in values:
        kind = type(value)
        if kind in _NEVER_NAN:
            continue
        if kind is float:
            if not math.isfinite(value):
                return True
        elif kind is list or kind is tuple:
            if value and _search(value, left - 1):
                return True
        elif kind is dict:
            if value and _search(value.values(), left - 1):
                return True
        elif isinstance(value, _NUMBERS):
            if not math.isfinite(value) if isinstance(value, float) else _is_unfit(value):
                return True
        elif (inside := _inside(value)) and _search([item for _, item in inside], left - 1):
            return True
    return False


def _inside(value: Any) -> list[tuple[str, Any]]:
    """What may hold a number or nest in a value, each with the words for the way there."""
    if isinstance(value, msgspec.Struct):
        return [(f".{name}", getattr(value, name)) for name in risky_fields(type(value))]
    if isinstance(value, dict):
        return [(f"[{str(key)[:40]!r}]", item) for key, item in value.items()]
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, str | bytes):
        return [("[]", item) for item in value]
    return []


def _way_to(value: Any) -> tuple[str, Any]:
    """The words for the way to the first such number in a value that holds one, and the number."""
    way = ""
    while not isinstance(value, float | Decimal):
        step, value = next((step, item) for step, item in _inside(value) if _search((item,), MAX_DEPTH + 1))
        way += step
    return way, value
