"""What is fuzzed: the functions by which workers, projections, aggregates and the command line read what was stored."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any, cast

import msgspec
from msgspec import Struct

from streamlib.cli.letters import shown_in_full
from streamlib.cli.publish import BadLine, read_line
from streamlib.codec import Codec, Fields, FlatCodec, NativeCodec, RawCodec
from streamlib.errors import DecodeError, PublishError, SchemaError
from streamlib.event import Event
from streamlib.keys import StreamKeys
from streamlib.ops.dead_letters import read_letter
from streamlib.ops.places import Place
from streamlib.redisio.again import Again, pack
from streamlib.redisio.dead_letter import Failure, dead_letter_fields
from streamlib.redisio.elements import ElementReader
from streamlib.redisio.later import pack as pack_later
from streamlib.redisio.reader import receive
from streamlib.redisio.rows import RowCodec
from streamlib.settings import LimitSettings
from streamlib.worker.decoding import Decoding
from streamlib.worker.preparing import Preparer, RawEntry
from streamlib.worker.projection import Projection
from streamlib.worker.work import Group
from tests.fuzz import entries
from tests.fuzz.events import CodeOfTheClass, Moved, Paid, Plain, Row, Touchy, Tree, spec
from tests.fuzz.values import NAMES, json_value, msgpack_value, mutated

PAYLOAD_BYTES = LimitSettings().payload_bytes
_KEYS = StreamKeys("orders")
_GROUP = Group(topic="orders", group="g", worker_id="w", consumer="c")
_NATIVE = {packed: NativeCodec("msgpack" if packed else "json") for packed in (False, True)}
_RAW = {packed: RawCodec(Paid, data_format="msgpack" if packed else "json") for packed in (False, True)}
_TOPIC = spec(_NATIVE[False])
_ELEMENTS, _ROWS = ElementReader(_TOPIC, "Order"), RowCodec(Row)
_FLAT = FlatCodec(Paid, type_field="kind")


class Target(Struct, frozen=True):
    """`make` draws the input of a case. `read` reads it: a word for what came of it, and its dead letter if it has one.
    `often` is its share of the cases."""

    name: str
    make: Callable[[random.Random], Any]
    read: Callable[[Any], tuple[str, Fields | None]]
    often: int = 1


class _Consumer:
    """Reads entries of one codec as a worker of one group does."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._decoding = Decoding(spec(codec), _GROUP, PAYLOAD_BYTES, unknown_ttl_s=60)

    def read(self, given: tuple[str, bool, Fields]) -> tuple[str, Fields | None]:
        entry_id, again, fields = given
        received = receive(_KEYS, 0, again, "retry" if again else "new", self._codec, entry_id.encode(), fields)
        if isinstance(self._decoding.class_of(received), type):
            outcome = self._decoding.decode(received, "handle")
        else:
            outcome = self._decoding.unreadable(received, frozenset())
        if isinstance(outcome, Event):
            return "event", None
        if outcome.failure is None:
            return outcome.outcome, None
        return outcome.failure.reason, cast(Fields, outcome.settlement.parts)


def show(letter: Fields) -> None:
    """What `streamlib dlq show --json` does with a dead letter."""
    full = shown_in_full(read_letter(Place("orders", 0, "g", "group", _KEYS), "5-1", letter))
    json.dumps(full, indent=2, ensure_ascii=False, allow_nan=False)


def _entry(make: Callable[[random.Random], Fields]) -> Callable[[random.Random], tuple[str, bool, Fields]]:
    return lambda rng: (rng.choice(entries.ENTRY_IDS), False, make(rng))


def _returning(rng: random.Random) -> tuple[str, bool, Fields]:
    """An entry of `{S}:again`."""
    kept = Again("5-1", rng.choice((0, 3)), rng.choice((0, 5)), "retry", entries.native(rng, packed=False))
    body, way = pack(kept), rng.random()
    if way < 0.5:
        body = mutated(rng, body)
    elif way < 0.6:
        body = msgspec.msgpack.encode(
            (
                rng.choice(("5-1", "٣-٣", "5", "9" * 30 + "-1", "5-1\n")),
                *(rng.choice((0, -1, 2**63, 2**64 - 1, -(2**63))) for _ in range(2)),
                "retry",
                [b"id"] * rng.randrange(3),
            )
        )
    elif way < 0.7:  # more than we keep: what is read past must not be read without end either
        body = b"\x97" + body[1:] + msgpack_value(rng)
    fields = [b"id", rng.choice((b"e-1", b"\xff", b"")), b"body", body]
    if rng.random() < 0.1:
        fields = fields[: rng.randrange(5)] + [rng.randbytes(3)] * rng.randrange(3)
    return "7-1", True, fields


class _Folder:
    """Reads entries as a projection does."""

    def __init__(self) -> None:
        def nowhere() -> Any:
            raise AssertionError("reading asks no server")

        projection = Projection("view", spec(_NATIVE[False]), Row, key="order_id", keys=nowhere, redis=nowhere)
        for cls in (Paid, Plain, Tree, Touchy, Moved):
            projection.folds[cls] = lambda row, event: row
        self._preparer = Preparer(projection, 0, PAYLOAD_BYTES)

    def read(self, given: tuple[str, bool, Fields]) -> tuple[str, Fields | None]:
        prepared, stop = self._preparer.prepare([RawEntry.of(given[0], given[2])])
        if stop is not None:
            return "waits", None
        (one,) = prepared
        if one.failure is None:
            return "event" if one.event is not None else "skipped", None
        return one.failure.reason, _letter(one.failure, given[2])


def _letter(failure: Failure, fields: Fields) -> Fields:
    return dead_letter_fields(fields, failure, attempts=1, entry_id="5-1", group="g", consumer="c", at_ms=5)


def _dead_letter(rng: random.Random) -> Fields:
    """An entry of a dead-letter stream, as anybody may have written it."""
    packed = rng.random() < 0.3
    fields = _letter(Failure.of("decode", DecodeError("no")), entries.native(rng, packed=packed))
    if rng.random() < 0.1:
        fields[:-18] = [b"dl-packed", mutated(rng, msgspec.msgpack.encode(fields[:-18]))]
    if rng.random() < 0.5:
        numbers = (b"9" * 20, b"9" * 15, b"9" * 5_000, "²".encode(), "٣".encode(), b"-1", b"", b"\xff")
        fields[rng.choice((-1, -9))] = rng.choice(numbers)
    if rng.random() < 0.3:
        some = rng.randrange(len(fields))
        fields[some] = mutated(rng, fields[some])
    return fields


def _letters_read(fields: Fields) -> tuple[str, Fields | None]:
    return "shown", fields


def _line(rng: random.Random) -> bytes:
    """A line of `streamlib publish`."""
    names = [b'"type":"%b"' % rng.choice((b"Paid", b"Plain", b"Tree", b"Touchy", b"Moved", b"Unheard"))]
    names.append(b'"data":' + entries.data(rng, rng.choice(("Paid", "Tree", "Moved")), packed=False))
    more = rng.choices(NAMES, k=rng.randrange(3)) if rng.random() < 0.3 else []
    line = b"{" + b",".join([*names, *(b'"%b":%b' % (name, json_value(rng, 1)) for name in more)]) + b"}"
    return mutated(rng, line) if rng.random() < 0.2 else line


def _lines_read(text: bytes) -> tuple[str, Fields | None]:
    try:
        read_line(_TOPIC, text)
    except BadLine:
        return "bad line", None
    except PublishError:
        return "refused", None
    return "event", None


def _element(rng: random.Random) -> bytes:
    """An event in the list of an aggregate."""
    element = b"5-1 commit " + pack_later(entries.native(rng, packed=False))
    return mutated(rng, element) if rng.random() < 0.4 else element


def _elements_read(element: bytes) -> tuple[str, Fields | None]:
    try:
        list(_ELEMENTS.events("o-1", 0, 0, [element]))
    except DecodeError as error:
        return error.reason, None
    except CodeOfTheClass:
        return "code of the class", None
    return "event", None


def _row(rng: random.Random) -> dict[bytes, bytes]:
    names = rng.sample([b"order_id", b"amount", b"anything", b"surprise"], rng.randrange(5))
    return {name: rng.choice((json_value(rng), rng.randbytes(4), b"o-1")) for name in names}


def _rows_read(fields: dict[bytes, bytes]) -> tuple[str, Fields | None]:
    try:
        _ROWS.decode(fields, "row o-1")
    except SchemaError:
        return "schema", None
    return "row", None


TARGETS = (
    Target("json", _entry(lambda rng: entries.native(rng, packed=False)), _Consumer(_NATIVE[False]).read, 30),
    Target("msgpack", _entry(lambda rng: entries.native(rng, packed=True)), _Consumer(_NATIVE[True]).read, 20),
    Target("flat", _entry(entries.flat), _Consumer(_FLAT).read, 8),
    Target("raw json", _entry(lambda rng: entries.raw(rng, packed=False)), _Consumer(_RAW[False]).read, 4),
    Target("raw msgpack", _entry(lambda rng: entries.raw(rng, packed=True)), _Consumer(_RAW[True]).read, 4),
    Target("again", _returning, _Consumer(_NATIVE[False]).read, 10),
    Target("projection", _entry(lambda rng: entries.native(rng, packed=False)), _Folder().read, 10),
    Target("dead letters", _dead_letter, _letters_read, 5),
    Target("publish lines", _line, _lines_read, 5),
    Target("aggregates", _element, _elements_read, 3),
    Target("rows", _row, _rows_read, 1),
)
