"""What attackers put around the data: envelopes, returning entries and dead letters that streamlib did not write."""

import gc
import weakref
from typing import Any

import msgspec
import pytest

from streamlib.cli.letters import shown_in_full
from streamlib.cli.output import print_json
from streamlib.cli.publish import BadLine, read_line
from streamlib.codec import Codec, Fields, NativeCodec
from streamlib.errors import DeclarationError, DecodeError, PayloadTooLarge, PublishError
from streamlib.event import Event, Registry
from streamlib.keys import MAX_ID_BYTES, StreamKeys
from streamlib.message import ENVELOPE_BYTES, MAX_HEADER_BYTES, MAX_HEADERS, Message
from streamlib.ops.dead_letters import read_letter
from streamlib.ops.places import Place
from streamlib.read_model import ReadModel
from streamlib.redisio.again import Again, pack
from streamlib.redisio.dead_letter import Failure, dead_letter_fields
from streamlib.redisio.publisher import Publisher
from streamlib.redisio.reader import Received, receive
from streamlib.settings import LimitSettings
from streamlib.topic import TopicSpec
from streamlib.worker.decoding import Decoding
from streamlib.worker.preparing import Preparer, RawEntry
from streamlib.worker.projection import Projection
from streamlib.worker.work import Ended, Group

KEYS = StreamKeys("orders")
PLACE = Place("orders", 0, "g", "group", KEYS)
TOO_LONG = b"x" * (MAX_ID_BYTES + 1)
LIMIT = 1_000


class Placed(Event):
    order_id: str


class Touchy(Event):
    order_id: str

    def __post_init__(self) -> None:
        raise KeyError(self.order_id)


class Row(ReadModel):
    order_id: str


TOPIC = TopicSpec(name="orders", registry=Registry([Placed, Touchy]), key="order_id")


def entry(**changed: bytes) -> Fields:
    good = {"id": b"e-1", "type": b"Placed", "v": b"1", "key": b"", "data": b'{"order_id":"o-1"}'}
    return [part for name, value in {**good, **changed}.items() for part in (name.encode(), value)]


def headers(count: int, size: int) -> bytes:
    """JSON of that many headers, of so many bytes together."""
    names = [f"h{n:02}" for n in range(count)]
    return msgspec.json.encode(dict.fromkeys(names[1:], "") | {names[0]: "v" * (size - 3 * count)})


def received(fields: Fields, *, again: bool = False, codec: Codec | None = None) -> Received:
    return receive(KEYS, 0, again, "new", codec or NativeCodec(), b"5-1", fields)


# -- the envelope ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["type", "key", "corr", "cause", "traceparent"])
def test_a_field_beyond_its_bytes_is_a_decode_error(field: str) -> None:
    codec = NativeCodec()
    assert codec.read("1-1", entry(**{field: TOO_LONG[1:]})).id == "e-1"
    with pytest.raises(DecodeError, match=f"field {field} has 201 bytes, at most 200"):
        codec.read("1-1", entry(**{field: TOO_LONG}))
    assert field not in ("type", "key") or codec.brief(entry(**{field: TOO_LONG})) is None


@pytest.mark.parametrize("name", ["event_id", "key", "correlation_id", "causation_id", "traceparent"])
def test_what_could_not_be_read_again_is_not_published(name: str) -> None:
    limits: dict[str, Any] = {name: TOO_LONG.decode()}
    with pytest.raises(PublishError, match="201 bytes"):
        TOPIC.message(Placed(order_id="o-1"), **limits)
    fits: dict[str, Any] = {name: TOO_LONG[1:].decode()}
    message = TOPIC.message(Placed(order_id="o-1"), **fits)
    assert NativeCodec().read("1-1", NativeCodec().write(message)) == message


def test_a_type_has_a_name_that_fits() -> None:
    with pytest.raises(DeclarationError, match="at most 200 bytes"):

        class Long(Event, type_name=TOO_LONG.decode()): ...


@pytest.mark.parametrize(("count", "size"), [(MAX_HEADERS, MAX_HEADER_BYTES), (1, MAX_HEADER_BYTES), (0, 0)])
def test_headers_within_the_bounds_are_published_and_read(count: int, size: int) -> None:
    raw = headers(count, size) if count else b"{}"
    message = NativeCodec().read("1-1", entry(h=raw))
    assert len(message.headers) == count
    assert Publisher.encode(_publisher(), TOPIC, message)[1] == b"e-1"


@pytest.mark.parametrize(("count", "size"), [(MAX_HEADERS + 1, 200), (1, MAX_HEADER_BYTES + 1), (9, 10_000_000)])
def test_headers_beyond_the_bounds_are_refused_on_both_sides(count: int, size: int) -> None:
    raw = headers(count, size)
    with pytest.raises(DecodeError, match="at most 32 headers of 8192 bytes together"):
        NativeCodec().read("1-1", entry(h=raw))
    given = msgspec.json.decode(raw, type=dict[str, str])
    with pytest.raises(PayloadTooLarge, match="at most 32 of 8192 together"):
        Publisher.encode(_publisher(), TOPIC, TOPIC.message(Placed(order_id="o-1"), headers=given))


def test_headers_are_counted_in_bytes() -> None:
    given = {"h": "é" * (MAX_HEADER_BYTES // 2)}
    with pytest.raises(PayloadTooLarge, match="8193 bytes"):
        Publisher.encode(_publisher(), TOPIC, TOPIC.message(Placed(order_id="o-1"), headers=given))
    worst = {"\n": "\x01" * (MAX_HEADER_BYTES - 1)}  # six bytes for each in JSON
    message = TOPIC.message(Placed(order_id="o-1"), headers=worst)
    assert NativeCodec().read("1-1", Publisher.encode(_publisher(), TOPIC, message)).headers == worst


def _publisher() -> Publisher:
    made = object.__new__(Publisher)
    made._limits = LimitSettings()
    return made


# -- sizes, where events are consumed --------------------------------------------------------------------------------

LARGE = {
    "data": entry(data=b'{"order_id":"%b"}' % (b"x" * LIMIT)),
    "all fields": [b"data", b'{"order_id":"o-1"}', b"more", b"x" * (LIMIT + ENVELOPE_BYTES)],
}


class Raw(NativeCodec):
    """Reads the data of an entry whatever stands beside them."""

    def read(self, entry_id: str, fields: Fields) -> Message:
        named = dict(zip(fields[::2], fields[1::2], strict=True))
        return Message(id="e-1", type="Placed", data=named[b"data"])


@pytest.mark.parametrize("what", LARGE)
def test_a_worker_reads_no_event_beyond_the_limit(what: str) -> None:
    decoding = Decoding(TOPIC, Group(topic="orders", group="g", worker_id="w", consumer="c"), LIMIT, 60)
    ended = decoding.decode(received(LARGE[what], codec=Raw()), "handle")
    assert isinstance(ended, Ended)
    assert ended.failure is not None
    assert (ended.failure.reason, "limits.payload_bytes is 1000" in ended.failure.error) == ("decode", True)


@pytest.mark.parametrize("what", LARGE)
@pytest.mark.parametrize("warm", [False, True])
def test_a_projection_reads_no_event_beyond_the_limit(what: str, warm: bool) -> None:
    def nowhere() -> Any:
        raise AssertionError("reading asks no server")

    codec = Raw() if what == "all fields" else NativeCodec()
    topic = TopicSpec(name="orders", registry=Registry([Placed]), key="order_id", codec=codec)
    projection = Projection("view", topic, Row, key="order_id", keys=nowhere, redis=nowhere)
    projection.folds[Placed] = lambda row, event: row
    preparer = Preparer(projection, 0, LIMIT)
    if warm:  # from the second event of a type on, a shorter way is taken
        preparer.prepare([RawEntry.of("4-1", entry())])
    (one,), stop = preparer.prepare([RawEntry.of("5-1", LARGE[what])])
    assert (stop, one.event) == (None, None)
    assert one.failure is not None
    assert (one.failure.reason, "limits.payload_bytes is 1000" in one.failure.error) == ("decode", True)


# -- entries that cannot be read -------------------------------------------------------------------------------------


class Broken(NativeCodec):
    def read(self, entry_id: str, fields: Fields) -> Message:
        raise KeyError("no such field")


class Watched(list[bytes]):
    """Can be asked whether it is still there."""


@pytest.mark.parametrize("codec", [NativeCodec(), Broken()])
def test_an_entry_that_cannot_be_read_does_not_stay_in_memory(codec: Codec) -> None:
    """Its error once held the frames that held the entry, in a ring that the garbage collector does not see."""

    def worker() -> weakref.ref[Watched]:
        fields = Watched([b"id", b"\xff", b"data", b"x" * 1_000])
        one = received(fields, codec=codec)
        assert isinstance(one.error, DecodeError)
        return weakref.ref(fields)

    kept = worker()
    gc.collect()
    assert kept() is None


def test_a_codec_that_fails_in_a_way_of_its_own_harms_no_neighbour() -> None:
    one = received(entry(), codec=Broken())
    assert one.message is None
    assert one.delivery.event_id == "5-1"
    failure = Failure.of("decode", one.error or KeyError())
    assert "the codec failed: KeyError: 'no such field'" in failure.error
    assert "in read" in failure.traceback, "whoever wrote the codec is told where"


def returning(body: Any, event_id: bytes = b"e-1") -> Fields:
    return [b"id", event_id, b"body", body if isinstance(body, bytes) else msgspec.msgpack.encode(body)]


@pytest.mark.parametrize(
    "fields",
    [
        returning(b"\x97\xa35-1\x00\x00\xa5retry\x90\x00" + b"\x91" * 100_000),
        returning(("5-1", -1, 0, "retry", [])),
        returning(("5-1", 0, -(2**63), "retry", [])),
        returning(("5-1", 2**64 - 1, 0, "retry", [])),
        returning(("٣-٣", 0, 0, "retry", [])),
        returning(("9" * 5_000 + "-1", 0, 0, "retry", [])),
        returning(("5-1", 0, 0, "retry", [b"id"])),
        returning(("5-1", 0, 0, "retry", [], -1)),
        returning(b"\x95\xa35-\xff\x00\x00\xa5retry\x90"),
        returning(("5-1", 0, 0, "retry", []), event_id=b""),
        returning(("5-1", 0, 0, "retry", []), event_id=b"a\x00b"),
        returning(("5-1", 0, 0, "retry", []), event_id=b"\xff"),
        returning(("5-1", 0, 0, "retry", []), event_id=TOO_LONG),
        [],
        [b"id"],
    ],
)
def test_a_returning_entry_that_others_wrote_is_a_decode_error(fields: Fields) -> None:
    one = received(fields, again=True)
    assert one.message is None
    assert "of an again stream" in str(one.error)
    assert (one.delivery.event_id, one.delivery.attempts, one.delivery.parked_ms) == ("5-1", 0, 0)


def test_a_returning_entry_of_ours_is_read() -> None:
    one = received(returning(pack(Again("4-1", 3, 5, "retry", entry()))), again=True)
    assert (one.error, one.delivery.attempts, one.delivery.origin_id) == (None, 3, "4-1")


# -- dead letters and lines ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [b"9" * 15, b"9" * 5_000, "²".encode(), "٣".encode(), b"-1", b"", b"\xff"])
@pytest.mark.parametrize("field", [-1, -9], ids=["at", "attempts"])
def test_a_dead_letter_with_any_number_can_be_shown(field: int, number: bytes) -> None:
    fields = dead_letter_fields(
        entry(), Failure("decode", "no"), attempts=1, entry_id="5-1", group="g", consumer="c", at_ms=5
    )
    fields[field] = number
    full = shown_in_full(read_letter(PLACE, "5-1", fields))
    assert (full["attempts"], full["at"][:4]) == ((1, "1970") if field == -1 else (0, "1970"))


@pytest.mark.parametrize("own", [[b"dl-replays"], [b"dl-replays", b"9" * 5_000], [b"dl-replays", "²".encode()]])
def test_a_dead_letter_says_how_often_it_came_back_or_anything_else(own: Fields) -> None:
    fields = dead_letter_fields(
        own, Failure("decode", "no"), attempts=1, entry_id="5-1", group="g", consumer="c", at_ms=5
    )  # fmt: skip
    assert read_letter(PLACE, "5-1", fields).letter.replays == 0


@pytest.mark.parametrize(
    "data",
    [b"[" * 100_000, b'{"a":NaN}', b'{"a":1e999}', b"\x91" * 100_000, b"9" * 5_000, b"\xff"],
)
def test_data_that_json_cannot_show_are_shown_as_text(data: bytes) -> None:
    fields = dead_letter_fields(
        entry(data=data), Failure("decode", "no"), attempts=1, entry_id="5-1", group="g", consumer="c", at_ms=5
    )
    shown = shown_in_full(read_letter(PLACE, "5-1", fields))["data"]
    assert shown == data.decode(errors="backslashreplace")


@pytest.mark.parametrize("depth", [60, 300, 900, 980, 1_200])
def test_whatever_is_shown_can_be_printed(depth: int, capsys: pytest.CaptureFixture[str]) -> None:
    fields = dead_letter_fields(
        entry(data=b'[{"a":' * depth + b"1" + b"}]" * depth),
        Failure("decode", "no"), attempts=1, entry_id="5-1", group="g", consumer="c", at_ms=5,
    )  # fmt: skip
    print_json(shown_in_full(read_letter(PLACE, "5-1", fields)))
    assert '"event_id": "e-1"' in capsys.readouterr().out


@pytest.mark.parametrize(
    "line",
    [
        b'{"type":"Touchy","data":{"order_id":"o-1"}}',
        b'{"type":"Placed","data":' + b"[" * 100_000 + b"}",
        b'{"type":"Placed","data":{"order_id":"\\ud800"}}',
        b'{"type":"Placed","data":{"order_id":"o-1"},"delay":1e999}',
        b'{"type":"Placed","data":{"order_id":"o-1"},"version":' + b"9" * 5_000 + b"}",
        b'{"type":"Placed","data":{"order_id":"o-1"},"surprise":1}',
        b"\xff",
        b"[]",
    ],
)
def test_a_line_that_is_no_event_is_a_bad_line(line: bytes) -> None:
    with pytest.raises(BadLine):
        read_line(TOPIC, line)
