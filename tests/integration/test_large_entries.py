"""Entries and pages that outgrow the server's output buffer: pages come in pieces, a too large entry dies alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest

from streamlib import App, Event, FlatCodec, NativeCodec, RawCodec, ReadModel
from streamlib.codec import Codec
from streamlib.keys import Keys
from streamlib.ops.dead_letters import DeadLetters, Filters
from streamlib.ops.inspect import inspect
from streamlib.redisio.dead_letters import Replay
from streamlib.redisio.key_states import halted_count, skip
from streamlib.redisio.large_entries import Room, is_cut
from streamlib.redisio.reader import receive
from streamlib.redisio.registry import last_id
from streamlib.redisio.scripts import Script
from tests.helpers.delivering import burst, dead_letters, running, settings
from tests.helpers.publishing import open_door
from tests.helpers.servers import RedisProc
from tests.helpers.waiting import eventually

pytestmark = pytest.mark.timeout(60)
LIMIT = 1 << 20
How = Literal["none", "key", "projection"]


class Noted(Event):
    note_id: str
    text: str = ""


class Note(ReadModel):
    note_id: str
    size: int = 0


def an_app(url: str, how: How, runs: list[str]) -> App:
    app = App("notes", settings=settings(url))
    notes = app.topic("notes", Noted, key="note_id")
    if how == "projection":
        view = app.projection("g", notes, Note, key="note_id")

        @view.on(Noted)
        def fold(row: Note | None, event: Noted) -> Note:
            runs.append(event.note_id)
            return Note(note_id=event.note_id, size=len(event.text))
    else:

        @app.handler(notes, group="g", ordering=how)
        async def handle(event: Noted) -> None:
            runs.append(event.note_id)

    return app


def add(client: Any, note_id: str, size: int) -> str:
    """An event that another program adds, past every limit of publishing; its entry id."""
    data = f'{{"note_id": "{note_id}", "text": "{"x" * size}"}}'
    entry = {"id": f"e-{note_id}", "type": "Noted", "v": "1", "key": "k", "data": data}
    return str(client.xadd("notes", entry).decode())


def bound_replies(client: Any, limit: int) -> None:
    client.config_set("client-output-buffer-limit", f"normal {limit} 0 0")


@pytest.mark.row(26)
@pytest.mark.parametrize("how", ["none", "key", "projection"])
async def test_an_entry_that_no_reply_can_hold_is_a_dead_letter_and_its_neighbours_flow(
    own_server: Callable[..., RedisProc], how: How
) -> None:
    server, runs = own_server(), list[str]()
    app = an_app(server.url, how, runs)
    before, after = [f"before-{n}" for n in range(20)], [f"after-{n}" for n in range(20)]
    with server.client() as client:
        bound_replies(client, LIMIT)
        async with app:
            for name in before:
                add(client, name, 200_000)
            entry_id = add(client, "huge", 3 * LIMIT)
            for name in after:
                add(client, name, 100)
            async with running(app):
                await eventually(lambda: {*before, *after} <= set(runs), timeout=40)
                await eventually(lambda: client.xlen("{notes}:dead:g") == 1, timeout=40)
                add(client, "last", 100)
                await eventually(lambda: runs[-1] == "last", timeout=40)
        assert "huge" not in runs
        if how != "none":
            assert runs == [*before, *after, "last"], "in their order"
        [letter] = dead_letters(client, "notes", "g")
        assert (letter["dl-reason"], letter["dl-entry"]) == ("decode", entry_id)
        assert entry_id in letter["dl-error"]
        assert str(3 * LIMIT)[:3] in letter["dl-error"], "its size"
        assert letter["id"] == "e-huge"
        assert len(letter["data"]) == 1_000
        bound_replies(client, 0)
        assert client.xrange("notes", entry_id, entry_id), "the whole is where it was"


@pytest.mark.row(26)
@pytest.mark.parametrize("how", ["none", "key", "projection"])
async def test_such_an_entry_may_be_all_that_a_stream_has(own_server: Callable[..., RedisProc], how: How) -> None:
    """XINFO STREAM brings the first and the last entry whole: what asks it must not wait for ever."""
    server, runs = own_server(), list[str]()
    app = an_app(server.url, how, runs)
    with server.client() as client:
        async with app:
            add(client, "huge", 3 * LIMIT)
            bound_replies(client, LIMIT)
            async with running(app):
                await eventually(lambda: client.xlen("{notes}:dead:g") == 1, timeout=40)
                [about] = await inspect(app.redis, app.keys, "notes")
                assert about.length == 1
                assert [(group.lag, group.dead) for group in about.groups] == [(0, 1)]
                add(client, "last", 100)
                await eventually(lambda: runs == ["last"], timeout=40)
            assert await last_id(app.redis, "notes") != "0-0"


@pytest.mark.row(26)
async def test_the_dead_letter_of_such_an_entry_can_be_read_and_replayed_once_the_server_can_send_it(
    own_server: Callable[..., RedisProc],
) -> None:
    server, runs = own_server(), list[str]()
    app = an_app(server.url, "none", runs)
    with server.client() as client:
        bound_replies(client, LIMIT)
        async with app, open_door(server.url) as door:
            add(client, "huge", 3 * LIMIT)
            async with running(app):
                await eventually(lambda: client.xlen("{notes}:dead:g") == 1, timeout=40)
            letters = DeadLetters(door, Keys(), window_s=60)
            [found] = await letters.newest(Filters(topic="notes"))
            assert is_cut(found.letter.fields)
            assert await letters.replay([found]) == {Replay.CUT: 1}
            bound_replies(client, 0)
            assert await letters.replay([found]) == {Replay.REPLAYED: 1}
            await burst(app)
        [letter] = dead_letters(client, "notes", "g")
        assert "limits.payload_bytes is 262144" in letter["dl-error"], "it was read, and is what publishing refuses"
        assert len(letter["data"]) > 3 * LIMIT


@pytest.mark.row(26)
async def test_a_key_that_halted_at_such_an_entry_can_be_skipped(own_server: Callable[..., RedisProc]) -> None:
    server, runs = own_server(), list[str]()
    app = App("notes", settings=settings(server.url))
    notes = app.topic("notes", Noted, key="note_id")

    @app.handler(notes, group="g", ordering="key", on_dead="block")
    async def handle(event: Noted) -> None:
        runs.append(event.note_id)

    with server.client() as client:
        bound_replies(client, LIMIT)
        async with app:
            entry_id = add(client, "huge", 3 * LIMIT)
            add(client, "next", 100)
            async with running(app):
                stream = app.keys.stream("notes", 0, 1)
                await eventually(lambda: halted_count(app.redis, stream, "g"), timeout=40)
                assert await skip(app.redis, stream, "g", "k", window_ms=60_000)
                await eventually(lambda: runs == ["next"], timeout=40)
        [letter] = dead_letters(client, "notes", "g")
        assert (letter["dl-reason"], letter["dl-entry"], len(letter["data"])) == ("decode", entry_id, 1_000)


@pytest.mark.row(26)
async def test_dead_letters_that_outgrow_a_reply_together_are_listed(own_server: Callable[..., RedisProc]) -> None:
    server = own_server()
    app = an_app(server.url, "none", [])
    with server.client() as client:
        async with app, open_door(server.url) as door:
            for n in range(20):
                add(client, f"large-{n}", 300_000)
            await burst(app)
            bound_replies(client, LIMIT)
            letters = DeadLetters(door, Keys(), window_s=60)
            assert len(await letters.newest(Filters(topic="notes"))) == 20
            assert len([found async for found in letters.find(Filters(topic="notes"))]) == 20


async def test_a_large_entry_that_the_server_can_send_comes_whole_though_reads_are_bounded(
    own_server: Callable[..., RedisProc],
) -> None:
    server = own_server()
    with server.client() as client:
        ids = [add(client, f"n-{n}", 3 * LIMIT if n == 2 else 100) for n in range(5)]
        async with open_door(server.url) as door:
            room = Room(262_144)
            room.failed(ConnectionError("closed by the server"))
            found = await room.entries_after(door, "notes", "0-0", 100)
    assert [entry_id.decode() for entry_id, _ in found] == ids
    assert [is_cut(fields) for _, fields in found] == [False] * 5


async def test_a_bounded_read_brings_one_entry_at_least_and_those_that_fit(redis_url: str, client: Any) -> None:
    ids = [client.xadd("notes", {"f": "x" * 99}) for _ in range(5)]
    client.xdel("notes", ids[1])
    async with open_door(redis_url) as door:

        async def read(room_bytes: int, most: int, *what: Any) -> list[bytes]:
            found = await Script("read_within", reads_only=True).run(door, ["notes"], [room_bytes, most, *what])
            return [entry_id for entry_id, _ in found]

        assert await read(1, 0, "of", *ids) == ids[:1]
        assert await read(299, 0, "of", *ids) == [ids[0], ids[2]], "100 bytes each"
        assert await read(300, 0, "of", *ids) == [ids[0], ids[2], ids[3]], "one that is gone is passed over"
        assert await read(1 << 20, 0, "of", ids[1]) == []
        assert await read(1 << 20, 0, "after", ids[2], 10) == ids[3:]
        assert await read(1 << 20, 0, "after", "0-0", 2) == [ids[0], ids[2]]
        assert await read(1 << 20, 100, "of", ids[0]) == ids[:1]
        [[_, fields]] = await Script("read_within", reads_only=True).run(door, ["notes"], [1, 99, "of", ids[0]])
        assert fields == [b"dl-cut", b"100 99", b"f", b"x" * 99]
        many = client.xadd("notes", {f"f{n}": "x" * 2_000 for n in range(100)})
        [[_, fields]] = await Script("read_within", reads_only=True).run(door, ["notes"], [1, 99, "of", many])
        assert len(fields) == 2 + 64
        assert fields[:4] == [b"dl-cut", b"200290 99", b"f0", b"x" * 1_000]


@pytest.mark.parametrize("codec", [NativeCodec(), FlatCodec(Noted), RawCodec(Noted)])
def test_the_beginning_of_an_entry_is_no_event_in_any_layout(codec: Codec) -> None:
    fields = [b"dl-cut", b"3000000 327680", b"note_id", b"n-1", b"data", b'{"note_id": "n-1"}']
    found = receive(Keys().stream("notes", 0, 1), 0, False, "new", codec, b"7-1", fields)
    assert found.message is None
    assert "entry 7-1 has 3000000 bytes" in str(found.error)
