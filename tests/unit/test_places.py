"""A row stands in each index once, wherever it comes from."""

import datetime as dt
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from streamlib.keys import StreamKeys
from streamlib.read_model import Exact, Ordered, Prefix, ReadModel
from streamlib.redisio.commits import IndexChange
from streamlib.redisio.indexes import Indexes, ViewKeys
from streamlib.redisio.places import NOTHING, Changes, Shelves, Stored
from streamlib.redisio.rows import RowCodec
from tests.helpers.index_entries import entries

texts = st.text(st.characters(exclude_categories=["Cs"]))
decimals = st.decimals(-(10**300), 10**300, allow_nan=False, allow_infinity=False)
floats = st.floats(allow_nan=False, allow_infinity=False)
ints = st.integers(-(2**63), 2**64 - 1)
moments = st.datetimes(timezones=st.one_of(st.none(), st.just(dt.UTC), st.just(dt.timezone(dt.timedelta(hours=5)))))


def test_one_member_per_row_and_index() -> None:
    class Item(ReadModel):
        name: str | None
        price: Decimal | None

    indexes = Indexes(RowCodec(Item), [Exact("name"), Ordered("price"), Exact("price"), Prefix("name")])
    assert placed(indexes, "r", Item(name="Ärm", price=Decimal("1.50"))) == {
        "{t}:view:v:1:by:name:Ärm": (b"r", 0.0),
        "{t}:view:v:1:by:price": (b"r", 1.5),
        "{t}:view:v:1:by:price:1.5": (b"r", 0.0),
        "{t}:view:v:1:by:name": ("ärm\x00r".encode(), 0.0),
        "{t}:view:v:1:rows": (b"r", 0.0),
    }
    assert set(placed(indexes, "r", Item(name=None, price=None))) == {
        "{t}:view:v:1:rows",
        "{t}:view:v:1:by:name:\x00none",
        "{t}:view:v:1:by:price:\x00none",
    }


def shelves_of(indexes: Indexes, cls: type[ReadModel]) -> Shelves:
    return Shelves(RowCodec(cls), indexes, ViewKeys(StreamKeys("t"), "v", 1))


def shelved(indexes: Indexes, row_id: str, row: ReadModel, before: Stored = NOTHING) -> Stored:
    raws = tuple(RowCodec(type(row)).encode(row).values())
    return shelves_of(indexes, type(row)).stored(row_id, row, raws, before, None)


def placed(indexes: Indexes, row_id: str, row: ReadModel) -> dict[str, tuple[bytes, float]]:
    changes: Changes = {}
    shelves_of(indexes, type(row)).move(changes, row_id, NOTHING, shelved(indexes, row_id, row))
    assert not any(change.removed for change in changes.values())
    return {key: entry for key, change in changes.items() for entry in set_by(change)}


def set_by(change: IndexChange) -> list[tuple[bytes, float]]:
    return [(member, float(score)) for member, score in zip(change.members, change.scores, strict=True)]


class Ware(ReadModel):
    label: str | None
    kind: int
    price: Decimal | None
    weight: float
    made: dt.datetime | None
    day: dt.date
    stock: int
    worth: int | Decimal


WARES = Indexes(
    RowCodec(Ware),
    [
        Exact("kind"),
        Exact("price"),
        Prefix("label"),
        *map(Ordered, ("price", "weight", "made", "day", "stock", "worth")),
    ],
)
short_decimals = st.decimals(-1000, 1000, allow_nan=False, places=2)
wares = st.builds(
    Ware,
    label=st.none() | texts,
    kind=st.integers(0, 2),
    price=st.none() | short_decimals | decimals,
    weight=floats,
    made=st.none() | moments,
    day=st.dates(),
    stock=ints | st.integers(-5, 5),
    worth=ints | decimals,
)


@given(wares, st.none() | wares)
def test_a_row_that_changes_stands_where_it_would_if_it_were_new(before: Ware, after: Ware | None) -> None:
    keys = ViewKeys(StreamKeys("t"), "v", 1)
    was = shelved(WARES, "r", before)
    stored = NOTHING if after is None else shelved(WARES, "r", after, was)
    stands = placed(WARES, "r", before)
    assert stands == entries(WARES, keys, "r", before)
    changes: Changes = {}
    shelves_of(WARES, Ware).move(changes, "r", was, stored)
    for key, change in changes.items():
        for member in change.removed:
            assert stands.pop(key)[0] == member
        for entry in set_by(change):
            stands[key] = entry
    assert stands == ({} if after is None else entries(WARES, keys, "r", after))
    assert stored.inexact == (() if after is None else WARES.inexact(after))
