"""Schemas kept in a file: what topics, types and versions that come and go break, and what the file looks like."""

from collections.abc import Callable
from typing import Any

import pytest

from streamlib.codec import Codec, FlatCodec, NativeCodec
from streamlib.errors import SchemaFileError
from streamlib.event import Event, Registry
from streamlib.ops.schema import Document, export, parse, text_of
from streamlib.ops.schema_changes import Change, compare
from streamlib.topic import TopicSpec
from streamlib.versions import Upcasters


def document(*classes: type[Event], ups: Callable[[Upcasters], object] | None = None, **topic: Any) -> Document:
    upcasters = Upcasters()
    if ups is not None:
        ups(upcasters)
    return export([TopicSpec(name="orders", registry=Registry(classes, upcasters), **topic)])


def up(name: str, *steps: int, to: int) -> Callable[[Upcasters], object]:
    def add(upcasters: Upcasters) -> None:
        for step in steps:
            upcasters.add(name, step, to, lambda data: data)

    return add


class One(Event, type_name="Placed"):
    a: int


class Two(Event, version=2, type_name="Placed"):
    b: int


class Three(Event, version=3, type_name="Placed"):
    c: int


class Paid(Event):
    a: int


class Keyed(Event):
    a: int
    b: int


class Renamed(Event, type_name="Keyed"):
    b: int
    c: int = 1


def changes(old: Document, new: Document) -> list[tuple[str, int | None, str, str]]:
    return [(one.type, one.version, one.change.partition(":")[0], one.breaks) for one in compare(old, new)]


def test_a_topic_that_goes_breaks_and_one_that_comes_does_not() -> None:
    old, none = document(One), export([])
    assert changes(old, none) == [("", None, "topic gone", "both")]
    assert changes(none, old) == [("", None, "topic added", "")]


def test_another_key_breaks() -> None:
    [change] = compare(document(Keyed, key="a"), document(Keyed, key="b"))
    assert change == Change(topic="orders", change=change.change, breaks="both")
    assert "key changed from a to b" in change.change
    assert "app.rekey" in change.change


@pytest.mark.parametrize("codec", [NativeCodec("msgpack"), FlatCodec(One)])
def test_another_codec_breaks(codec: Codec) -> None:
    first, *_ = changes(document(One), document(One, codec=codec))
    assert (first[2].startswith("codec changed from NativeCodec json to"), first[3]) == (True, "both")


def test_a_type_that_goes_breaks_and_one_that_comes_does_not() -> None:
    assert changes(document(One, Paid), document(One)) == [("Paid", None, "type gone", "stored events")]
    assert changes(document(One), document(One, Paid)) == [("Paid", None, "type added", "")]


def test_a_version_that_goes_without_an_upcaster_breaks_and_the_way_out_is_named() -> None:
    breaking, added = compare(document(One), document(Two))
    assert (breaking.version, breaking.breaks) == (1, "stored events")
    assert "declare @app.upcast(Placed, from_version=1)" in breaking.change
    assert (added.version, added.breaks, added.change.partition(":")[0]) == (2, "", "version added")


def test_a_version_that_is_raised_by_a_chain_does_not_break() -> None:
    raised = document(Three, ups=up("Placed", 1, 2, to=3))
    assert {one[3] for one in changes(document(One), raised)} == {""}
    assert {one[3] for one in changes(document(Two, ups=up("Placed", 1, to=2)), raised)} == {""}


def test_a_chain_that_is_cut_short_breaks() -> None:
    old = document(Two, ups=up("Placed", 1, to=2))
    new = document(Three, ups=up("Placed", 2, to=3))
    assert ("Placed", 1, "version gone", "stored events") in changes(old, new)


def test_an_old_class_that_stays_beside_the_new_one_does_not_break() -> None:
    assert changes(document(One), document(One, Two)) == [("Placed", 2, "version added", "")]


def test_breaking_changes_come_first() -> None:
    found = compare(document(Keyed), document(Renamed, Paid))
    assert [bool(one.breaks) for one in found] == [True, False, False]


# -- the file -------------------------------------------------------------------------------------------------------


def test_the_same_schemas_give_the_same_text_in_whatever_order_they_are_declared() -> None:
    text = text_of(document(One, Paid))
    assert text == text_of(document(Paid, One))
    assert parse(text.encode(), "schemas.json") == document(One, Paid)
    assert compare(parse(text.encode(), "schemas.json"), document(One, Paid)) == []


def test_the_document_names_key_codec_versions_and_what_is_raised() -> None:
    topic = document(Two, ups=up("Placed", 1, to=2), key="b")["topics"]["orders"]
    assert (topic["key"], topic["codec"]) == ("b", "NativeCodec json")
    assert topic["types"]["Placed"]["raised"] == {"1": 2}
    assert topic["types"]["Placed"]["versions"]["2"]["$defs"]["Two"]["required"] == ["b"]


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "schemas.json holds no schemas"),
        (b"[]", "schemas.json holds no schemas"),
        (b'{"format": 1}', "schemas.json holds no schemas"),
        (b'{"format": 1, "topics": {"a": 7}}', "write it with `streamlib schema export`"),
        (b'{"format": 9, "topics": {}}', "has format 9, this version reads 1; write it anew"),
    ],
)
def test_a_file_that_holds_no_schemas_is_named_with_the_way_out(raw: bytes, says: str) -> None:
    with pytest.raises(SchemaFileError) as caught:
        parse(raw, "schemas.json")
    assert says in str(caught.value)
