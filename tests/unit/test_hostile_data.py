"""What attackers put into data: bounded in depth, numbers and time, in what is published and in what is read alike."""

import json
import time
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from streamlib.codec import NativeCodec
from streamlib.data import DataCodec, DataFormat
from streamlib.errors import DecodeError, PublishError, SchemaError
from streamlib.event import Event, Registry
from streamlib.finite import MAX_DEPTH, MAX_EXPONENT, holds_nan
from streamlib.message import Message
from streamlib.topic import TopicSpec
from streamlib.versions import Upcasters

CPU_S = 2.0
"""Far above what these take, far below what they took when it grew with the square."""


class Loose(Event):
    anything: Any = None


class Tree(Event):
    children: list["Tree"] = msgspec.field(default_factory=list)


class Bill(Event):
    amount: Decimal = Decimal(0)
    parts: tuple[Decimal, ...] = ()
    count: int = 0
    text: str = ""


class Raised(Event, version=2):
    anything: Any = None


def read(data: bytes, cls: type[Event], data_format: DataFormat = "json") -> Event:
    return DataCodec(data_format).decode(Message(id="e", type="T", data=data), cls)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def tree(depth: int) -> Tree:
    found = Tree()
    for _ in range(depth - 1):
        found = Tree(children=[found])
    return found


@pytest.mark.parametrize("data_format", ["json", "msgpack"])
def test_what_nests_to_the_bound_is_published_and_read_and_no_deeper(data_format: DataFormat) -> None:
    codec, module = DataCodec(data_format), msgspec.json if data_format == "json" else msgspec.msgpack
    deepest = Loose(anything=nested(MAX_DEPTH - 1))
    assert read(codec.encode(deepest), Loose, data_format) == deepest
    for deep in (Loose(anything=nested(MAX_DEPTH)), tree(MAX_DEPTH)):
        with pytest.raises(PublishError, match="nested more than 64 deep"):
            codec.encode(deep)
        with pytest.raises(DecodeError, match="T e: nested more than 64 deep"):
            read(module.encode(deep), type(deep), data_format)


@pytest.mark.parametrize("depth", [900, 1_000, 100_000])
@pytest.mark.parametrize(("opens", "closes"), [(b"[", b"]"), (b'{"anything":', b"}")])
def test_no_depth_whatsoever_breaks_the_reader(depth: int, opens: bytes, closes: bytes) -> None:
    with pytest.raises(DecodeError):
        read(b'{"anything":' + opens * depth + b"1" + closes * depth + b"}", Loose)
    with pytest.raises(DecodeError):
        read(b"\x81\xa8anything" + b"\x91" * depth + b"\xc0", Loose, "msgpack")


def test_many_brackets_that_do_not_nest_are_no_depth() -> None:
    wide = Loose(anything=[[], {"a": "[" * 500}] * 500)
    assert read(DataCodec("json").encode(wide), Loose) == wide


def test_what_holds_itself_is_refused_and_not_followed_for_ever() -> None:
    ring: list[Any] = []
    ring += [ring, ring, ring]
    with pytest.raises(PublishError, match="nested more than 64 deep"):
        DataCodec("json").encode(Loose(anything=ring))


@pytest.mark.parametrize("data_format", ["json", "msgpack"])
@pytest.mark.parametrize("field", ["amount", "parts"])
@pytest.mark.parametrize("sign", ["", "-"])
def test_decimals_end_where_a_decimal128_does(data_format: DataFormat, field: str, sign: str) -> None:
    """`int` and `format` of a greater one write out a number of as many digits as anybody likes."""
    codec, module = DataCodec(data_format), msgspec.json if data_format == "json" else msgspec.msgpack
    for fits in (f"{sign}1e{MAX_EXPONENT}", f"{sign}1e-{MAX_EXPONENT}", f"{sign}0"):
        event = Bill(**{field: (Decimal(fits),) if field == "parts" else Decimal(fits)})  # type: ignore[arg-type]
        assert read(codec.encode(event), Bill, data_format) == event
    for text in (
        f"{sign}1e{MAX_EXPONENT + 1}",
        f"{sign}1e-{MAX_EXPONENT + 1}",
        f"{sign}1e999999999",
        f"{sign}0e-999999",
    ):
        value: Any = (Decimal(text),) if field == "parts" else Decimal(text)
        with pytest.raises(PublishError, match="exponents beyond 6144 cannot be stored"):
            codec.encode(Bill(**{field: value}))
        with pytest.raises(SchemaError, match="exponents beyond 6144"):
            read(module.encode({field: [text] if field == "parts" else text}), Bill, data_format)


def test_whole_numbers_are_read_up_to_the_digits_that_python_takes() -> None:
    assert read(b'{"count":' + b"9" * 4_300 + b"}", Bill) == Bill(count=10**4_300 - 1)
    for cls, name in ((Bill, b"count"), (Loose, b"anything")):
        with pytest.raises(SchemaError, match="out of range"):
            read(b'{"%b":' % name + b"9" * 4_301 + b"}", cls)


@pytest.mark.parametrize(
    "text", [rb"\ud800", rb"\udc00", rb"\ud800\u0041", b"\xed\xa0\x80", b"\xff", b"\xc0\x80", rb"\q"]
)
def test_text_that_is_no_unicode_is_refused(text: bytes) -> None:
    with pytest.raises(DecodeError):
        read(b'{"text":"%b"}' % text, Bill)
    with pytest.raises(DecodeError):
        read(b'{"anything":{"%b":1}}' % text, Loose)


def test_of_two_fields_of_one_name_the_last_one_counts() -> None:
    """One parser reads everything: nobody else could have gone by the first one."""
    assert read(b'{"count":1,"count":2}', Bill) == Bill(count=2)


@pytest.mark.parametrize("cls", [Bill, Loose])
def test_nothing_but_the_declared_class_comes_out_of_data_that_name_another(cls: type[Event]) -> None:
    hostile = {"__class__": "os.system", "py/object": "os.system", "type": "Tree", "$ref": "x", "__reduce__": ["id"]}
    assert read(json.dumps(hostile).encode(), cls) == cls()
    found = read(b"\x81\xa8anything\xc7\x04\x05os.x", Loose, "msgpack")
    assert isinstance(found, Loose)
    assert type(found.anything) is msgspec.msgpack.Ext


def test_reading_takes_time_by_the_byte_also_where_names_are_long() -> None:
    """The way to a number was once told to each of its neighbours, and an upcaster's data were searched with it."""
    upcasters = Upcasters()
    upcasters.add("Raised", 1, 2, lambda data: {"anything": data})
    topic = TopicSpec(name="t", registry=Registry([Raised], upcasters), codec=NativeCodec("msgpack"))
    for last in (1.0, float("nan")):
        data = msgspec.msgpack.encode({"k" * 100_000: [*[1.0] * 15_000, last]})
        started = time.thread_time()
        try:
            topic.decode(Message(id="e", type="Raised", version=1, data=data))
        except SchemaError as error:
            assert len(str(error)) < 500  # noqa: PT017 - and where there is no NaN there is no error
        assert time.thread_time() - started < CPU_S


@pytest.mark.parametrize("item", [b"\x80", b"\x90", b"\xd6\xff\x00\x00\x00\x01", b"\xcb" + b"\x00" * 8, b"\xa0"])
def test_the_largest_event_of_the_smallest_parts_is_read_in_no_time(item: bytes) -> None:
    count = 262_000 // len(item)
    data = b"\x81\xa8anything\xdd" + count.to_bytes(4, "big") + item * count
    started = time.thread_time()
    found = read(data, Loose, "msgpack")
    assert time.thread_time() - started < CPU_S
    assert isinstance(found, Loose)
    assert len(found.anything) == count
    assert not holds_nan(found.anything)
