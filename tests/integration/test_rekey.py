"""Rekey: every event comes once to whoever reads the copies, whole, in the order of its old key, crash or not."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import redis

from streamlib import App, Context, Event, FlatCodec, NativeCodec
from streamlib.errors import DeclarationError
from streamlib.settings import LimitSettings, RedisSettings, Settings
from tests.helpers import rekey_app
from tests.helpers.delivering import burst, counted, dead_letters, outcomes, running, settings
from tests.helpers.rekey_app import purchases, shops
from tests.helpers.waiting import eventually
from tests.helpers.workers import ROOT, WorkerProc

TARGET = "purchases-by-shop"
COPIES = [f"{TARGET}.0", f"{TARGET}.1"]


class Moved(Event):
    account: str
    owner: str | None
    n: int = 0


class Noted(Event):
    account: str


class Reading(Event):
    sensor: str
    celsius: float


def entries(client: redis.Redis, *streams: str) -> list[dict[bytes, bytes]]:
    found: list[Any] = [client.xrange(stream) for stream in streams]
    return [fields for of_one in found for _, fields in of_one]


def ids(client: redis.Redis, *streams: str) -> list[bytes]:
    return [fields[b"id"] for fields in entries(client, *streams)]


def forget_acknowledgements(client: redis.Redis, topic: str, partitions: int, group: str) -> None:
    """What Redis looks like to a group that died before any ack: nothing delivered, nothing done."""
    for number in range(partitions):
        client.xgroup_setid(f"{topic}.{number}", group, "0")
        for name in client.scan_iter(f"{{{topic}.{number}}}:idem:{group}:*", count=5_000):
            client.delete(name)


def batches(client: redis.Redis, stream: str) -> int:
    """How many batches all publishers together sent to a stream: each numbers its own."""
    states: Any = client.hvals(f"{{{stream}}}:producers")
    return sum(int(state.split()[0]) for state in states)


async def rows() -> dict[str, rekey_app.ShopRow]:
    return {row.shop: row for row in await shops.rows()}


# -- what a copy is -------------------------------------------------------------------------------------------------


async def test_a_copy_is_the_event_under_another_key_and_a_derived_id(redis_url: str, client: redis.Redis) -> None:
    app = App("bank", settings=settings(redis_url))
    moves = app.topic("moves", Moved, key="account", partitions=2, codec=NativeCodec("msgpack"))
    owners = app.rekey(moves, key="owner", to="by-owner")
    seen: list[tuple[Context, Moved]] = []

    @app.handler(owners, group="look")
    async def look(event: Moved, ctx: Context) -> None:
        seen.append((ctx, event))

    assert (owners.spec.partitions, owners.spec.key, owners.spec.codec) == (2, "owner", moves.spec.codec)
    async with app:
        await moves.publish(
            Moved(account="a", owner="ann", n=7), id="e-1", time_ms=1_234, correlation_id="corr", causation_id="cause",
            traceparent="00-1-2-03", headers={"tenant": "t"},
        )  # fmt: skip
        position = await moves.publish(Moved(account="a", owner="ann", n=8), id="e-2")
        assert await burst(app, ["by-owner"]) == 0
        assert await burst(app) == 0
    (source,) = [fields for fields in entries(client, "moves.0", "moves.1") if fields[b"id"] == b"e-1"]
    copies = entries(client, "by-owner.0", "by-owner.1")
    assert {name: copies[0][name] for name in source if name not in (b"id", b"key")} == {
        name: value for name, value in source.items() if name not in (b"id", b"key")
    }
    assert [copy[b"key"] for copy in copies] == [b"ann", b"ann"]
    assert len({b"e-1", b"e-2", *ids(client, "by-owner.0", "by-owner.1")}) == 4
    assert [(ctx.time, ctx.correlation_id) for ctx, _ in seen] == [
        (1_234, "corr"),
        (int(position.entry_id.split("-")[0]), "e-2"),
    ], "what only the first entry told is told by the copy too"
    assert [event.n for _, event in seen] == [7, 8]


async def test_entries_of_other_programs_become_events_of_ours(redis_url: str, client: redis.Redis) -> None:
    app = App("plant", settings=settings(redis_url))
    readings = app.topic("readings", Reading, codec=FlatCodec(Reading), partitions=2)
    app.rekey(readings, key="sensor", to="by-sensor", partitions=2)
    async with app:
        for stream in ("readings.0", "readings.1"):  # entry ids are those of one partition
            client.xadd(stream, {"sensor": "a7", "celsius": "21.5"}, id="5-1")
        assert await burst(app) == 0
        forget_acknowledgements(client, "readings", 2, "by-sensor")
        assert await burst(app) == 0
    copies = entries(client, "by-sensor.0", "by-sensor.1")
    assert [copy[b"data"] for copy in copies] == [b'{"sensor":"a7","celsius":21.5}'] * 4
    assert sorted(Counter(copy[b"id"] for copy in copies).values()) == [2, 2], "a repeat has its first copy's id"


# -- once, in order -------------------------------------------------------------------------------------------------


@pytest.fixture
def app(redis_url: str) -> App:
    rekey_app.app.configure(settings(redis_url))
    return rekey_app.app


async def test_a_view_of_the_copies_equals_its_recomputation(app: App, client: redis.Redis) -> None:
    events = rekey_app.events(2_000)
    async with app:
        await purchases.publish_many(events)
        async with running(app):
            await eventually(lambda: counted(app, "events_processed_total", group="shops") >= 2_000, timeout=60)
        assert await rows() == rekey_app.recomputed(events)
    assert len(set(ids(client, *COPIES))) == len(ids(client, *COPIES)) == 2_000
    assert outcomes(app, TARGET) == {"ok": 2_000}
    assert sum(batches(client, stream) for stream in COPIES) < 500, "copies share round trips"


async def test_copies_that_are_repeated_change_neither_views_nor_handlers(app: App, client: redis.Redis) -> None:
    """Every ack lost is the worst that a crash between publish and ack can do."""
    events = rekey_app.events(600)
    async with app:
        await purchases.publish_many(events)
        assert await burst(app) == 0
        forget_acknowledgements(client, purchases.name, 4, TARGET)
        assert await burst(app) == 0
        assert await rows() == rekey_app.recomputed(events)
    assert len(ids(client, *COPIES)) == 1_200
    assert len(set(ids(client, *COPIES))) == 600


@pytest.mark.row(72)
async def test_a_worker_killed_while_it_copies_loses_and_doubles_nothing(
    app: App, client: redis.Redis, redis_url: str, tmp_path: Path
) -> None:
    events, env = rekey_app.events(6_000), {"STREAMLIB_WORKER_LEASE_MS": "1000"}
    name = "tests.helpers.rekey_app:app"
    async with app:
        await purchases.publish_many(events)
        with WorkerProc(name, redis_url, cwd=ROOT, env=env, log_dir=tmp_path) as first:
            await eventually(lambda: sum(map(client.xlen, COPIES)) > 1_000, every=0.002, what="it copies")
            first.kill9()
        assert len(set(ids(client, *COPIES))) < 6_000, "killed in the middle"
        with WorkerProc(name, redis_url, "--burst", cwd=ROOT, env=env, log_dir=tmp_path) as second:
            assert second.wait(60) == 0
        assert await rows() == rekey_app.recomputed(events)
    assert len(set(ids(client, *COPIES))) == 6_000


# -- what cannot be copied ------------------------------------------------------------------------------------------


async def test_an_event_without_a_key_goes_to_the_dead_letters_alone(redis_url: str, client: redis.Redis) -> None:
    app = App("bank", settings=settings(redis_url))
    moves = app.topic("moves", Moved, key="account")
    app.rekey(moves, key="owner", to="by-owner")
    owners = ["ann", None, "x" * 201, "bob"]
    async with app:
        await moves.publish_many([Moved(account="a", owner=owner) for owner in owners])
        assert await burst(app) == 0
    letters = dead_letters(client, "moves", "by-owner")
    assert [(letter["dl-reason"], letter["dl-attempts"]) for letter in letters] == [("rejected", "1")] * 2
    assert "no copy in 'by-owner': Moved.owner is None, but topic 'by-owner' is keyed by it" in letters[0]["dl-error"]
    assert "has 201 bytes; 1 to 200" in letters[1]["dl-error"]
    assert [copy[b"key"] for copy in entries(client, "by-owner")] == [b"ann", b"bob"]


async def test_a_full_target_is_waited_for(redis_url: str, client: redis.Redis) -> None:
    limits = {"limits": LimitSettings(topic_len=5)}
    app = App("bank", settings=settings(redis_url, sections=limits))
    moves = app.topic("moves", Moved, key="account")
    app.rekey(moves, key="owner", to="by-owner")
    async with app:
        for _ in range(5):
            client.xadd("by-owner", {"in": "the way"})
        await moves.publish_many([Moved(account="a", owner="ann", n=n) for n in range(3)])
        async with running(app):
            await eventually(lambda: outcomes(app, "by-owner").get("retry", 0) > 1)
            client.xtrim("by-owner", maxlen=0)
            await eventually(lambda: client.xlen("by-owner") == 3)
    assert [b'"n":%d' % n in copy[b"data"] for n, copy in enumerate(entries(client, "by-owner"))] == [True] * 3
    assert not dead_letters(client, "moves", "by-owner")


# -- declarations ---------------------------------------------------------------------------------------------------


def declared() -> App:
    app = App("bank", settings=Settings(redis=RedisSettings()))
    app.topic("moves", Moved, Noted, key="account", partitions=4)
    app.topic("taken", Moved, key="account")
    return app


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key": "owner", "to": "by-owner"}, "Noted has no field 'owner' to be keyed by; give it one"),
        ({"key": "account", "to": "moves"}, "`to` is that very topic"),
        ({"key": "account", "to": "taken"}, "topic 'taken' is declared twice"),
        ({"key": "account", "to": "moves.1"}, "must not end in"),
        ({"key": "account", "to": "more", "partitions": 0}, "partitions=0, not 1 to"),
    ],
)
def test_what_cannot_be_a_rekey_is_refused(options: dict[str, Any], message: str) -> None:
    app = declared()
    before = dict(app.topics), dict(app.groups)
    with pytest.raises(DeclarationError, match=message):
        app.rekey(app.topics["moves"], **options)
    assert (app.topics, app.groups) == before


def test_a_projection_keyed_unlike_its_topic_is_told_of_rekey() -> None:
    app = declared()
    with pytest.raises(DeclarationError, match=r"project app\.rekey\(moves, key='owner', to=\.\.\.\)"):
        app.projection("owners", app.topics["moves"], rekey_app.ShopRow, key="owner")


def test_a_name_that_a_group_of_the_source_has_is_refused() -> None:
    app = declared()

    @app.handler(app.topics["moves"], group="audit")
    async def audit(event: Moved) -> None: ...

    with pytest.raises(DeclarationError, match=r"Moved is handled by .*audit and by rekey to audit"):
        app.rekey(app.topics["moves"], key="account", to="audit")
