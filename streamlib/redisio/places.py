"""Where a row stands in the indexes of one generation on one partition, and what a change of it does to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, Protocol

from msgspec import Struct

from streamlib.read_model import ReadModel
from streamlib.redisio.commits import IndexChange
from streamlib.redisio.indexes import Indexes, ViewKeys, exact_text, prefix_member, score
from streamlib.redisio.rows import Raws, RowCodec

Place = str | bytes | float | None
"""What tells where a row stands in one index: the text in an Exact index's key, the score in an Ordered one (in bytes:
a number as text), the member in a Prefix one; None where it does not stand."""

Changes = dict[str, IndexChange]

_BY_MEMBER = 0.0
"""The score of every member in indexes that are sorted by their members."""
_EXACT_CHARS = 15
"""Numbers written in so many characters, without exponent, have doubles of their own, and these are written so too."""


class Stored(Struct, frozen=True, gc=False):
    """A row as Redis has it, and where its indexes have it. One that does not exist has no values.

    `places` has one for each index; `inexact` names the Ordered fields in which other values may share its score. `row`
    may be used instead of reading the values anew, if there is one.
    """

    raws: Raws
    places: Sequence[Place]
    inexact: tuple[str, ...] = ()
    row: Any = None

    @property
    def exists(self) -> bool:
        return bool(self.raws)


NOTHING = Stored((), ())
"""A row that does not exist."""


class Shelf(Protocol):
    """One index."""

    def find(self, value: Any, raw: bytes | None, row_id: str) -> Place:
        """The place of a value that is stored so."""

    def move(self, changes: Changes, member: bytes, old: Place, new: Place) -> None:
        """Note that a row, which has this member where that is not its place, goes from one place to another."""


class Shelves:
    """The indexes of a read model under the keys that they have in one generation on one partition."""

    def __init__(self, codec: RowCodec[Any], indexes: Indexes, keys: ViewKeys) -> None:
        self._indexes = indexes
        self._all_rows = keys.all_rows
        shelves: list[tuple[str, Shelf]] = [(field, _Exact(keys.exact_keys(field))) for field in indexes.exact]
        shelves += [(field, _Ordered(keys.sorted_by(field), indexes.is_mixed(field))) for field in indexes.ordered]
        shelves += [(field, _Prefix(keys.sorted_by(field))) for field in indexes.prefix]
        order = list(codec.fields)
        self._finders = [(field, order.index(field), shelf.find) for field, shelf in shelves]
        self._movers = [shelf.move for _, shelf in shelves]
        self._nowhere: Sequence[Place] = [None] * len(shelves)
        self._no_raws: Raws = (None,) * len(order)

    def stored(self, row_id: str, row: ReadModel, raws: Raws, before: Stored, kept: ReadModel | None) -> Stored:
        """The row in its places; where a value is as it was `before`, that is where it stood."""
        was, stood, inexact = before.raws or self._no_raws, before.places, before.inexact
        places: list[Place] = []
        for field, n, find in self._finders:
            raw = raws[n]
            if raw is not None and raw == was[n]:
                places.append(stood[len(places)])
                continue
            place = find(getattr(row, field), raw, row_id)
            places.append(place)
            if inexact or type(place) is float:
                inexact = self._indexes.inexact(row)
        return Stored(raws, places, inexact, kept)

    def move(self, changes: Changes, row_id: str, before: Stored, after: Stored) -> None:
        """Note what it does to the indexes that a row goes from its places before to those after."""
        member = row_id.encode()
        if after.exists and not before.exists:
            _set(change_of(changes, self._all_rows), member, _BY_MEMBER)
        elif before.exists and not after.exists:
            change_of(changes, self._all_rows).removed.append(member)
        olds, news = before.places or self._nowhere, after.places or self._nowhere
        for move, old, new in zip(self._movers, olds, news, strict=True):
            if old != new:
                move(changes, member, old, new)


def change_of(changes: Changes, key: str) -> IndexChange:
    """What happens to the index of this key."""
    change = changes.get(key)
    if change is None:
        change = changes[key] = IndexChange([], [], [])
    return change


def _set(change: IndexChange, member: bytes, score: float | bytes) -> None:
    change.members.append(member)
    change.scores.append(score)


class _Exact:
    def __init__(self, key_of: Callable[[str], str]) -> None:
        self._key_of = key_of

    def find(self, value: Any, raw: bytes | None, row_id: str) -> Place:
        return exact_text(value)

    def move(self, changes: Changes, member: bytes, old: Any, new: Any) -> None:
        if old is not None:
            change_of(changes, self._key_of(old)).removed.append(member)
        if new is not None:
            _set(change_of(changes, self._key_of(new)), member, _BY_MEMBER)


class _Ordered:
    def __init__(self, key: str, is_mixed: bool) -> None:
        self._key = key
        self._is_mixed = is_mixed

    def find(self, value: Any, raw: bytes | None, row_id: str) -> Place:
        if value is None:
            return None
        if raw is not None and not self._is_mixed and type(value) in (Decimal, int, float):
            text = raw.strip(b'"')
            if len(text) <= _EXACT_CHARS and b"E" not in text and b"e" not in text:
                return text
        return score(value)

    def move(self, changes: Changes, member: bytes, old: Any, new: Any) -> None:
        if new is None:
            change_of(changes, self._key).removed.append(member)
        else:
            _set(change_of(changes, self._key), member, new)


class _Prefix:
    def __init__(self, key: str) -> None:
        self._key = key

    def find(self, value: Any, raw: bytes | None, row_id: str) -> Place:
        return None if value is None else prefix_member(value, row_id)

    def move(self, changes: Changes, member: bytes, old: Any, new: Any) -> None:
        change = change_of(changes, self._key)
        if old is not None:
            change.removed.append(old)
        if new is not None:
            _set(change, new, _BY_MEMBER)
