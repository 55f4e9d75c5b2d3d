"""Events of every shape: what an append leaves in Redis is, byte for byte, the entry and the element of each alone."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
import redis

from streamlib import Event
from streamlib.codec import Codec, FlatCodec, NativeCodec, RawCodec
from streamlib.errors import PayloadTooLarge, PublishError
from streamlib.event import Registry
from streamlib.message import MAX_HEADERS, Message
from streamlib.redisio.append_args import args_of
from streamlib.redisio.event_store import BATCH_BYTES, BATCH_EVENTS
from streamlib.redisio.later import pack
from streamlib.redisio.publisher import MAX_FIELD_PARTS
from streamlib.redisio.scripts import Arg, Script
from streamlib.settings import LimitSettings
from streamlib.topic import TopicSpec
from tests.helpers.accounts import ACCOUNTS, LIST, STREAM, Opened, deposits, everything, open_bank, open_store

ODD_KEYS = ("a", "é", "日本:7", "4:data", " ", "*", "a b", '{"id": 1}', "x" * 200, "é" * 100)
HEADERS = {f"name {n}": "é\n" for n in range(MAX_HEADERS)}


class Note(Event):
    text: str = ""
    more: str | None = None


def notes(codec: Codec) -> TopicSpec:
    return TopicSpec(name="accounts", registry=Registry([Note, Opened]), codec=codec)


def message(key: str = "a", *, type: str = "Note", data: bytes = b"{}", **envelope: Any) -> Message:
    return Message(**{"id": f"{type}-{len(data)}", "type": type, "key": key, "data": data, **envelope})


SHAPES: dict[str, list[Message]] = {
    "one": [message()],
    "alike": [message(id=f"e-{n}", data=b'{"text":"%d"}' % n) for n in range(5)],
    "no data": [message(id="1", data=b""), message(id="2"), message(id="3", data=b"")],
    "any bytes": [message(data=bytes(range(256))), message(data=b"\r\n\r\n$-1\r\n"), message(data=b"3:abc" * 9)],
    "ids of any length": [message(id="x" * size) for size in (1, 9, 10, 36, 99, 100, 200)] + [message(id="é" * 100)],
    "versions": [message(version=version) for version in (1, 1, 2, 10, 2, 1_000_000)],
    "types by turns": [message(type=("Note", "Opened", "é:1")[n % 3], id=f"{n}") for n in range(9)],
    "times": [message(time_ms=ms) for ms in (0, 7, 7, 9_999_999_999_999_999)] + [message()],
    "headers": [message(), message(headers={"a": "b"}), message(headers={"a": ""}), message(headers=HEADERS)],
    "everything set": [
        message(id=f"{n}", time_ms=5, correlation_id="c", causation_id="é", traceparent="00-1", headers={"h": "1"})
        for n in range(3)
    ],
}  # fmt: skip


async def append(url: str, topic: TopicSpec, key: str, messages: Sequence[Message], expected: int = 0) -> list[str]:
    """The ids of the entries."""
    async with open_store(url, limits=LimitSettings(payload_bytes=BATCH_BYTES)) as store:
        appended = await store.append(topic, key, expected, messages, commit_id="c-1")
        assert appended.version == expected + len(messages)
        again = await store.append(topic, key, expected, messages, commit_id="c-1")
        assert (again.repeated, again.positions) == (True, appended.positions)
    return [position.entry_id for position in appended.positions]


def assert_stored(
    client: redis.Redis, topic: TopicSpec, key: str, messages: Sequence[Message], entry_ids: list[str]
) -> None:
    """In the stream lie the fields that the codec has written, and in the list the same fields, packed."""
    written = [topic.codec.write(one) for one in messages]
    raw: Any = client.eval("return redis.call('XRANGE', KEYS[1], '-', '+')", 1, STREAM)  # with names that come twice
    assert raw == [[entry_id.encode(), fields] for entry_id, fields in zip(entry_ids, written, strict=True)]
    assert client.lrange(LIST + key, 0, -1) == [
        entry_id.encode() + b" c-1 " + pack(fields) for entry_id, fields in zip(entry_ids, written, strict=True)
    ]


@pytest.mark.parametrize("shape", SHAPES)
async def test_an_append_stores_what_each_event_alone_would_be(redis_url: str, client: redis.Redis, shape: str) -> None:
    topic, messages = notes(NativeCodec()), SHAPES[shape]
    assert_stored(client, topic, "a", messages, await append(redis_url, topic, "a", messages))
    async with open_store(redis_url) as store:
        found = [stored async for stored in store.read(topic, "a")]
    assert [stored.message for stored in found] == messages
    assert [(stored.version, stored.commit_id) for stored in found] == [(n + 1, "c-1") for n in range(len(messages))]


async def test_events_of_all_shapes_go_together(redis_url: str, client: redis.Redis) -> None:
    topic, messages = notes(NativeCodec()), [one for shape in SHAPES.values() for one in shape]
    assert_stored(client, topic, "a", messages, await append(redis_url, topic, "a", messages))


@pytest.mark.parametrize("key", ODD_KEYS)
async def test_a_key_of_any_text(redis_url: str, client: redis.Redis, key: str) -> None:
    topic, messages = notes(NativeCodec()), [message(key, id=f"{n}") for n in range(3)]
    assert_stored(client, topic, key, messages, await append(redis_url, topic, key, messages))


@pytest.mark.parametrize(
    ("codec", "messages"),
    [
        (NativeCodec("msgpack"), [message(data=msgspec.msgpack.encode({"text": text})) for text in ("", "é", "x")]),
        (RawCodec(Note), [message(data=data) for data in (b"", b"{}", b"\x00\xff")]),
        (RawCodec(Note), [message(headers={"b": "1"}), message(headers={"b": "2", "c": "3"}), message()]),
        (FlatCodec(Note), [message(data=b'{"text":"%d"}' % n) for n in range(3)]),
        (FlatCodec(Note), [message(data=b'{"text":"a"}'), message(data=b'{"text":"a","more":"b"}')]),
        (FlatCodec(Note, type_field="text"), [message(data=b'{"text":"a","more":"b"}'), message(data=b"{}")]),
    ],
)
async def test_entries_of_any_layout(
    redis_url: str, client: redis.Redis, codec: Codec, messages: list[Message]
) -> None:
    """One field, fields that are called differently, and the same name twice in one entry."""
    topic = notes(codec)
    assert_stored(client, topic, "a", messages, await append(redis_url, topic, "a", messages))


async def test_an_entry_that_is_no_names_and_values_is_refused(redis_url: str, client: redis.Redis) -> None:
    class Odd(NativeCodec):
        parts = 3

        def write(self, message: Message) -> list[bytes]:
            return [b"x"] * self.parts

    codec = Odd()
    async with open_store(redis_url) as store:
        for codec.parts in (0, 1, 3, MAX_FIELD_PARTS + 2):
            with pytest.raises(PublishError, match=f"becomes {codec.parts} names and values; an entry has 1 to 1000"):
                await store.append(notes(codec), "a", 0, [message()])
        assert client.dbsize() == 0
        codec.parts = MAX_FIELD_PARTS
        assert (await store.append(notes(codec), "a", 0, [message()] * 2)).version == 2


# -- the biggest


async def test_the_most_events_and_the_most_bytes_of_one_append(redis_url: str, client: redis.Redis) -> None:
    topic = notes(NativeCodec())
    most = [message(id=f"{n:036}", data=b"x" * 100) for n in range(BATCH_EVENTS)]
    entry_ids = await append(redis_url, topic, "a", most)
    envelope = sum(map(len, topic.codec.write(message(data=b"", id="1"))))
    large = [message(id=f"{n}", data=b"x" * (BATCH_BYTES // 4 - envelope)) for n in range(4)]
    entry_ids += await append(redis_url, topic, "a", large, BATCH_EVENTS)
    assert_stored(client, topic, "a", most + large, entry_ids)
    before = everything(client)
    async with open_store(redis_url, limits=LimitSettings(payload_bytes=BATCH_BYTES)) as store:
        larger = [*large[:3], message(id="3", data=large[3].data + b"x")]
        with pytest.raises(PayloadTooLarge, match=f"{BATCH_BYTES + 1} bytes in one append; at most {BATCH_BYTES}"):
            await store.append(topic, "a", BATCH_EVENTS + 4, larger)
    assert everything(client) == before


# -- what stands in Redis from before


async def test_elements_of_before_are_read_and_appended_to(redis_url: str, client: redis.Redis) -> None:
    """As the append script wrote them when each event brought all of its fields."""
    place, other = b"1795907719255-%d Uw9SnaRfFw9s 2:id36:%b", b"1795907719300-0 other 2:id3:own"
    first_id, second_id = b"019d4bd2-6d1f-7a2c-9e1d-0123456789ab", b"019d4bd2-6d1f-7a2c-9e1d-0123456789cd"
    deposited, data = b"4:type9:Deposited1:v1:13:key1:a4:data", b'31:{"account_id":"a","amount":"%d"}'
    opened = b'4:type6:Opened1:v1:13:key1:a4:data37:{"account_id":"a","owner":"Grace Ho"}'
    client.rpush(
        f"{LIST}a",
        place % (0, first_id) + opened,
        place % (1, second_id) + deposited + data % 2,
        other + deposited + data % 1 + b'2:ts2:171:h13:{"who":"Ada"}',
    )
    async with open_bank(redis_url) as bank:
        account = await bank.load("a")
        assert (account.owner, str(account.balance), account.version) == ("Grace Ho", "3", 3)
        account.deposit(4)
        await bank.save(account)
        assert str((await bank.load("a")).balance) == "7"
        history = await bank.history("a")
    assert [one.event_id for one in history[:3]] == [first_id.decode(), second_id.decode(), "own"]
    assert [(one.time, one.commit_id) for one in history[1:3]] == [(1795907719255, "Uw9SnaRfFw9s"), (17, "other")]
    newest: Any = client.lindex(f"{LIST}a", -1)
    assert newest.split(b" ", 2)[2] == b"2:id36:" + history[3].event_id.encode() + deposited + data % 4


# -- arguments that do not add up


def broken(args: list[Arg]) -> dict[str, list[Arg]]:
    return {
        "one missing": args[:-1],
        "one too many": [*args, b"x"],
        "more events than sent": [*args[:5], 3, *args[6:]],
        "fewer events than sent": [*args[:5], 1, *args[6:]],
        "no events in a run": [*args[:6], 0, *args[7:]],
        "no number of events": [*args[:6], b"x", *args[7:]],
        "parts that are no pairs": [*args[:7], 9, *args[8:]],
        "no parts": [*args[:7], 0, *args[8:]],
        "far more parts than sent": [*args[:7], 1_000_000, *args[8:]],
        "events that are not there": [*args[:5], 0, *args[6:]],
    }


@pytest.mark.parametrize("what", broken([b""] * 20))
async def test_arguments_that_do_not_add_up_are_refused_before_anything_is_written(
    redis_url: str, client: redis.Redis, what: str
) -> None:
    async with open_store(redis_url) as store:
        await store.append(ACCOUNTS, "a", 0, deposits("a"))
        before = everything(client)
        events, _ = args_of(ACCOUNTS.codec.write(one) for one in deposits("a", 2))
        args: list[Arg] = [1, "c-1", 0, b"answer", 60_000, 2, *events]
        names = [STREAM, f"{LIST}a", "{accounts}:later", "{accounts}:cmd:k"]
        with pytest.raises(redis.ResponseError, match="append: its arguments do not make"):
            await Script("append").run(store._redis, names, broken(args)[what])
        assert everything(client) == before
        assert (await Script("append").run(store._redis, names, args))[0] == b"+"
