"""NaN and infinity, which JSON would store as null: which classes can hold them, and whether a value does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from functools import cache
from typing import Any

import msgspec
from msgspec import inspect

from streamlib.errors import PublishError

_NEVER_NAN = frozenset({str, int, bool, bytes, type(None)})


def can_hold_nan(cls: Any) -> bool:
    """Whether a value of this type can hold a float or Decimal anywhere, so also a NaN or an infinity."""
    return _holds_nan(inspect.type_info(cls), set())


def _holds_nan(node: Any, seen: set[Any]) -> bool:
    if isinstance(node, inspect.FloatType | inspect.DecimalType | inspect.AnyType | inspect.CustomType):
        return True
    if isinstance(node, inspect.StructType | inspect.DataclassType | inspect.TypedDictType):
        if node.cls in seen:
            return False
        seen.add(node.cls)
        return any(_holds_nan(field.type, seen) for field in node.fields)
    parts: list[Any] = []
    for name in ("item_type", "key_type", "value_type", "type", "types", "item_types"):
        part = getattr(node, name, ())
        parts += part if isinstance(part, tuple) else (part,)
    return any(_holds_nan(part, seen) for part in parts if isinstance(part, inspect.Type))


@cache
def risky_fields(cls: type[msgspec.Struct]) -> tuple[str, ...]:
    """The fields to look into: events have many texts and few numbers."""
    fields = getattr(inspect.type_info(cls), "fields", ())
    return tuple(field.name for field in fields if _holds_nan(field.type, set()))


def decimal_fields(cls: type[msgspec.Struct]) -> tuple[str, ...]:
    """The fields that hold a Decimal and nothing else."""
    fields = getattr(inspect.type_info(cls), "fields", ())
    return tuple(field.name for field in fields if isinstance(field.type, inspect.DecimalType))


def holds_nan(value: Any) -> bool:
    """Whether a NaN or an infinity stands anywhere in `value`; `refuse_nan` tells where."""
    kind = type(value)
    if kind in _NEVER_NAN:
        return False
    if isinstance(value, Decimal):
        return not value.is_finite()
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, msgspec.Struct):
        return any(holds_nan(getattr(value, name)) for name in risky_fields(type(value)))
    if isinstance(value, dict):
        return any(map(holds_nan, value.values()))
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, str | bytes):
        return any(map(holds_nan, value))
    return False


def refuse_nan(value: Any, label: str) -> None:
    """Raise PublishError if a NaN or an infinity stands anywhere in `value`: JSON would store it as null."""
    if type(value) in _NEVER_NAN:
        return
    if isinstance(value, float | Decimal):
        if not (value.is_finite() if isinstance(value, Decimal) else math.isfinite(value)):
            raise PublishError(f"{label} is {value}: NaN and infinity cannot be stored")
    elif isinstance(value, msgspec.Struct):
        for name in risky_fields(type(value)):
            refuse_nan(getattr(value, name), f"{label}.{name}")
    elif isinstance(value, dict):
        for key, item in value.items():
            refuse_nan(item, f"{label}[{key!r}]")
    elif isinstance(value, Sequence | set | frozenset) and not isinstance(value, str | bytes):
        for item in value:
            refuse_nan(item, f"{label}[]")
