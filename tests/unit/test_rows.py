"""Rows survive the way to a hash and back for every type, and what would not come back is refused."""

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

from streamlib.errors import DeclarationError, SchemaError
from streamlib.read_model import Exact, Ordered, Prefix, ReadModel
from streamlib.redisio.indexes import Indexes, exact_text, is_plain, order_key, prefix_text, score
from streamlib.redisio.rows import RowCodec, check_row_id


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Inner(msgspec.Struct, frozen=True):
    amount: Decimal
    tags: tuple[str, ...] = ()


class Everything(ReadModel):
    text: str
    maybe: str | None
    number: int
    ratio: float
    amount: Decimal
    flag: bool
    day: dt.date
    moment: dt.datetime
    clock: dt.time
    span: dt.timedelta
    ident: uuid.UUID
    raw: bytes
    colour: Colour
    level: Level
    kind: Literal["a", "b"]
    inner: Inner | None
    amounts: dict[str, Decimal]
    days: frozenset[dt.date]
    pairs: list[tuple[int, float]]


texts = st.text(st.characters(exclude_categories=["Cs"]))
decimals = st.decimals(-(10**300), 10**300, allow_nan=False, allow_infinity=False)
floats = st.floats(allow_nan=False, allow_infinity=False)
ints = st.integers(-(2**63), 2**64 - 1)
moments = st.datetimes(timezones=st.one_of(st.none(), st.just(dt.UTC), st.just(dt.timezone(dt.timedelta(hours=5)))))
rows = st.builds(
    Everything,
    text=texts,
    maybe=st.none() | texts,
    number=ints,
    ratio=floats,
    amount=decimals,
    flag=st.booleans(),
    day=st.dates(),
    moment=moments,
    clock=st.times(),
    span=st.timedeltas(dt.timedelta(days=-999), dt.timedelta(days=999)),
    ident=st.uuids(),
    raw=st.binary(),
    colour=st.sampled_from(Colour),
    level=st.sampled_from(Level),
    kind=st.sampled_from(["a", "b"]),
    inner=st.none() | st.builds(Inner, amount=decimals, tags=st.lists(texts).map(tuple)),
    amounts=st.dictionaries(texts, decimals),
    days=st.frozensets(st.dates()),
    pairs=st.lists(st.tuples(ints, floats)),
)
codec = RowCodec(Everything)


@given(rows)
def test_every_type_comes_back_as_it_was(row: Everything) -> None:
    back = codec.decode(codec.encode(row), "row")
    assert back == row
    assert str(back.amount) == str(row.amount)
    assert codec.write(row) == (tuple(codec.encode(row).values()), None)  # lists and dicts in it can be changed
    assert type(back.moment.tzinfo) is type(row.moment.tzinfo)


@given(texts)
def test_text_is_stored_as_it_is(text: str) -> None:
    class Note(ReadModel):
        text: str

    assert RowCodec(Note).encode(Note(text=text)) == {b"text": text.encode()}


BAD: list[Any] = [
    Inner(amount=Decimal("NaN")),
    Inner(amount=Decimal("Infinity")),
]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ratio", math.nan),
        ("ratio", math.inf),
        ("amount", Decimal("NaN")),
        ("amount", Decimal("-Infinity")),
        ("inner", BAD[0]),
        ("inner", BAD[1]),
        ("amounts", {"a": Decimal("sNaN")}),
        ("pairs", [(1, -math.inf)]),
        ("text", 5),
        ("text", None),
        ("text", "\ud800"),
        ("number", "5"),
        ("number", None),
        ("day", "yesterday"),
        ("amounts", {"a": object}),
    ],
    ids=repr,
)
def test_what_would_not_come_back_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(SchemaError, match=f"Everything.{field}"):
        codec.fields[field].encode(value)


def test_a_field_added_later_takes_its_default_and_a_missing_one_is_named() -> None:
    class Grown(ReadModel):
        old: str
        new: int = 7
        listed: tuple[int, ...] = ()

    class Strict(ReadModel):
        old: str
        new: int

    assert RowCodec(Grown).decode({b"old": b"x", b"gone": b"?"}, "row r") == Grown(old="x")
    with pytest.raises(SchemaError, match="row r has no field new; rebuild the view"):
        RowCodec(Strict).decode({b"old": b"x"}, "row r")
    with pytest.raises(SchemaError, match="row r does not fit Strict"):
        RowCodec(Strict).decode({b"old": b"x", b"new": b'"text"'}, "row r")


def test_rows_are_frozen_and_keyword_only() -> None:
    class Pair(ReadModel):
        a: int

    pair = Pair(a=1)
    with pytest.raises(AttributeError):
        pair.a = 2  # type: ignore[misc]
    with pytest.raises(TypeError):
        Pair(1)  # type: ignore[call-arg]


@pytest.mark.parametrize("value", [None, "", "a\x00b", "x" * 201, "\udcff"], ids=repr)
def test_row_ids_are_bounded_text(value: Any) -> None:
    with pytest.raises(SchemaError, match="label"):
        check_row_id(value, "label")


@given(decimals, decimals)
def test_a_greater_value_never_has_a_lesser_score(a: Decimal, b: Decimal) -> None:
    assert (score(a) < score(b)) <= (a < b)
    assert (a == b) <= (exact_text(a) == exact_text(b))
    assert (a == b) == (exact_text(a) == exact_text(b)) or len(str(a)) > 200


@given(moments, moments)
def test_datetimes_are_ordered_by_instant(a: dt.datetime, b: dt.datetime) -> None:
    assert (score(a) < score(b)) <= (order_key(a) < order_key(b))
    if is_plain(a) and is_plain(b):
        assert (score(a) == score(b)) == (order_key(a) == order_key(b))


@given(ints, ints)
def test_plain_whole_numbers_share_no_score(a: int, b: int) -> None:
    assert (score(a) < score(b)) <= (a < b)
    for c in (b, a + 1):
        if score(a) == score(c) and is_plain(a) and is_plain(c):
            assert a == c
    assert is_plain(2**53)
    assert not is_plain(2**53 + 1)


@given(decimals, st.integers(-30, 30))
def test_plain_decimals_share_no_score(a: Decimal, exponent: int) -> None:
    b = a + Decimal(1).scaleb(exponent)
    if score(a) == score(b) and is_plain(a) and is_plain(b):
        assert a == b
    assert is_plain(Decimal("9.90"))
    assert not is_plain(Decimal("0.10000000000000000001"))


def test_texts_of_exact_indexes_do_not_mix() -> None:
    values: list[Any] = [None, "", "none", "null", "\x00none", "a", "A", "a" * 201, "b" * 201, "true"]
    assert len({exact_text(value) for value in values}) == len(values)
    assert exact_text(Decimal("1.00")) == exact_text(Decimal(1)) == exact_text(Decimal("1E0"))
    assert exact_text(Decimal("-0.00")) == exact_text(Decimal(0))
    assert exact_text(-0.0) == exact_text(0.0)
    assert exact_text(Colour.RED) == "red"
    assert exact_text(dt.datetime(2024, 1, 1, 5, tzinfo=dt.timezone(dt.timedelta(hours=5)))) == exact_text(
        dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    )


@given(texts)
def test_prefix_text_ignores_case_and_composition(text: str) -> None:
    assert prefix_text(prefix_text(text)) == prefix_text(text)
    assert prefix_text("E\u0301COLE") == prefix_text("école")


@pytest.mark.parametrize(
    ("indexes", "why"),
    [
        ([Exact("absent")], "no such field; it has text, maybe"),
        ([Exact("inner")], "must hold texts, numbers"),
        ([Exact("pairs")], "must hold texts, numbers"),
        ([Ordered("text")], "must hold numbers"),
        ([Ordered("flag")], "must hold numbers"),
        ([Prefix("number")], "must hold texts"),
        ([Exact("text"), Exact("text")], "declared twice"),
    ],
    ids=repr,
)
def test_what_cannot_be_indexed_is_refused(indexes: list[Any], why: str) -> None:
    with pytest.raises(DeclarationError, match=why):
        Indexes(codec, indexes)


def test_a_row_class_must_be_a_read_model_with_fields() -> None:
    class Empty(ReadModel):
        pass

    with pytest.raises(DeclarationError, match="is not a subclass"):
        RowCodec(Inner)  # type: ignore[type-var]
    with pytest.raises(DeclarationError, match="has no fields"):
        RowCodec(Empty)
