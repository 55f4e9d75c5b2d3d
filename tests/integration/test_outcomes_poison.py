"""Entries that reach no handler: unreadable, oversized, foreign or unknown; each ends, and its neighbours run."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

import pytest

from streamlib import App, Context, Event, ReadModel, Settings
from streamlib.redisio import registry
from streamlib.settings import LimitSettings
from tests.helpers.delivering import burst, counted, dead_letters, outcomes, running, settings
from tests.helpers.waiting import eventually

NATIVE = ("id", "type", "v", "key", "data")


class Placed(Event):
    order_id: str
    number: int = 0


class Checked(Event):
    order_id: str

    def __post_init__(self) -> None:
        if self.order_id == "poison":
            raise KeyError("the class's own code fails")


class Returned(Event):
    order_id: str


class PlacedRow(ReadModel):
    order_id: str
    number: int


def entry(*values: str | bytes, **more: str) -> dict[str, str | bytes]:
    return {**dict(zip(NATIVE, values, strict=False)), **more}


GOOD = '{"order_id": "o-1"}'
HEADERS = "{" + ",".join(f'"{n}":""' for n in range(33)) + "}"
BAD: dict[str, tuple[dict[Any, Any], str, str]] = {
    "truncated json": (entry("b-1", "Placed", "1", "", '{"order_id": '), "decode", "truncated"),
    "no utf-8 in data": (entry("b-2", "Placed", "1", "", b'{"order_id": "\xff\xfe"}'), "decode", ""),
    "no utf-8 in the id": (entry(b"\xff\xfe", "Placed", "1", "", GOOD), "decode", "not UTF-8"),
    "no utf-8 in the type": (entry("b-3", b"\xff", "1", "", GOOD), "decode", "not UTF-8"),
    "an id too long": (entry("i" * 201, "Placed", "1", "", GOOD), "decode", "event id"),
    "a version that is no number": (entry("b-4", "Placed", "new", "", GOOD), "decode", "whole number"),
    "fields missing": (entry("b-5", "Placed"), "decode", "has no field v, key, data"),
    "a foreign entry": ({"hello": "world", b"\x00\xff": b"\xff"}, "decode", "has no field id"),
    "an unknown field": (entry("b-6", "Placed", "1", "", GOOD, surprise="!"), "decode", "unknown fields"),
    "another shape": (entry("b-7", "Placed", "1", "", '{"order_id": 7}'), "schema", "Expected `str`"),
    "no object": (entry("b-8", "Placed", "1", "", "[]"), "schema", "Expected `object`"),
    "a field missing in the data": (entry("b-9", "Placed", "1", "", "{}"), "schema", "order_id"),
    "oversized": (entry("b-10", "Placed", "1", "", '{"order_id": "' + "x" * 2_000 + '"}'), "decode", "payload_bytes"),
    "code of the class fails": (entry("b-11", "Checked", "1", "", '{"order_id": "poison"}'), "decode", "own code"),
    "deep json": (entry("b-12", "Placed", "1", "", "[" * 900 + "]" * 900), "schema", ""),
    "a key too long": (entry("b-13", "Placed", "1", "k" * 201, GOOD), "decode", "field key has 201 bytes"),
    "too many headers": (entry("b-14", "Placed", "1", "", GOOD, h=HEADERS), "decode", "33 headers"),
    "five thousand fields": ({f"f{n}": "v" for n in range(5_000)}, "decode", "has no field id"),
}  # fmt: skip


@pytest.mark.row(30)
@pytest.mark.parametrize("kind", ["alone", "batch"])
async def test_what_cannot_be_read_is_a_dead_letter_with_its_raw_fields_and_harms_nobody(
    redis_url: str, client: Any, kind: str
) -> None:
    app = App("shop", settings=settings(redis_url, sections={"limits": LimitSettings(payload_bytes=2_000)}))
    orders = app.topic("orders", Placed, Checked)
    runs: Counter[int] = Counter()

    if kind == "alone":

        @app.handler(orders, group="g")
        async def handle(event: Placed | Checked) -> None:
            runs[event.number if isinstance(event, Placed) else -1] += 1
    else:

        @app.handler(orders, group="g")
        async def handle_many(events: list[Placed | Checked]) -> None:
            runs.update(event.number if isinstance(event, Placed) else -1 for event in events)

    async with app:
        stored: dict[str, str] = {}
        for n, (name, (fields, _, _)) in enumerate(BAD.items()):
            await orders.publish(Placed(order_id="good", number=n))
            stored[client.xadd("orders", fields).decode()] = name
        assert await burst(app) == 0
        assert counted(app, "events_received_total", group="g") == sum(outcomes(app, "g").values())
        assert counted(app, "dead_letters_total", group="g") == len(BAD)
    assert runs == Counter(range(len(BAD)))
    assert client.xpending("orders", "g")["pending"] == 0
    for letter, (_, raw) in zip(dead_letters(client, "orders", "g"), client.xrange("{orders}:dead:g"), strict=True):
        name = stored[letter["dl-entry"]]
        fields, reason, says = BAD[name]
        assert letter["dl-reason"] == reason, name
        assert says in letter["dl-error"], name
        if len(fields) < 1_000:
            kept = {key: value for key, value in raw.items() if not key.startswith(b"dl-")}
            assert kept == {_bytes(key): _bytes(value) for key, value in fields.items()}, name


async def test_a_foreign_entry_among_the_returning_ones_is_a_dead_letter(redis_url: str, client: Any) -> None:
    app = App("shop", settings=settings(redis_url))
    orders = app.topic("orders", Placed)

    @app.handler(orders, group="g")
    async def handle(event: Placed) -> None: ...

    again = "{orders}:again:g"
    async with app:
        client.xadd(again, {"hello": "world"})
        client.xadd(again, {"id": "e-1", "body": b"no msgpack"})
        client.xadd(
            again, {"id": "e-2", "body": b"\x95\xa1x\x00\x00\xa5retry\x91\xc4\x01x"}
        )  # one field name, no value
        client.xadd(again, {"id": "e-3", "body": b"\x97\xa35-1\x00\x00\xa5retry\x90\x00" + b"\x91" * 100_000})
        client.xadd(again, {"id": "i" * 100_000, "body": b"\x95\xa35-1\x00\x00\xa5retry\x90"})
        assert await burst(app) == 0
    assert [letter["dl-reason"] for letter in dead_letters(client, "orders", "g")] == ["decode"] * 5
    assert client.xlen(again) == 0


async def test_a_projection_buries_what_is_too_large_and_goes_on(redis_url: str, client: Any) -> None:
    app = App("shop", settings=settings(redis_url, sections={"limits": LimitSettings(payload_bytes=2_000)}))
    orders = app.topic("orders", Placed)
    view = app.projection("placed", orders, PlacedRow, key="order_id")

    @view.on(Placed)
    def fold(row: PlacedRow | None, event: Placed) -> PlacedRow:
        return PlacedRow(order_id=event.order_id, number=event.number)

    async with app, running(app):
        await orders.publish(Placed(order_id="o-1"))
        client.xadd("orders", entry("b-1", "Placed", "1", "", '{"order_id": "o-2", "more": "' + "x" * 2_000 + '"}'))
        await view.wait_for(await orders.publish(Placed(order_id="o-3")), timeout=10)
        assert [await view.get(row) is not None for row in ("o-1", "o-2", "o-3")] == [True, False, True]
    [letter] = dead_letters(client, "orders", "placed")
    assert letter["dl-reason"] == "decode"
    assert "limits.payload_bytes is 2000" in letter["dl-error"]


# -- types that this app does not know ------------------------------------------------------------------------------

RETURNED = entry("e-9", "Returned", "1", "", GOOD)
NEWER = entry("e-10", "Placed", "2", "", GOOD)


def old_app(redis_url: str, unknown: Literal["park", "dead-letter", "skip"] = "park", **worker: Any) -> App:
    return _app(settings(redis_url, **worker), [Placed], unknown)


def _app(with_settings: Settings, events: list[type[Event]], unknown: Any = "park") -> App:
    app = App("shop", settings=with_settings)
    orders = app.topic("orders", *events, unknown=unknown)

    @app.handler(orders, group="g")
    async def handle(event: Placed) -> None: ...

    return app


@pytest.mark.row(17)
@pytest.mark.parametrize("fields", [RETURNED, NEWER], ids=["type", "version"])
async def test_an_unknown_type_waits_for_a_worker_that_knows_it(redis_url: str, client: Any, fields: Any) -> None:
    old = old_app(redis_url)
    seen: list[tuple[str, int]] = []

    class Placed2(Event, type_name="Placed", version=2):
        order_id: str

    new = App("shop", settings=settings(redis_url))
    orders = new.topic("orders", Placed, Returned, Placed2)

    async def handle(event: Any, ctx: Context) -> None:
        seen.append((type(event).__name__, ctx.attempt))

    handle.__annotations__["event"] = Placed | Returned | Placed2
    new.handler(orders, group="g")(handle)

    async with old:
        client.xadd("orders", fields)
        async with running(old):
            await eventually(lambda: client.zcard("{orders}:retry:g"), what="it is parked")
        assert outcomes(old, "g") == {"released": 1}
        assert dead_letters(client, "orders", "g") == []
    async with new:
        client.zadd("{orders}:retry:g", {fields["id"]: 1})  # due now
        assert await burst(new) == 0
    assert [attempt for _, attempt in seen] == [1], "waiting spent no attempt"


@pytest.mark.row(17)
async def test_an_unknown_type_is_dead_lettered_after_its_time(redis_url: str, client: Any) -> None:
    app = old_app(redis_url, unknown_ttl_s=0.0)
    async with app, running(app):
        client.xadd("orders", RETURNED)
        await eventually(lambda: client.zcard("{orders}:retry:g"), what="it is parked first")
        client.zadd("{orders}:retry:g", {"e-9": 1})
        [letter] = await eventually(lambda: dead_letters(client, "orders", "g"))
    assert (letter["dl-reason"], letter["dl-attempts"], letter["data"]) == ("unknown_type", "0", GOOD)
    assert "Returned" in letter["dl-error"]


@pytest.mark.parametrize(("unknown", "outcome"), [("dead-letter", "dead"), ("skip", "skipped")])
async def test_the_topic_says_what_becomes_of_unknown_types(
    redis_url: str, client: Any, unknown: Any, outcome: str
) -> None:
    app = old_app(redis_url, unknown)
    async with app:
        client.xadd("orders", RETURNED)
        client.xadd("orders", entry("e-1", "Placed", "1", "", GOOD))
        assert await burst(app) == 0
    assert outcomes(app, "g") == {"ok": 1, outcome: 1}
    reasons = [letter["dl-reason"] for letter in dead_letters(client, "orders", "g")]
    assert reasons == (["unknown_type"] if unknown == "dead-letter" else [])


@pytest.mark.parametrize("unknown", ["dead-letter", "skip"])
async def test_a_newer_version_of_a_handled_type_is_parked_whatever_the_topic_says(
    redis_url: str, client: Any, unknown: Any
) -> None:
    """Nobody has said yet that it handles that version: its workers are still on their way."""
    app = old_app(redis_url, unknown)
    async with app:
        client.xadd("orders", NEWER)
        async with running(app):
            await eventually(lambda: client.zcard("{orders}:retry:g"), what="it is parked")
    assert dead_letters(client, "orders", "g") == []
    assert outcomes(app, "g") == {"released": 1}


async def test_a_newer_version_that_nobody_came_for_is_dead_lettered_after_its_time(
    redis_url: str, client: Any
) -> None:
    app = old_app(redis_url, "dead-letter", unknown_ttl_s=0.0)
    async with app, running(app):
        client.xadd("orders", NEWER)
        await eventually(lambda: client.zcard("{orders}:retry:g"), what="it is parked first")
        client.zadd("{orders}:retry:g", {"e-10": 1})
        [letter] = await eventually(lambda: dead_letters(client, "orders", "g"))
    assert letter["dl-reason"] == "unknown_type"
    assert "no class for 'Placed' version 2; this worker knows versions [1]" in letter["dl-error"]


async def test_a_newer_version_of_a_type_that_the_group_does_not_handle_is_skipped(redis_url: str, client: Any) -> None:
    app = _app(settings(redis_url), [Placed, Returned])
    async with app:
        client.xadd("orders", entry("e-9", "Returned", "2", "", GOOD))
        assert await burst(app) == 0
    assert outcomes(app, "g") == {"skipped": 1}


@pytest.mark.parametrize("unknown", ["dead-letter", "skip"])
async def test_a_type_that_a_newer_worker_handles_is_left_to_it_whatever_the_topic_says(
    redis_url: str, client: Any, unknown: Any
) -> None:
    app = old_app(redis_url, unknown)
    async with app:
        await registry.declare_types(app.redis, app.keys, "orders", "g", ["Returned"])
        async with running(app):
            await eventually(lambda: counted(app, "last_poll_timestamp_seconds", group="g"))
            client.xadd("orders", entry("e-1", "Placed", "1", "", GOOD))
            await eventually(lambda: outcomes(app, "g").get("ok"))
            client.xadd("orders", RETURNED)
            await eventually(lambda: client.zcard("{orders}:retry:g"), what="it is handed back")
    assert dead_letters(client, "orders", "g") == []
    assert outcomes(app, "g") == {"ok": 1, "released": 1}


@pytest.mark.row(17)
async def test_a_known_type_that_only_an_older_worker_handles_is_handed_back(redis_url: str, client: Any) -> None:
    app = _app(settings(redis_url), [Placed, Returned])
    async with app:
        await registry.declare_types(app.redis, app.keys, "orders", "g", ["Returned"])
        async with running(app):
            client.xadd("orders", entry("e-1", "Placed", "1", "", GOOD))
            await eventually(lambda: outcomes(app, "g").get("ok"))
            client.xadd("orders", RETURNED)
            await eventually(lambda: client.zcard("{orders}:retry:g"), what="it is handed back")


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value
