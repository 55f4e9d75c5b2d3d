"""What is recorded comes back as it was: types, codecs of one's own (compressed, encrypted), settings from outside.

The Transcoder and InfrastructureFactory cases of the `eventsourcing` package. Its transcoder writes down the type of
each value and refuses subclasses of built-in types. Ours goes by the annotations of the event's class: a value comes
back as the annotated type, subclasses of texts and numbers are refused, those of lists and dicts come back as lists and
dicts, and a type that cannot be stored is refused when its topic is declared.
"""

import hashlib
import zlib
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import msgspec
import pytest

from streamlib import Aggregate, App, Event, applies
from streamlib.codec import Fields, NativeCodec
from streamlib.errors import DeclarationError, DecodeError, PublishError
from streamlib.message import Message
from streamlib.settings import load_settings
from tests.conformance.places import Place
from tests.conformance.rig import make_app


class Colour(Enum):
    RED = "red"


class Point(msgspec.Struct):
    x: int
    y: Decimal


class Line(msgspec.Struct):
    start: Point
    more: tuple[Point, ...] = ()


class Kept(Event):
    name: str
    text: str = ""
    raw: bytes = b""
    whole: int = 0
    money: Decimal = Decimal(0)
    yes: bool = False
    at: datetime | None = None
    day: date | None = None
    uid: UUID | None = None
    colour: Colour | None = None
    pair: tuple[int, str] | None = None
    many: list[Any] = []  # noqa: RUF012
    keyed: dict[str, Any] = {}  # noqa: RUF012
    line: Line | None = None
    lines: dict[str, list[Line]] = {}  # noqa: RUF012


class Holder(Aggregate):
    kept: list[Kept] = []  # noqa: RUF012

    def keep(self, **values: Any) -> None:
        self.record(Kept(name=self.id, **values))

    @applies(Kept)
    def _kept_event(self, event: Kept) -> None:
        self.kept.append(event)


VALUES: list[dict[str, Any]] = [
    {"text": "é\U0001f600\x00\n\"'\\"},
    {"text": "a" * 10_000},
    {"raw": bytes(range(256))},
    {"whole": -(1 << 63)},
    {"whole": (1 << 64) - 1},
    {"money": Decimal("0.10")},
    {"money": Decimal("1E+30")},
    {"yes": True},
    {"at": datetime(2026, 11, 28, 21, 0, 0, 123456, tzinfo=UTC)},
    {"day": date(2026, 2, 28)},
    {"uid": UUID(int=1)},
    {"colour": Colour.RED},
    {"pair": (1, "one")},
    {"many": [1, "a", None, True, 2.5, [[]], {}]},
    {"keyed": {"_type_": "str", "_data_": {"_type_": "tuple", "_data_": [1]}}},
    {"keyed": {"__streamlib_type__": "Kept", "type": "x", "v": 9, "id": "", "key": "", "data": {}}},
    {"line": Line(Point(1, Decimal("2.50")), (Point(3, Decimal(4)),))},
    {"lines": {"a": [Line(Point(0, Decimal(0)))], "": []}},
]


class Squeezed(NativeCodec):
    """Data are compressed, and encrypted with a key if there is one (a toy: the key's stream, and a checksum)."""

    def __init__(self, *, compress: bool = False, key: bytes = b"") -> None:
        super().__init__("msgpack")
        self._compress = compress
        self._key = key

    def write(self, message: Message) -> Fields:
        data = zlib.compress(message.data) if self._compress else message.data
        return super().write(msgspec.structs.replace(message, data=self._cipher(data) if self._key else data))

    def read(self, entry_id: str, fields: Fields) -> Message:
        message = super().read(entry_id, fields)
        try:
            data = self._decipher(message.data) if self._key else message.data
            return msgspec.structs.replace(message, data=zlib.decompress(data) if self._compress else data)
        except (ValueError, zlib.error) as error:
            raise DecodeError(f"entry {entry_id}: its data cannot be opened: {error}") from error

    def _cipher(self, data: bytes) -> bytes:
        return hashlib.blake2b(data, key=self._key, digest_size=16).digest() + self._stream(data)

    def _decipher(self, data: bytes) -> bytes:
        plain = self._stream(data[16:])
        if hashlib.blake2b(plain, key=self._key, digest_size=16).digest() != data[:16]:
            raise ValueError("wrong key")
        return plain

    def _stream(self, data: bytes) -> bytes:
        pad = hashlib.shake_256(self._key).digest(len(data))
        return bytes(one ^ other for one, other in zip(data, pad, strict=True))


CODECS = {
    "json": NativeCodec(),
    "msgpack": NativeCodec("msgpack"),
    "compressed": Squeezed(compress=True),
    "encrypted": Squeezed(key=b"secret"),
    "both": Squeezed(compress=True, key=b"secret"),
}


@pytest.mark.parametrize("codec", CODECS)
async def test_all_values_come_back(place: Place, codec: str) -> None:
    app = make_app(place.url)
    holders = app.repository(
        Holder, app.topic("kept", Kept, key="name", partitions=place.partitions, codec=CODECS[codec]), snapshot_every=4
    )
    async with app:
        holder = Holder("h")
        for values in VALUES:
            holder.keep(**values)
            await holders.save(holder)
        assert (await holders.load("h")).kept == [Kept(name="h", **values) for values in VALUES]
        for record, values in zip(await holders.history("h"), VALUES, strict=True):
            ((name, value),) = values.items()
            assert type(getattr(record.event, name)) is type(value)
    data = b"".join(fields[b"data"] for fields in place.entries("kept"))
    assert (b"secret" in data, b"streamlib_type" in data) == (False, codec in ("json", "msgpack"))


async def test_another_key_opens_nothing(place: Place) -> None:
    for key, readable in ((b"secret", True), (b"guess", False)):
        app = make_app(place.url)
        topic = app.topic("kept", Kept, key="name", partitions=place.partitions, codec=Squeezed(key=key))
        holders = app.repository(Holder, topic)
        async with app:
            if readable:
                holder = Holder("h")
                holder.keep(text="hidden")
                await holders.save(holder)
                assert (await holders.load("h")).kept[0].text == "hidden"
            else:
                with pytest.raises(DecodeError, match=r"version 1 of an aggregate: .*wrong key"):
                    await holders.load("h")


@pytest.mark.parametrize("name", ["text", "whole"])
async def test_a_subclass_of_a_text_or_a_number_is_refused(place: Place, name: str) -> None:
    app = make_app(place.url)
    holders = app.repository(Holder, app.topic("kept", Kept, key="name", partitions=place.partitions))
    base: type[Any] = {"text": str, "whole": int}[name]
    async with app:
        holder = Holder("h")
        holder.keep(**{name: type("Special", (base,), {})(7)})
        with pytest.raises(PublishError, match="Kept cannot be encoded: Encoding objects of type Special"):
            await holders.save(holder)
        assert not await holders.exists("h")
    assert place.entries("kept") == []


async def test_a_subclass_of_a_list_or_a_dict_comes_back_as_what_is_annotated(place: Place) -> None:
    app = make_app(place.url)
    holders = app.repository(Holder, app.topic("kept", Kept, key="name", partitions=place.partitions))
    async with app:
        holder = Holder("h")
        holder.keep(many=type("Many", (list,), {})([1]), keyed=type("Keyed", (dict,), {})(a=1))
        await holders.save(holder)
        (event,) = (await holders.load("h")).kept
    assert event == Kept(name="h", many=[1], keyed={"a": 1})
    assert (type(event.many), type(event.keyed)) == (list, dict)


def test_a_type_that_cannot_be_stored_is_refused_with_its_topic() -> None:
    class Thing:
        pass

    class Odd(Event):
        thing: Any
        things: "dict[Thing, int]"

    with pytest.raises(DeclarationError, match=r"Odd"):
        make_app("redis://127.0.0.1").topic("odd", Odd)


async def test_settings_come_from_the_environment(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMLIB_REDIS_URL", place.url)
    monkeypatch.setenv("STREAMLIB_REDIS_NAMESPACE", "shop")
    app = App("kept", settings=load_settings())
    holders = app.repository(Holder, app.topic("kept", Kept, key="name"))
    async with app:
        holder = Holder("h")
        holder.keep(text="x")
        await holders.save(holder)
        assert (await holders.load("h")).version == 1
    with place.client() as client:
        assert client.llen("{shop:kept}:agg:h") == 1
