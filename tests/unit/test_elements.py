"""Elements of aggregates' lists: the short way from them to events is only ever a shorter one."""

from decimal import Decimal
from typing import Any

import pytest

from streamlib import Event
from streamlib.codec import Codec, FlatCodec, NativeCodec
from streamlib.errors import DecodeError, SchemaError, UnknownType
from streamlib.event import Registry
from streamlib.message import Message
from streamlib.redisio.elements import ElementReader, entry_of, stored
from streamlib.redisio.later import pack
from streamlib.topic import TopicSpec


class Paid(Event):
    account: str
    amount: Decimal = Decimal(1)
    rate: float = 1.0
    shares: dict[str, Decimal] = {}  # noqa: RUF012


class Closed(Event, version=2, type_name="closed"):
    account: str
    why: str = ""


class Other(NativeCodec):
    """What is stored under `data` is the data backwards."""

    def read(self, entry_id: str, fields: list[bytes]) -> Message:
        return super().read(entry_id, [*fields[:-1], fields[-1][::-1]])


def topic(codec: Codec | None = None, *, key: str = "account") -> TopicSpec:
    return TopicSpec(name="accounts", registry=Registry([Paid, Closed]), key=key, codec=codec or NativeCodec())


def element(of: TopicSpec, event: Event, *, key: str = "a", **envelope: Any) -> bytes:
    fields = of.codec.write(of.message(event, key=key, **envelope))
    return b"1795907719255-3 Uw9SnaRfFw9s " + pack(fields)


def read(of: TopicSpec, *elements: bytes, aggregate_id: str = "a", after: int = 0) -> list[Event]:
    return list(ElementReader(of, "Account").events(aggregate_id, 0, after, elements))


HIDDEN = pack([b"type", b"Paid", b"v", b"1", b"key", b"a", b"data"]).decode() + '16:{"account": "a"}'


@pytest.mark.parametrize("data_format", ["json", "msgpack"])
@pytest.mark.parametrize("key", ["a", "b c", "é", "4:data", HIDDEN, "3:key1:a4:data"])
def test_every_element_is_read_as_the_long_way_reads_it(data_format: Any, key: str) -> None:
    of = topic(NativeCodec(data_format))
    events = [Paid(account="a", amount=Decimal("0.10")), Closed(account="é", why='4:data "\\'), Paid(account="")]
    envelopes: list[dict[str, Any]] = [
        {},
        {"event_id": "e-1"},
        {"event_id": "x" * 36},
        {"event_id": "é" * 18},
        {"event_id": " " * 36},
        {"event_id": HIDDEN},
        {"event_id": f"{'x' * 35}{HIDDEN}"},
        {"time_ms": 17},
        {"headers": {"a": "b"}, "correlation_id": "c"},
    ]
    elements = [element(of, event, key=key, **envelope) for event in events for envelope in envelopes]
    expected = [of.decode(stored(of, 0, 1, one).message) for one in elements]
    assert read(of, *elements, aggregate_id=key) == expected == [event for event in events for _ in envelopes]


@pytest.mark.parametrize("codec", [Other(), FlatCodec(Closed)])
def test_a_codec_of_ones_own_is_asked(codec: Codec) -> None:
    of = topic(codec)
    written = topic() if isinstance(codec, Other) else of
    event = Closed(account="a", why="because")
    packed = element(written, event)
    if isinstance(codec, Other):
        data = of.codec.encode(event)
        packed = packed.replace(data, data[::-1])
    assert read(of, packed) == [event]


@pytest.mark.parametrize("data_format", ["json", "msgpack"])
@pytest.mark.parametrize("values", [{"amount": "NaN"}, {"amount": "-inf"}, {"shares": {"x": "Infinity"}}])
def test_a_nan_that_others_have_stored_is_refused(data_format: Any, values: dict[str, Any]) -> None:
    codec = NativeCodec(data_format)
    of = topic(codec)
    message = Message(id="x" * 36, type="Paid", key="a", data=codec.encode_plain({"account": "a", **values}, "Paid"))
    with pytest.raises(SchemaError, match=r"Account 'a', version 5: Paid.*NaN and infinity cannot be stored"):
        read(of, b"1-1 c " + pack(codec.write(message)), after=4)


def test_an_infinity_in_msgpack_is_refused() -> None:
    of = topic(NativeCodec("msgpack"))
    packed = element(of, Paid(account="a", rate=1.5))
    sound = bytes.fromhex("cb3ff8000000000000")
    assert sound in packed
    with pytest.raises(SchemaError, match=r"rate is inf"):
        read(of, packed.replace(sound, bytes.fromhex("cb7ff0000000000000")))


@pytest.mark.parametrize(
    ("change", "error", "why"),
    [
        ((b"4:type", b"4:typo"), DecodeError, "topic 'accounts', version 1 of an aggregate: .*no field type"),
        ((b"4:Paid", b"4:Sold"), UnknownType, "Account 'a', version 1: no class for 'Sold'"),
        ((b"1:v1:1", b"1:v1:9"), UnknownType, "Account 'a', version 1: no class for 'Paid' version 9"),
        ((b'{"account"', b'{"acc*unt"'), SchemaError, "Account 'a', version 1: Paid .*account"),
        ((b'"account":', b'"account";'), DecodeError, "Account 'a', version 1: Paid .*malformed"),
        ((b"Uw9SnaRfFw9s ", b"Uw9SnaRfFw9s  "), DecodeError, "damaged at byte 0"),
        ((b" 2:id", b" 1:id"), DecodeError, "damaged"),
        ((b"{}}", b"{}}2:ts"), DecodeError, "damaged|without a value"),
        ((b"{}}", b"{}}2:ts1:x"), DecodeError, "field ts is 'x', not a whole number"),
    ],
)
def test_what_is_wrong_with_an_element_is_named(change: tuple[bytes, bytes], error: type[Exception], why: str) -> None:
    of = topic()
    packed = element(of, Paid(account="a"))
    assert change[0] in packed
    with pytest.raises(error, match=why):
        read(of, packed.replace(*change, 1))


def test_the_entry_of_an_element() -> None:
    assert entry_of(element(topic(), Paid(account="a"))) == "1795907719255-3"
    assert entry_of(b"") == ""
