"""A row is used instead of being read anew only where reading it would give the same."""

import datetime as dt
import enum
import math
import uuid
from decimal import Decimal
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlib.errors import SchemaError
from streamlib.keys import Keys
from streamlib.read_model import Exact, Index, Ordered, Prefix, ReadModel
from streamlib.redisio.indexes import Indexes, ViewKeys
from streamlib.redisio.places import NOTHING, Shelves
from streamlib.redisio.rows import PLAIN_CHARS, RowCodec

texts = st.text(st.characters(exclude_categories=["Cs"]))
decimals = st.decimals(-(10**300), 10**300, allow_nan=False, allow_infinity=False)
floats = st.floats(allow_nan=False, allow_infinity=False)
ints = st.integers(-(2**63), 2**64 - 1)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Simple(ReadModel):
    text: str
    maybe: str | None
    number: int
    ratio: float
    amount: Decimal | None
    flag: bool
    day: dt.date
    moment: dt.datetime
    ident: uuid.UUID
    colour: Colour
    level: Level
    kind: Literal["a", "b"]


simple_codec = RowCodec(Simple)
indexes: list[Index] = [
    *(Exact(name) for name in Simple.__struct_fields__),
    Ordered("number"),
    Ordered("ratio"),
    Prefix("text"),
]
shelves = Shelves(
    simple_codec, Indexes(simple_codec, indexes), ViewKeys(Keys().stream("topic", 0, 1), view="view", generation=1)
)
simple_rows = st.builds(
    Simple,
    text=texts,
    maybe=st.none() | texts,
    number=ints,
    ratio=floats,
    amount=st.none() | decimals,
    flag=st.booleans(),
    day=st.dates(),
    moment=st.datetimes(timezones=st.one_of(st.none(), st.just(dt.UTC))).map(lambda moment: moment.replace(fold=0)),
    ident=st.uuids(),
    colour=st.sampled_from(Colour),
    level=st.sampled_from(Level),
    kind=st.sampled_from(["a", "b"]),
)


@given(simple_rows)
def test_a_simple_row_is_used_instead_of_reading_it(row: Simple) -> None:
    stored, kept = simple_codec.write(row)
    assert stored == tuple(simple_codec.encode(row).values())
    assert kept is row
    is_small = max(len(row.text), len(row.maybe or "")) <= PLAIN_CHARS and row.number < 1 << 63
    assert simple_codec.is_plain(row) == (
        is_small and abs(row.amount or Decimal(0)) < 10**30 and abs(row.ratio) < 10**30
    )
    back = simple_codec.read(stored, "row")
    assert [repr(getattr(back, name)) for name in row.__struct_fields__] == [
        repr(getattr(row, name)) for name in row.__struct_fields__
    ]


NOON = dt.datetime.fromisoformat("2024-01-01T12:00:00")
KEPT = Simple(
    text="t", maybe=None, number=1, ratio=1.5, amount=None, flag=True, day=NOON.date(), moment=NOON,
    ident=uuid.UUID(int=1), colour=Colour.RED, level=Level.LOW, kind="a",
)  # fmt: skip
AWAY = dt.datetime(2024, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=5)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("text", Colour.RED.value.__class__.__new__(type("Text", (str,), {}), "t")),
        ("ratio", 1),
        ("number", Level.LOW),
        ("moment", AWAY),
        ("moment", NOON.replace(fold=1)),
    ],
    ids=repr,
)
def test_a_row_that_would_come_back_otherwise_is_read_anew(field: str, value: Any) -> None:
    row = msgspec.structs.replace(KEPT, **{field: value})
    stored, kept = simple_codec.write(row)
    assert stored == tuple(simple_codec.encode(row).values())
    assert kept is None
    assert not simple_codec.is_plain(row)


@pytest.mark.parametrize(
    ("field", "value"),
    [("ratio", math.nan), ("amount", Decimal("NaN")), ("text", "\ud800"), ("maybe", "\ud800"), ("number", True),
     ("kind", "c"), ("flag", 1), ("day", AWAY)],
    ids=repr,
)  # fmt: skip
def test_a_simple_row_that_would_not_come_back_is_refused_by_name(field: str, value: Any) -> None:
    row = msgspec.structs.replace(KEPT, **{field: value})
    with pytest.raises(SchemaError, match=f"Simple.{field}"):
        simple_codec.write(row)
    assert simple_codec.kept(row) is None
    assert not simple_codec.is_plain(row)


rows_of_any_values = st.builds(
    Simple,
    text=texts | st.text(min_size=150),
    maybe=st.none() | st.text(),
    number=st.integers(),
    ratio=st.floats(),
    amount=st.none() | st.decimals(),
    flag=st.booleans(),
    day=st.dates(),
    moment=st.datetimes(timezones=st.one_of(st.none(), st.just(dt.UTC), st.timezones())),
    ident=st.uuids(),
    colour=st.sampled_from(Colour),
    level=st.sampled_from(Level),
    kind=st.sampled_from(["a", "b", "c"]),
)


@given(rows_of_any_values)
def test_a_row_that_counts_as_plain_is_stored_as_it_is_and_stands_in_every_index(row: Simple) -> None:
    if simple_codec.is_plain(row):
        raws, kept = simple_codec.write(row)
        assert kept is row
        assert None not in shelves.stored("r", row, raws, NOTHING, kept).places


@pytest.mark.parametrize("text", ["x" * (PLAIN_CHARS + 1), "\u00e9" * (PLAIN_CHARS + 1)], ids=["ascii", "other"])
def test_a_long_text_makes_no_plain_row(text: str) -> None:
    assert simple_codec.is_plain(msgspec.structs.replace(KEPT, text=text[:-1]))
    assert not simple_codec.is_plain(msgspec.structs.replace(KEPT, text=text))


@pytest.mark.parametrize("other", [None, "row", 1, Colour.RED])
def test_what_is_no_row_is_no_plain_row(other: Any) -> None:
    assert not simple_codec.is_plain(other)


def test_a_row_that_runs_code_when_it_is_made_is_read_anew() -> None:
    class Counting(ReadModel):
        n: int

        def __post_init__(self) -> None:
            """Runs when a row is read, too."""

    assert RowCodec(Counting).write(Counting(n=1)) == ((b"1",), None)
    assert not RowCodec(Counting).is_plain(Counting(n=1))
