"""What counts as a breaking change of an event: each rule, and that decoders agree with the rules."""

import enum
import types
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
import pytest
from msgspec import UNSET, Meta, UnsetType, field

from streamlib.event import Event, Registry
from streamlib.ops.schema import Document, export, parse, schema_of, text_of
from streamlib.ops.schema_changes import compare, differences
from streamlib.topic import TopicSpec


class Inner(msgspec.Struct):
    n: int


class InnerMore(msgspec.Struct):
    n: int
    more: str


class Cat(msgspec.Struct, tag="cat"):
    n: int


class Dog(msgspec.Struct, tag="dog"):
    n: int


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class FewerColours(enum.Enum):
    RED = "red"


class Tree(msgspec.Struct):
    value: int
    children: list["Tree"] = field(default_factory=list)


class TextTree(msgspec.Struct):
    value: str
    children: list["TextTree"] = field(default_factory=list)


def event(name: str = "Placed", version: int = 1, **fields: Any) -> type[Event]:
    """An event class: `total=int` is required, `total=(int, 3)` has a default. `options=` go to the class."""
    options = fields.pop("options", {})
    members = [(one, *spec) if isinstance(spec, tuple) else (one, spec) for one, spec in fields.items()]
    annotations = {one[0]: one[1] for one in members}
    defaults = {one[0]: one[2] for one in members if len(one) == 3}
    namespace = {"__annotations__": annotations, "__module__": __name__, **defaults}
    made: type[Event] = types.new_class(
        name, (Event,), {"version": version, **options}, lambda body: body.update(namespace)
    )
    return made


def found(old: type[Event], new: type[Event]) -> set[tuple[str, str, str]]:
    """Field, change and whom it breaks."""
    return set(differences(schema_of(old), schema_of(new)))


CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any], set[tuple[str, str, str]]]] = {
    "nothing": ({"a": int}, {"a": int}, set()),
    "the order of fields": ({"a": int, "b": str}, {"b": str, "a": int}, set()),
    "an optional field is added": ({"a": int}, {"a": int, "b": (str, "")}, {("b", "optional field added", "")}),
    "a required field is added": (
        {"a": int},
        {"a": int, "b": str},
        {("b", "required field added without a default", "stored events")},
    ),
    "a required field is removed": (
        {"a": int, "b": str},
        {"a": int},
        {("b", "field removed: older workers require it", "both")},
    ),
    "an optional field is removed": (
        {"a": int, "b": (str, "")},
        {"a": int},
        {("b", "field removed: older workers miss it", "both")},
    ),
    "a field is renamed": (
        {"a": int},
        {"b": int},
        {
            ("a", "field removed: older workers require it", "both"),
            ("b", "required field added without a default", "stored events"),
        },
    ),
    "a type is changed": ({"a": int}, {"a": str}, {("a", "type changed from integer to string", "both")}),
    "a text becomes a time": (
        {"a": str},
        {"a": datetime},
        {("a", "no longer takes string", "stored events")},
    ),
    "a time becomes a date": (
        {"a": datetime},
        {"a": date},
        {("a", "type changed from string (date-time) to string (date)", "both")},
    ),
    "a type is narrowed": ({"a": int | None}, {"a": int}, {("a", "no longer takes null", "stored events")}),
    "a type is widened": (
        {"a": int},
        {"a": int | None},
        {("a", "takes null now, which older workers refuse", "older workers")},
    ),
    "a whole number becomes any": (
        {"a": int},
        {"a": float},
        {("a", "takes number now, which older workers refuse", "older workers")},
    ),
    "a value of an enum is removed": (
        {"a": Literal["x", "y"]},
        {"a": Literal["x"]},
        {("a", 'no longer takes "y"', "stored events")},
    ),
    "a value of an enum is added": (
        {"a": Literal["x"]},
        {"a": Literal["x", "y"]},
        {("a", 'takes "y" now, which older workers refuse', "older workers")},
    ),
    "an enum becomes any text": (
        {"a": Literal["x"]},
        {"a": str},
        {("a", "takes string now, which older workers refuse", "older workers")},
    ),
    "a bound is drawn tighter": (
        {"a": Annotated[int, Meta(ge=0)]},
        {"a": Annotated[int, Meta(ge=5)]},
        {("a", "narrowed: minimum 5, was 0", "stored events")},
    ),
    "a bound is taken away": (
        {"a": Annotated[str, Meta(max_length=3)]},
        {"a": str},
        {("a", "widened beyond what older workers take: maxLength none, was 3", "older workers")},
    ),
    "a pattern is changed": (
        {"a": Annotated[str, Meta(pattern="^a")]},
        {"a": Annotated[str, Meta(pattern="^b")]},
        {
            ("a", "narrowed: pattern ^b, was ^a", "stored events"),
            ("a", "widened beyond what older workers take: pattern ^b, was ^a", "older workers"),
        },
    ),
    "a field inside a field": (
        {"a": list[Inner]},
        {"a": list[InnerMore]},
        {("a[].more", "required field added without a default", "stored events")},
    ),
    "the values of a dict": (
        {"a": dict[str, int]},
        {"a": dict[str, str]},
        {("a[]", "type changed from integer to string", "both")},
    ),
    "the keys of a dict": (
        {"a": dict[str, int]},
        {"a": dict[int, int]},
        {("a", "type changed from dict to dict (int keys)", "both")},
    ),
    "a longer tuple": (
        {"a": tuple[int, int]},
        {"a": tuple[int, int, int]},
        {
            ("a", "narrowed: minItems 3, was 2", "stored events"),
            ("a", "widened beyond what older workers take: maxItems 3, was 2", "older workers"),
        },
    ),
    "a class in a union": (
        {"a": Cat | Dog},
        {"a": Cat | Dog | None},
        {("a", "takes null now, which older workers refuse", "older workers")},
    ),
    "a default is changed": ({"a": (int, 1)}, {"a": (int, 2)}, {("a", "default changed from 1 to 2", "")}),
    "a required field gets a default": ({"a": int}, {"a": (int, 1)}, {("a", "has a default now", "")}),
    "a field that may be left out becomes required": (
        {"a": (int, 1)},
        {"a": int},
        {("a", "became required, and stored events may lack it", "stored events")},
    ),
    "a required field may stay unset": (
        {"a": int},
        {"a": (int | UnsetType, UNSET)},
        {
            ("a", "has a default now", ""),
            ("a", "may be left out now, and older workers require it", "older workers"),
        },
    ),
    "a default that is not written": (
        {"a": int},
        {"a": (int, 1), "options": {"omit_defaults": True}},
        {
            ("a", "has a default now", ""),
            ("a", "may be left out now, and older workers require it", "older workers"),
        },
    ),
    "unknown fields are refused": (
        {"a": int},
        {"a": int, "options": {"forbid_unknown_fields": True}},
        {("", "refuses unknown fields now", "stored events")},
    ),
    "a field for workers that refuse what they do not know": (
        {"a": int, "options": {"forbid_unknown_fields": True}},
        {"a": int, "b": (int, 1), "options": {"forbid_unknown_fields": True}},
        {
            ("b", "optional field added", ""),
            ("b", "field added, and older workers refuse unknown fields", "older workers"),
        },
    ),
    "a class that contains itself": (
        {"a": Tree},
        {"a": TextTree},
        {("a.value", "type changed from integer to string", "both")},
    ),
}


@pytest.mark.parametrize("rule", CHANGES)
def test_each_change_is_named_with_whom_it_breaks(rule: str) -> None:
    old, new, expected = CHANGES[rule]
    assert found(event(**old), event(**new)) == expected


# -- do decoders agree? ---------------------------------------------------------------------------------------------

# Type -> values of it that tell it from its neighbours.
VALUES: list[tuple[Any, list[Any]]] = [
    (int, [1]),
    (float, [1.5]),
    (int | None, [1, None]),
    (str, ["plain"]),
    (bool, [True]),
    (bytes, [b"\x00\xff"]),
    (Decimal, [Decimal("1.5")]),
    (datetime, [datetime(2026, 1, 2, tzinfo=UTC)]),
    (datetime | None, [datetime(2026, 1, 2, tzinfo=UTC), None]),
    (date, [date(2026, 1, 2)]),
    (UUID, [UUID(int=7)]),
    (Literal["red"], ["red"]),
    (Literal["red", "blue"], ["red", "blue"]),
    (Colour, list(Colour)),
    (FewerColours, list(FewerColours)),
    (Literal[1, 2], [1, 2]),
    (list[int], [[1]]),
    (list[str], [["plain"]]),
    (list[datetime], [[datetime(2026, 1, 2, tzinfo=UTC)]]),
    (tuple[int, str], [(1, "plain")]),
    (tuple[int, ...], [(1, 2, 3)]),
    (dict[str, int], [{"plain": 1}]),
    (dict[int, int], [{1: 1}]),
    (dict[str, datetime], [{"plain": datetime(2026, 1, 2, tzinfo=UTC)}]),
    (Inner, [Inner(1)]),
    (Inner | None, [Inner(1), None]),
    (InnerMore, [InnerMore(1, "plain")]),
    (Cat, [Cat(1)]),
    (Cat | Dog, [Cat(1), Dog(1)]),
    (Any, [1, "plain", None, [1.5]]),
    (Annotated[int, Meta(ge=1, le=3)], [1, 3]),
    (Annotated[int, Meta(ge=0)], [0, 9]),
    (Annotated[str, Meta(max_length=3)], ["abc"]),
]


def reads(annotation: Any, values: list[Any]) -> bool:
    decoder = msgspec.json.Decoder(annotation)
    try:
        for value in values:
            decoder.decode(msgspec.json.encode(value))
    except msgspec.ValidationError:
        return False
    return True


@pytest.fixture(scope="module")
def schemas() -> list[Document]:
    return [schema_of(event(a=annotation)) for annotation, _ in VALUES]


@pytest.mark.parametrize("old", range(len(VALUES)), ids=[str(annotation) for annotation, _ in VALUES])
def test_what_the_rules_let_pass_decoders_read(old: int, schemas: list[Document]) -> None:
    """Of every pair of types: where no change is breaking, each side reads what the other one writes."""
    was, before = VALUES[old]
    for new, (now, after) in enumerate(VALUES):
        broken = {breaks for _, _, breaks in differences(schemas[old], schemas[new])}
        if not broken & {"stored events", "both"}:
            assert reads(now, before), f"{was} became {now}"
        if not broken & {"older workers", "both"}:
            assert reads(was, after), f"{was} became {now}"
        if old == new:
            assert broken == set()


def test_every_type_can_be_written_and_is_equal_to_itself_when_read() -> None:
    everything = event(**{f"f{n}": annotation for n, (annotation, _) in enumerate(VALUES)})
    kept = export([TopicSpec(name="orders", registry=Registry([everything]))])
    assert compare(parse(text_of(kept).encode(), "f"), kept) == []
