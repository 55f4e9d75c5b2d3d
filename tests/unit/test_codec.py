"""Codecs: what is published comes back as it was; whatever else lies in a stream is a named DecodeError."""

import datetime
import enum
import uuid
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlib.codec import Codec, FlatCodec, NativeCodec, RawCodec
from streamlib.data import DataFormat
from streamlib.errors import DeclarationError, DecodeError, PublishError, SchemaError
from streamlib.event import Event
from streamlib.keys import MAX_ID_BYTES
from streamlib.message import Message


class Size(enum.Enum):
    SMALL = "s"
    LARGE = "l"


class Line(msgspec.Struct, frozen=True):
    sku: str
    quantity: int


class Everything(Event):
    text: str
    whole: int
    real: float
    amount: Decimal
    at: datetime.datetime
    day: datetime.date
    number: uuid.UUID
    size: Size
    raw: bytes
    lines: tuple[Line, ...]
    names: dict[str, int]
    maybe: str | None = None


class Reading(Event):
    sensor: str
    celsius: float = 0.0
    amount: Decimal = Decimal(0)
    count: int = 0
    note: str | None = None


TEXT = st.text(max_size=30)
EVERYTHING = st.builds(
    Everything,
    text=TEXT,
    whole=st.integers(-(2**63), 2**64 - 1),
    real=st.floats(allow_nan=False, allow_infinity=False),
    amount=st.decimals(allow_nan=False, allow_infinity=False),
    at=st.datetimes(timezones=st.just(datetime.UTC)),
    day=st.dates(),
    number=st.uuids(),
    size=st.sampled_from(Size),
    raw=st.binary(max_size=30),
    lines=st.lists(st.builds(Line, sku=TEXT, quantity=st.integers(0, 1000)), max_size=3).map(tuple),
    names=st.dictionaries(TEXT, st.integers(0, 9), max_size=3),
    maybe=st.none() | TEXT,
)
MESSAGES = st.builds(
    Message,
    id=st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=50),
    type=TEXT,
    version=st.integers(1, 10**6),
    key=TEXT,
    data=st.binary(max_size=50),
    time_ms=st.none() | st.integers(0, 10**15),
    correlation_id=st.none() | TEXT,
    causation_id=st.none() | TEXT,
    traceparent=st.none() | TEXT,
    headers=st.dictionaries(TEXT, TEXT, max_size=3),
)
GOOD: dict[bytes, bytes] = {
    b"id": b"e-1",
    b"type": b"Reading",
    b"v": b"1",
    b"key": b"",
    b"data": b'{"sensor":"a"}',
}


def entry(changed: dict[bytes, bytes] | None = None, *, without: bytes = b"") -> list[bytes]:
    """The fields of a good native entry, with changes."""
    named = {name: value for name, value in (GOOD | (changed or {})).items() if name != without}
    return [part for pair in named.items() for part in pair]


@given(MESSAGES)
def test_every_envelope_comes_back_as_it_was_written(message: Message) -> None:
    codec = NativeCodec()
    assert codec.read("1-1", codec.write(message)) == message


@given(fields=MESSAGES.map(NativeCodec().write) | st.lists(st.sampled_from([*GOOD]) | st.binary(), max_size=12))
def test_what_is_told_in_brief_is_what_the_envelope_says(fields: list[bytes]) -> None:
    if brief := NativeCodec().brief(fields):
        event_id, type_name, version, data = brief
        try:
            message = NativeCodec().read("1-1", fields)
        except DecodeError:
            assert _is_undecodable(type_name) or version not in [b"%d" % n for n in range(1, 100)]
        else:
            assert (event_id, type_name.decode(), int(version), data) == (
                message.id, message.type, message.version, message.data,
            )  # fmt: skip


@pytest.mark.parametrize("data_format", ["json", "msgpack"])
@given(event=EVERYTHING)
def test_every_event_comes_back_as_it_was_encoded(data_format: DataFormat, event: Everything) -> None:
    codec = NativeCodec(data_format)
    message = Message(id="e", type="Everything", data=codec.encode(event))
    back = codec.decode(message, Everything)
    assert back == event
    assert isinstance(back, Everything)
    assert str(back.amount) == str(event.amount), "a Decimal keeps its digits"


def test_fields_stand_in_the_agreed_order_and_absent_ones_are_left_out() -> None:
    full = Message(
        id="e", type="T", version=3, key="k", data=b"{}", time_ms=5,
        correlation_id="c", causation_id="p", traceparent="00-1", headers={"a": "b"},
    )  # fmt: skip
    written = NativeCodec().write(full)
    assert written[::2] == b"id type v key data ts corr cause traceparent h".split()
    assert written[1::2] == [b"e", b"T", b"3", b"k", b"{}", b"5", b"c", b"p", b"00-1", b'{"a":"b"}']
    assert NativeCodec().write(Message(id="e", type="T"))[::2] == b"id type v key data".split()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ([], "1-1 has no fields"),
        ([*entry(), b"id", b"e-2"], "1-1 repeats a field name"),
        (entry(without=b"id"), "1-1 has no field id"),
        (entry(without=b"data"), "1-1 has no field data"),
        ([b"sensor", b"a7"], "1-1 has no field id, type, v, key, data"),
        (entry({b"colour": b"red"}), "1-1 has unknown fields 'colour'"),
        (entry({b"\xff": b"red"}), "1-1 has unknown fields"),
        (entry({b"id": b"\xff"}), "1-1: field id is not UTF-8"),
        (entry({b"id": b""}), "1-1: an event id is 1 to 200 bytes"),
        (entry({b"id": b"x" * (MAX_ID_BYTES + 1)}), "1-1: an event id is 1 to 200 bytes"),
        (entry({b"id": b"a\x00b"}), "1-1: an event id is 1 to 200 bytes"),
        (entry({b"type": b"\xc3("}), "1-1: field type is not UTF-8"),
        (entry({b"key": b"\xed\xa0\x80"}), "1-1: field key is not UTF-8"),
        (entry({b"v": b""}), "1-1: field v is '', not a whole number"),
        (entry({b"v": b"-1"}), "1-1: field v is '-1'"),
        (entry({b"v": b"1.0"}), "1-1: field v is '1.0'"),
        (entry({b"v": b"NaN"}), "1-1: field v is 'NaN'"),
        (entry({b"v": b"9" * 5000}), "1-1: field v is '9999"),
        (entry({b"v": "²".encode()}), "1-1: field v is"),
        (entry({b"ts": b"-5"}), "1-1: field ts is '-5'"),
        (entry({b"ts": b"soon"}), "1-1: field ts is 'soon'"),
        (entry({b"corr": b"\xff"}), "1-1: field corr is not UTF-8"),
        (entry({b"traceparent": b"\xff"}), "1-1: field traceparent is not UTF-8"),
        (entry({b"h": b"[]"}), "1-1: field h is no JSON object of texts"),
        (entry({b"h": b'{"a":1}'}), "1-1: field h is no JSON object of texts"),
        (entry({b"h": b'{"a":"\xff"}'}), "1-1: field h is no JSON object of texts"),
        (entry({b"h": b'{"a":' + b"[" * 40_000}), "1-1: field h is no JSON object of texts"),
        (entry({b"h": b'{"a":' + b"[" * 100_000}), "1-1: field h has 100005 bytes"),
    ],
)
def test_an_entry_that_is_no_event_is_a_decode_error_that_names_it(fields: list[bytes], says: str) -> None:
    with pytest.raises(DecodeError) as caught:
        NativeCodec().read("1-1", fields)
    assert says in str(caught.value)
    assert caught.value.reason == "decode"


@pytest.mark.parametrize(
    ("data", "reason", "says"),
    [
        (b"", "decode", "Reading e-1"),
        (b"\xff", "decode", "Reading e-1"),
        (b'{"sensor":"\xff"}', "decode", "Reading e-1"),
        (b'{"sensor":"a","celsius":NaN}', "decode", "Reading e-1"),
        (b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "decode", "Reading e-1"),
        (b"{}", "schema", "missing required field `sensor`"),
        (b"[1]", "schema", "Expected `object`"),
        (b'{"sensor":7}', "schema", "$.sensor"),
        (b'{"sensor":"a","celsius":1e999}', "schema", "$.celsius"),
        (b'{"sensor":"a","count":1.5}', "schema", "$.count"),
        (b'{"sensor":"a","count":' + b"9" * 5000 + b"}", "schema", "$.count"),
        (b'{"sensor":"a","amount":"ten"}', "schema", "$.amount"),
        (b'{"sensor":"a","amount":"1e99999999999999999999"}', "schema", "$.amount"),
        (b'{"sensor":"a","amount":"NaN"}', "schema", "Reading e-1"),
        (b'{"sensor":"a","amount":"-Infinity"}', "schema", "Reading e-1"),
    ],
)
def test_data_that_does_not_fit_is_an_error_with_a_reason_and_a_name(data: bytes, reason: str, says: str) -> None:
    message = NativeCodec().read("1-1", entry({b"data": data}))
    with pytest.raises(DecodeError) as caught:
        NativeCodec().decode(message, Reading)
    assert caught.value.reason == reason
    assert says in str(caught.value)
    assert "Reading e-1" in str(caught.value)


def _is_undecodable(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return True
    return False


def _decoded(codec: Codec, fields: list[bytes]) -> Event | DecodeError:
    try:
        return codec.decode(codec.read("1-1", fields), Reading)
    except DecodeError as error:
        return error


@pytest.mark.parametrize("codec", [NativeCodec(), NativeCodec("msgpack"), FlatCodec(Reading), RawCodec(Reading)])
@given(fields=st.lists(st.sampled_from([*GOOD, b"h", b"ts", b"corr", b"sensor"]) | st.binary(), max_size=24))
def test_no_entry_whatsoever_raises_anything_but_a_decode_error(codec: Codec, fields: list[bytes]) -> None:
    outcome = _decoded(codec, fields)
    assert isinstance(outcome, Reading) or "1-1" in str(outcome) or "Reading" in str(outcome)


@pytest.mark.parametrize("data_format", ["json", "msgpack"])
@given(data=st.binary(max_size=60))
def test_no_data_whatsoever_raises_anything_but_a_decode_error(data_format: DataFormat, data: bytes) -> None:
    outcome = _decoded(NativeCodec(data_format), entry({b"data": data}))
    assert isinstance(outcome, Reading) or "Reading e-1" in str(outcome)


@pytest.mark.parametrize(
    "event",
    [
        Reading(sensor="a", celsius=float("nan")),
        Reading(sensor="a", celsius=float("-inf")),
        Reading(sensor="a", amount=Decimal("NaN")),
        Reading(sensor="a", amount=Decimal("Infinity")),
    ],
)
@pytest.mark.parametrize("data_format", ["json", "msgpack"])
def test_nan_and_infinity_are_refused_when_published(data_format: DataFormat, event: Reading) -> None:
    with pytest.raises(PublishError, match=r"Reading\.(celsius|amount) is .*cannot be stored"):
        NativeCodec(data_format).encode(event)


@pytest.mark.parametrize("sensor", ["\ud800", object()])
def test_what_cannot_be_encoded_is_a_publish_error_naming_the_event(sensor: Any) -> None:
    with pytest.raises(PublishError, match="Reading cannot be encoded"):
        NativeCodec().encode(Reading(sensor=sensor))


def test_a_value_of_the_wrong_type_is_found_by_the_reader() -> None:
    """Constructors do not check types; what slips through is a schema error, not a wrong event."""
    wrong: Any = "seven"
    data = NativeCodec().encode(Reading(sensor="a", count=wrong))
    with pytest.raises(SchemaError, match=r"Reading e.*\$\.count"):
        NativeCodec().decode(Message(id="e", type="Reading", data=data), Reading)


def test_a_data_format_nobody_knows_is_refused() -> None:
    with pytest.raises(DeclarationError, match="'yaml': choose 'json' or 'msgpack'"):
        NativeCodec("yaml")  # type: ignore[arg-type]


FLAT = st.builds(
    Reading,
    sensor=TEXT,
    celsius=st.floats(allow_nan=False, allow_infinity=False),
    amount=st.decimals(allow_nan=False, allow_infinity=False),
    count=st.integers(-(2**63), 2**63 - 1),
    # An empty text and the word null are the two texts that a flat entry cannot tell from None.
    note=st.none() | st.text(min_size=5, max_size=20),
)


@given(event=FLAT)
def test_flat_entries_hold_an_event_as_plain_fields(event: Reading) -> None:
    codec = FlatCodec(Reading)
    fields = codec.write(Message(id="ignored", type="Reading", data=codec.encode(event)))
    message = codec.read("7-0", fields)
    assert message.id == "7-0", "the entry's own id is the event id"
    assert codec.decode(message, Reading) == event


def test_flat_entries_of_other_programs_are_converted_to_the_class() -> None:
    codec = FlatCodec(Reading, type_field="kind")
    message = codec.read("7-0", [b"kind", b"Reading", b"sensor", b"a7", b"celsius", b"21.5"])
    assert (message.id, message.type, message.version) == ("7-0", "Reading", 1)
    assert codec.decode(message, Reading) == Reading(sensor="a7", celsius=21.5)
    assert codec.write(message)[-2:] == [b"kind", b"Reading"]


@pytest.mark.parametrize(
    "fields",
    [
        [b"celsius", b"21.5"],
        [b"sensor", b"a7", b"celsius", b"warm"],
        [b"sensor", b"a7", b"celsius", b"nan"],
        [b"sensor", b"a7", b"celsius", b"inf"],
        [b"sensor", b"a7", b"amount", b"NaN"],
        [b"sensor", b"a7", b"count", b"9" * 5000],
        [b"sensor", b"\xff"],
        [b"\xff", b"a7"],
    ],
)
def test_flat_values_that_do_not_fit_are_decode_errors(fields: list[bytes]) -> None:
    codec = FlatCodec(Reading)
    with pytest.raises(DecodeError, match="7-0"):
        codec.decode(codec.read("7-0", fields), Reading)


def test_flat_entries_refuse_nested_values() -> None:
    codec = FlatCodec(Everything)
    with pytest.raises(PublishError, match="cannot hold the nested field 'lines'"):
        codec.write(Message(id="e", type="Everything", data=b'{"text":"a","lines":[]}'))


@given(event=FLAT, headers=st.dictionaries(TEXT.filter(lambda name: name != "payload"), TEXT, max_size=3))
def test_raw_entries_keep_the_event_in_one_field_and_the_others_as_headers(
    event: Reading, headers: dict[str, str]
) -> None:
    codec = RawCodec(Reading, field="payload", data_format="msgpack")
    fields = codec.write(Message(id="ignored", type="Reading", data=codec.encode(event), headers=headers))
    message = codec.read("7-0", fields)
    assert (message.id, message.headers) == ("7-0", headers)
    assert codec.decode(message, Reading) == event


def test_raw_entries_without_their_field_are_decode_errors() -> None:
    with pytest.raises(DecodeError, match="entry 7-0 has no field 'data'"):
        RawCodec(Reading).read("7-0", [b"body", b"{}"])


@given(st.recursive(st.none() | st.integers() | TEXT, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner)))
def test_fields_a_newer_producer_added_do_not_disturb_an_older_reader(extra: Any) -> None:
    data = msgspec.json.encode({"sensor": "a", "added_later": extra})
    assert NativeCodec().decode(Message(id="e", type="Reading", data=data), Reading) == Reading(sensor="a")
