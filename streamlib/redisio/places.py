"""Where a row stands in the indexes of one generation on one partition, and what a change of it does to them."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

from msgspec import Struct

from streamlib.read_model import ReadModel
from streamlib.redisio.commits import IndexChange
from streamlib.redisio.indexes import Indexes, ViewKeys, exact_text, prefix_member, score
from streamlib.redisio.rows import Raws, RowCodec

Place = tuple[str, bytes, float | bytes]
"""The key of an index, and member and score there."""

Find = Callable[[Any, bytes | None, bytes], Place | None]
"""The place of a value, given how it is stored, for the row that this member stands for."""

_BY_MEMBER = 0.0
"""The score of every member in indexes that are sorted by their members."""
_EXACT_CHARS = 15
"""Numbers written in so many characters, without exponent, have doubles of their own, and these are written so too."""


class Stored(Struct, frozen=True, gc=False):
    """A row as Redis has it, and where its indexes have it.

    `places` has one for each index, None where the row does not stand in it; `inexact` names the Ordered fields in
    which other values may share its score. `row` may be used instead of reading the values anew, if there is one.
    """

    raws: Raws
    places: tuple[Place | None, ...]
    inexact: tuple[str, ...] = ()
    row: Any = None

    @property
    def exists(self) -> bool:
        return self.places[0] is not None


class Shelves:
    """The indexes of a read model under the keys that they have in one generation on one partition."""

    def __init__(self, codec: RowCodec[Any], indexes: Indexes, keys: ViewKeys) -> None:
        self._indexes = indexes
        self._all_rows = keys.all_rows
        finders = [(field, _exact(keys.exact_keys(field))) for field in indexes.exact]
        finders += [(field, _ordered(keys.sorted_by(field), indexes.is_mixed(field))) for field in indexes.ordered]
        finders += [(field, _prefix(keys.sorted_by(field))) for field in indexes.prefix]
        order = list(codec.fields)
        self._finders = [(field, order.index(field), find) for field, find in finders]
        first = 1 + len(indexes.exact)
        self._in_order = slice(first, first + len(indexes.ordered))
        self.nothing = Stored((None,) * len(order), (None,) * (1 + len(finders)))

    def stored(self, row_id: str, row: ReadModel, raws: Raws, before: Stored, kept: ReadModel | None) -> Stored:
        """The row in its places; where a value is as it was `before`, that is where it stood."""
        was, stood = before.raws, before.places
        first = stood[0] or (self._all_rows, row_id.encode(), _BY_MEMBER)
        places: list[Place | None] = [first]
        for field, n, find in self._finders:
            raw = raws[n]
            if raw is not None and raw == was[n]:
                places.append(stood[len(places)])
            else:
                places.append(find(getattr(row, field), raw, first[1]))
        inexact: tuple[str, ...] = ()
        for place in places[self._in_order]:
            if place is not None and type(place[2]) is float:
                inexact = self._indexes.inexact(row)
        return Stored(raws, tuple(places), inexact, kept)


def move(changes: dict[str, IndexChange], before: Stored, after: Stored) -> None:
    """Note what it does to the indexes that a row goes from its places before to those after."""
    for old, new in zip(before.places, after.places, strict=True):
        if old is new or old == new:
            continue
        if old is not None and (new is None or old[0] != new[0] or old[1] != new[1]):
            _change(changes, old[0]).removed.append(old[1])
        if new is not None:
            _change(changes, new[0]).set.append(new[1:])


def _change(changes: dict[str, IndexChange], key: str) -> IndexChange:
    change = changes.get(key)
    if change is None:
        change = changes[key] = IndexChange([], [])
    return change


def _exact(key_of: Callable[[str], str]) -> Find:
    return lambda value, raw, member: (key_of(exact_text(value)), member, _BY_MEMBER)


def _prefix(key: str) -> Find:
    def find(value: Any, raw: bytes | None, member: bytes) -> Place | None:
        return None if value is None else (key, prefix_member(value, member.decode()), _BY_MEMBER)

    return find


def _ordered(key: str, is_mixed: bool) -> Find:
    def find(value: Any, raw: bytes | None, member: bytes) -> Place | None:
        if value is None:
            return None
        text = None if is_mixed else _as_written(value, raw)
        return (key, member, score(value) if text is None else text)

    return find


def _as_written(value: Any, raw: bytes | None) -> bytes | None:
    """A short number's own text, which Redis reads as its score; None for any other."""
    if raw is None or type(value) not in (Decimal, int, float):
        return None
    text = raw.strip(b'"')
    return text if len(text) <= _EXACT_CHARS and b"E" not in text and b"e" not in text else None
