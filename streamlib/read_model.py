"""Read models as declared: the base class of rows, and the indexes by which rows are found."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar, dataclass_transform

from msgspec import Struct, StructMeta, field

R = TypeVar("R")

DEFAULT_LIMIT = 100
MAX_LIMIT = 10_000


class _ReadModelMeta(StructMeta):
    """Makes every subclass frozen and keyword-only."""

    def __new__(mcls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **options: Any) -> Any:
        return super().__new__(mcls, name, bases, namespace, **{"frozen": True, "kw_only": True, **options})


# On the class, not on its metaclass: type checkers take the nearest, and msgspec's Struct carries one too.
@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
class ReadModel(Struct, metaclass=_ReadModelMeta, frozen=True, kw_only=True):
    """One row of a projection. Subclasses are frozen, keyword-only msgspec Structs.

    Each field is stored by itself. Every type that msgspec can store as JSON comes back as it was, `Decimal`,
    `None` and nested Structs included; what is annotated `Any` comes back as JSON knows it. NaN and infinity are
    refused.
    """


class Page(list[R]):
    """The rows of one page, in order. `cursor` is None when there are no more; else the same question, asked again
    with `after=page.cursor`, goes on behind the last row."""

    __slots__ = ("cursor",)

    def __init__(self, rows: Iterable[R] = (), cursor: str | None = None) -> None:
        super().__init__(rows)
        self.cursor = cursor


class Exact(Struct, frozen=True):
    """Find and count rows by equality: texts, numbers, truth values, enums, dates, UUIDs, bytes, and None."""

    field: str


class Ordered(Struct, frozen=True):
    """Find rows between two values, in order: numbers, dates or datetimes.

    Rows whose value is None are left out. A datetime without a time zone counts as UTC.
    """

    field: str


class Prefix(Struct, frozen=True):
    """Find rows whose text starts so, whatever its case (NFC, case-folded). Rows with None are left out."""

    field: str


Index = Exact | Ordered | Prefix
