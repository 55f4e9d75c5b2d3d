"""The flights app on real workers: every result equals what plain code reads from the file, crash or not."""

import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis

from streamlib import App
from streamlib.settings import RedisSettings, Settings
from tests.helpers.waiting import eventually
from tests.helpers.workers import ROOT, WorkerProc
from workers.flights.app import DATABASE_ENV, flights
from workers.flights.app import app as flights_app
from workers.flights.publish import publish_file
from workers.flights.recompute import recompute
from workers.flights.records import DATA_FILE
from workers.flights.store import EffectStore
from workers.flights.verify import verify

pytestmark = pytest.mark.allow_keys("flights*", "{flights*}:*", "streamlib:*")

EVENTS = 4_000


@pytest.fixture
async def app(redis_url: str) -> AsyncIterator[App]:
    flights_app.configure(Settings(redis=RedisSettings(url=redis_url)))
    async with flights_app:
        yield flights_app


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EffectStore]:
    opened = EffectStore(tmp_path / "flights.sqlite3")
    yield opened
    opened.close()


def worker(redis_url: str, directory: Path, *args: str) -> WorkerProc:
    env = {DATABASE_ENV: str(directory / "flights.sqlite3"), "STREAMLIB_WORKER_LEASE_MS": "1000"}
    return WorkerProc("workers.flights.app:app", redis_url, *args, cwd=ROOT, env=env, log_dir=directory)


def forget_acknowledgements(client: redis.Redis, group: str) -> None:
    """What Redis looks like to a group whose acks were all lost: nothing delivered, nothing done."""
    for number in range(flights.spec.partitions):
        client.xgroup_setid(f"{flights.name}.{number}", group, "0")
    for name in done_marks(client, group):
        client.delete(name)


def done_marks(client: redis.Redis, group: str) -> list[bytes]:
    return list(client.scan_iter(f"{{{flights.name}.*}}:idem:{group}:*", count=5_000))


async def test_workers_results_equal_the_file(app: App, store: EffectStore, redis_url: str, tmp_path: Path) -> None:
    await publish_file(app, limit=EVENTS)
    with worker(redis_url, tmp_path, "--burst") as process:
        assert process.wait(60) == 0
    verdict = await verify(app, store, DATA_FILE, EVENTS)
    facts = recompute(DATA_FILE, EVENTS)
    assert verdict.mismatches == []
    assert verdict.groups == facts.handled
    assert verdict.repeats == 0
    assert verdict.dead == sum(len(ids) for ids in facts.dead.values()) > 0
    assert "but the record has no arrival delay and no air time" in verdict.dead_reason


async def test_effects_do_not_happen_again_when_every_event_does(
    app: App, store: EffectStore, client: redis.Redis, redis_url: str, tmp_path: Path
) -> None:
    await publish_file(app, limit=1_000)
    with worker(redis_url, tmp_path, "--burst") as process:
        assert process.wait(60) == 0
    facts = recompute(DATA_FILE, 1_000)
    for group in ("delays", "alerts"):
        forget_acknowledgements(client, group)
    with worker(redis_url, tmp_path, "--burst") as process:
        assert process.wait(60) == 0
    assert store.carrier_delays() == facts.delays
    assert dict(store.notices()) == facts.late
    assert store.repeats() == {"delays": facts.handled["delays"], "alerts": len(facts.late)}


async def test_results_are_right_after_a_worker_was_killed_at_work(
    app: App, store: EffectStore, redis_url: str, tmp_path: Path
) -> None:
    with worker(redis_url, tmp_path) as first:
        first.wait_ready()
        await publish_file(app, limit=EVENTS)
        await eventually(lambda: store.counted() > 0, what="the first worker has begun")
        first.kill9()
    with worker(redis_url, tmp_path, "--burst") as second:
        assert second.wait(90) == 0
    verdict = await verify(app, store, DATA_FILE, EVENTS)
    assert verdict.mismatches == []


async def test_verification_finds_what_is_wrong(
    app: App, store: EffectStore, client: redis.Redis, redis_url: str, tmp_path: Path
) -> None:
    await publish_file(app, limit=1_000)
    with worker(redis_url, tmp_path, "--burst") as process:
        assert process.wait(60) == 0
    with sqlite3.connect(tmp_path / "flights.sqlite3") as database:
        database.execute("UPDATE carrier_delays SET departures = departures + 1 WHERE carrier = 'UA'")
        database.execute("DELETE FROM notifications WHERE flight_id = (SELECT min(flight_id) FROM notifications)")
    database.close()
    client.delete(next(name for name in done_marks(client, "alerts") if client.get(name) == b"d"))
    verdict = await verify(app, store, DATA_FILE, 1_000)
    found = "\n".join(verdict.mismatches)
    assert "statistics of UA" in found
    assert "number of notices" in found
    assert "events that alerts handled" in found
