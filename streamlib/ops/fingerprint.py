"""A short text that changes when the declaration of a projection does: rows, indexes, key, the code of its folds."""

from __future__ import annotations

import hashlib
from types import CodeType
from typing import Any

from streamlib.event import event_type
from streamlib.worker.projection import Projection


def fingerprint(projection: Projection[Any], source: str) -> str:
    """What a half-built generation was begun with; one that was begun with something else cannot be gone on with.

    Of a fold it takes the code that was compiled, not what that calls, and not where it stands: another version of
    Python is another text.
    """
    indexes = projection.indexes
    parts = [
        source,
        projection.key,
        projection.on_error,
        *(f"{name}:{codec.type!r}" for name, codec in projection.codec.fields.items()),
        *(f"{kind}:{','.join(getattr(indexes, kind))}" for kind in ("exact", "ordered", "prefix")),
        *sorted(f"{event_type(cls)}:{_told(_code_of(fold))}" for cls, fold in projection.folds.items()),
    ]
    return hashlib.blake2b("\n".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _code_of(fold: Any) -> Any:
    return getattr(fold, "__code__", None) or getattr(type(fold).__call__, "__code__", None)


def _told(value: Any) -> str:
    """The same text in every process: sets have no order of their own."""
    if isinstance(value, CodeType):
        return f"<{value.co_code.hex()} {value.co_names} {value.co_varnames} {[_told(one) for one in value.co_consts]}>"
    if isinstance(value, frozenset):
        return f"{{{sorted(map(_told, value))}}}"
    if isinstance(value, tuple):
        return f"({[_told(one) for one in value]})"
    return repr(value)
