"""Entries that any program adds with XADD, consumed end to end through the flat and raw layouts."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec
import pytest

from streamlib import App, Context, Event, FlatCodec, RawCodec
from tests.helpers.delivering import burst, dead_letters, outcomes, settings


class Reading(Event):
    sensor: str
    celsius: float
    count: int = 0
    exact: Decimal = Decimal(0)
    valid: bool = True


class Alarm(Event):
    sensor: str


async def test_flat_entries_are_typed_events(redis_url: str, client: Any) -> None:
    app = App("lab", settings=settings(redis_url))
    readings = app.topic("readings", Reading, codec=FlatCodec(Reading))
    seen: list[tuple[Reading, str]] = []

    @app.handler(readings, group="g")
    async def read(event: Reading, ctx: Context) -> None:
        assert ctx.event_id == ctx.entry_id
        seen.append((event, ctx.event_id))

    async with app:
        first = client.xadd("readings", {"sensor": "a7", "celsius": "21.5", "count": "3", "exact": "1.10"}).decode()
        client.xadd("readings", {"sensor": "a8", "celsius": "-3", "valid": "false"})
        client.xadd("readings", {"sensor": "a9", "celsius": "warm"})
        client.xadd("readings", {"sensor": b"\xff", "celsius": "1"})
        position = await readings.publish(Reading(sensor="ours", celsius=1.5))
        assert await burst(app) == 0
    assert seen[0] == (Reading(sensor="a7", celsius=21.5, count=3, exact=Decimal("1.10")), first)
    assert seen[1][0] == Reading(sensor="a8", celsius=-3.0, valid=False)
    assert seen[2] == (Reading(sensor="ours", celsius=1.5), position.entry_id)
    letters = dead_letters(client, "readings", "g")
    assert [letter["dl-reason"] for letter in letters] == ["schema", "decode"]
    assert letters[0]["celsius"] == "warm"
    assert outcomes(app, "g") == {"ok": 3, "dead": 2}


async def test_flat_entries_may_bring_their_type(redis_url: str, client: Any) -> None:
    app = App("lab", settings=settings(redis_url))
    codec = FlatCodec(Reading, type_field="kind")
    readings = app.topic("readings", Reading, Alarm, codec=codec, unknown="skip")
    seen: list[tuple[str, str]] = []

    @app.handler(readings, group="g")
    def read(event: Reading | Alarm, ctx: Context) -> None:
        seen.append((type(event).__name__, event.sensor))

    async with app:
        client.xadd("readings", {"sensor": "a7", "celsius": "21.5"})
        client.xadd("readings", {"sensor": "a8", "kind": "Alarm"})
        client.xadd("readings", {"sensor": "a9", "kind": "Unheard"})
        assert await burst(app) == 0
    assert sorted(seen) == [("Alarm", "a8"), ("Reading", "a7")]
    assert outcomes(app, "g") == {"ok": 2, "skipped": 1}


@pytest.mark.parametrize("data_format", ["json", "msgpack"])
async def test_raw_entries_hold_the_event_in_one_field(redis_url: str, client: Any, data_format: Any) -> None:
    app = App("lab", settings=settings(redis_url))
    codec = RawCodec(Reading, field="payload", data_format=data_format)
    readings = app.topic("readings", Reading, codec=codec)
    seen: list[tuple[str, dict[str, str]]] = []
    encode = msgspec.json.encode if data_format == "json" else msgspec.msgpack.encode

    @app.handler(readings, group="g")
    async def read(events: list[Reading]) -> None:
        seen.extend((event.sensor, {}) for event in events)

    @app.handler(readings, group="contexts")
    async def look(event: Reading, ctx: Context) -> None:
        seen.append((event.sensor, dict(ctx.headers)))

    async with app:
        client.xadd("readings", {"payload": encode({"sensor": "a7", "celsius": 1.0}), "origin": "plant 3"})
        client.xadd("readings", {"payload": b"\xc1"})
        client.xadd("readings", {"origin": "plant 3"})
        assert await burst(app) == 0
    assert sorted(seen, key=repr) == [("a7", {"origin": "plant 3"}), ("a7", {})]
    for group in ("g", "contexts"):
        assert [letter["dl-reason"] for letter in dead_letters(client, "readings", group)] == ["decode", "decode"]


async def test_foreign_entries_survive_a_retry_with_all_their_fields(redis_url: str, client: Any) -> None:
    app = App("lab", settings=settings(redis_url))
    readings = app.topic("readings", Reading, codec=RawCodec(Reading))
    attempts: list[tuple[int, str, str]] = []

    @app.handler(readings, group="g")
    async def read(event: Reading, ctx: Context) -> None:
        attempts.append((ctx.attempt, ctx.event_id, ctx.headers["origin"]))
        if ctx.attempt == 1:
            raise ConnectionError("later")

    async with app:
        added = client.xadd("readings", {"data": '{"sensor": "a7", "celsius": 1.0}', "origin": "plant 3"}).decode()
        client.xadd("readings", {"data": '{"sensor": "a7", "celsius": 1.0}', "origin": "plant 4"})
        assert await burst(app) == 0
    assert sorted(attempts)[0] == (1, added, "plant 3")
    assert sorted(attempt for attempt, _, _ in attempts) == [1, 1, 2, 2]
