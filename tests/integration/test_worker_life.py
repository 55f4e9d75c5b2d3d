"""A worker from its start to its end: bursts, drains, hand-backs, reclaims, and what its metrics add up to."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from streamlib import App, Context, Event, ReadModel, Reject, Retry
from streamlib.redisio import retention
from streamlib.settings import RedisSettings, RetentionSettings
from tests.helpers.delivering import burst, counted, dead_letters, outcomes, running, settings
from tests.helpers.proxy import ChaosProxy
from tests.helpers.servers import RedisProc
from tests.helpers.waiting import eventually

JOBS = "jobs"


Servers = Callable[..., RedisProc]


class Job(Event):
    n: int = 0
    text: str = ""


class Row(ReadModel):
    n: int


def backlog(client: Any, group: str = "g", stream: str = JOBS) -> int:
    """Pending, scheduled and returning events."""
    tag = "{" + stream + "}"
    pending = client.xpending(stream, group)["pending"]
    return int(pending) + int(client.zcard(f"{tag}:retry:{group}")) + int(client.xlen(f"{tag}:again:{group}"))


def consumers(client: Any, group: str = "g", stream: str = JOBS) -> list[str]:
    found: list[str] = []
    for name in (stream, "{" + stream + "}:again:" + group):
        found += [row["name"].decode() for row in client.xinfo_consumers(name, group)]
    return found


async def test_a_burst_ends_when_nothing_is_left_and_leaves_no_consumer(redis_url: str, client: Any) -> None:
    app = App("shop", settings=settings(redis_url))
    jobs = app.topic(JOBS, Job, partitions=2, key="n")
    runs: Counter[int] = Counter()

    @app.handler(jobs, group="g", retry=Retry(max_attempts=3, base=0.001))
    async def handle(event: Job, ctx: Context) -> None:
        runs[event.n] += 1
        if ctx.attempt < 3 and event.n % 10 == 0:
            raise ValueError("again")

    async with app:
        await jobs.publish_many([Job(n=n) for n in range(300)])
        assert await burst(app) == 0
    assert runs == {n: 1 if n % 10 else 3 for n in range(300)}
    for stream in ("jobs.0", "jobs.1"):
        assert backlog(client, stream=stream) == 0
        assert consumers(client, stream=stream) == []


@pytest.mark.row(14)
async def test_a_drain_hands_back_what_did_not_start_with_no_attempt_spent(redis_url: str, client: Any) -> None:
    """Claimed and unclaimed: all of it is there for the next worker at once, not after a lease."""
    app = App("shop", settings=settings(redis_url, concurrency=2, lease_ms=600_000))
    jobs = app.topic(JOBS, Job)
    started, release, attempts = list[int](), asyncio.Event(), dict[int, list[int]]()

    @app.handler(jobs, group="g")
    async def handle(event: Job, ctx: Context) -> None:
        started.append(event.n)
        await release.wait()
        attempts.setdefault(event.n, []).append(ctx.attempt)

    async with app:
        await jobs.publish_many([Job(n=n) for n in range(50)])
        async with running(app) as one:
            await eventually(lambda: len(started) == 2 and client.xpending(JOBS, "g")["pending"] > 2)
            one.ask_to_stop()
            asyncio.get_running_loop().call_later(0.3, release.set)
            assert await one.stop() == 0
        assert consumers(client) == [], "its consumer is gone"
        assert client.xpending(JOBS, "g")["pending"] == 0
        assert len(attempts) == 2, "what ran was finished"
        assert await burst(app, timeout_s=20) == 0
    assert attempts == {n: [1] for n in range(50)}
    assert outcomes(app, "g")["ok"] == 50


async def test_a_drain_that_runs_out_of_time_cancels_gives_back_and_says_so(redis_url: str, client: Any) -> None:
    app = App("shop", settings=settings(redis_url, drain_s=0.2))
    jobs = app.topic(JOBS, Job)
    runs: Counter[int] = Counter()

    @app.handler(jobs, group="g")
    async def handle(event: Job, ctx: Context) -> None:
        runs[ctx.attempt] += 1
        if runs.total() == 1:
            await asyncio.sleep(60)

    async with app:
        await jobs.publish(Job())
        async with running(app) as one:
            await eventually(lambda: runs.total() == 1)
            assert await one.stop() == 7
        assert await burst(app) == 0
    assert runs == {1: 2}, "the cancelled run spent no attempt"
    assert outcomes(app, "g") == {"released": 1, "ok": 1}


async def test_a_thread_that_outlives_the_drain_says_so_and_keeps_its_claim(redis_url: str, client: Any) -> None:
    app = App("shop", settings=settings(redis_url, drain_s=0.2))
    jobs = app.topic(JOBS, Job)
    started, release = threading.Event(), threading.Event()

    @app.handler(jobs, group="g")
    def handle(event: Job) -> None:
        started.set()
        release.wait(30)

    async with app:
        await jobs.publish(Job(), id="e-1")
        async with running(app) as one:
            await eventually(started.is_set)
            assert await one.stop() == 7
    assert client.xpending(JOBS, "g")["pending"] == 1
    assert client.get("{jobs}:idem:g:e-1").startswith(b"c")
    release.set()


async def test_cancelled_handlers_give_their_events_back_at_once(redis_url: str, client: Any) -> None:
    app = App("shop", settings=settings(redis_url, drain_s=60))
    jobs = app.topic(JOBS, Job)
    running_now: set[int] = set()

    @app.handler(jobs, group="g")
    async def handle(event: Job) -> None:
        running_now.add(event.n)
        await asyncio.sleep(600)

    async with app:
        await jobs.publish_many([Job(n=n) for n in range(5)])
        async with running(app) as one:
            await eventually(lambda: len(running_now) == 5)
            one.ask_to_stop()
            await eventually(lambda: not one.worker.readiness()[0])
            one.worker.cancel_handlers()
            assert await one.stop() == 0, "nobody waited for drain_s"
        assert client.xlen("{jobs}:again:g") == 5
        assert set(outcomes(app, "g")) == {"released"}
        assert sorted(running_now) == list(range(5))


@pytest.mark.row(59)
async def test_reclaim_reaches_every_entry_of_a_long_pending_list_also_behind_living_ones(
    redis_url: str, client: Any
) -> None:
    """1,000 entries of a worker that is gone, page by page, with another's fresh ones before them."""
    app = App("shop", settings=settings(redis_url, lease_ms=900, batch=500))
    jobs = app.topic(JOBS, Job)
    runs: Counter[int] = Counter()

    @app.handler(jobs, group="g")
    async def handle(event: Job) -> None:
        runs[event.n] += 1

    async with app:
        await jobs.publish_many([Job(n=n) for n in range(1_000)])
        taken = client.xreadgroup("g", "gone", {JOBS: ">"}, count=1_000)[0][1]
        assert len(taken) == 1_000
        held = [entry_id for entry_id, _ in taken[:150]]
        alive = True

        async def stay_alive() -> None:
            while alive:
                client.xclaim(JOBS, "g", "living", 0, held, justid=True)
                await asyncio.sleep(0.05)

        renewing = asyncio.create_task(stay_alive())
        async with running(app):
            await eventually(lambda: len(runs) >= 850, 30)
            assert set(runs) == set(range(150, 1_000)), "what lives is left alone"
            alive = False
            await renewing
            await eventually(lambda: len(runs) == 1_000)
            await eventually(lambda: client.xpending(JOBS, "g")["pending"] == 0)
    assert set(runs.values()) == {1}
    assert counted(app, "events_received_total", group="g", delivery="reclaimed") >= 1_000


@pytest.mark.row(60)
async def test_retention_in_a_running_worker_never_passes_a_slow_group(redis_url: str, client: Any) -> None:
    app = App("shop", settings=settings(redis_url, sections={"retention": RetentionSettings(max_len=10)}))
    jobs = app.topic(JOBS, Job)
    slow_runs, release = list[int](), asyncio.Event()

    @app.handler(jobs, group="fast")
    async def fast(event: Job) -> None: ...

    @app.handler(jobs, group="slow", concurrency=1)
    async def slow(event: Job) -> None:
        if event.n >= 20:
            await release.wait()
        slow_runs.append(event.n)

    async with app, running(app):
        await jobs.publish_many([Job(n=n) for n in range(200)])
        await eventually(lambda: outcomes(app, "fast").get("ok") == 200 and len(slow_runs) == 20)
        async with running(app, ["fast"]):  # the first thing that a worker does is to trim
            await eventually(lambda: client.xlen(JOBS) < 200)
        result = await retention.trim_once(app.redis, app.keys, jobs.spec, app.settings.retention)
        assert 180 <= client.xlen(JOBS) < 200
        assert "slow" in str(result)
        release.set()
        await eventually(lambda: outcomes(app, "slow").get("ok") == 200)
        await retention.trim_once(app.redis, app.keys, jobs.spec, app.settings.retention)
    assert sorted(slow_runs) == list(range(200)), "every event reached the slow group"
    assert client.xlen(JOBS) < 180


@pytest.mark.row(34)
async def test_a_lost_stream_is_made_again_and_work_goes_on(redis_url: str, client: Any) -> None:
    app = App("shop", settings=settings(redis_url))
    jobs = app.topic(JOBS, Job)
    runs: Counter[int] = Counter()

    @app.handler(jobs, group="g")
    async def handle(event: Job) -> None:
        runs[event.n] += 1

    async with app, running(app) as one:
        await jobs.publish(Job(n=1))
        await eventually(lambda: runs[1])
        client.delete(JOBS, "{jobs}:again:g", "{jobs}:producers")
        await eventually(lambda: counted(app, "stream_lost_total", group="g"), what="the loss is counted")
        await eventually(lambda: client.exists(JOBS, "{jobs}:again:g") == 2)
        await jobs.publish_many([Job(n=n) for n in range(2, 20)])
        await eventually(lambda: len(runs) == 19)
        assert not one.ended
    assert set(runs.values()) == {1}


@pytest.mark.row(27)
async def test_prefetch_is_bounded_by_bytes(redis_url: str, client: Any) -> None:
    """A fast handler invites reading far ahead; large events are read no further than prefetch_bytes."""
    bound, size = 300_000, 10_000
    app = App("shop", settings=settings(redis_url, prefetch_bytes=bound, batch=500, lease_ms=30_000))
    jobs = app.topic(JOBS, Job)
    release, blocked = asyncio.Event(), list[int]()

    @app.handler(jobs, group="g", concurrency=4)
    async def handle(event: Job) -> None:
        if event.n >= 400:
            blocked.append(event.n)
            await release.wait()

    async with app, running(app):
        await jobs.publish_many([Job(n=n) for n in range(400)])
        await eventually(lambda: outcomes(app, "g").get("ok") == 400)
        for start in range(400, 800, 20):
            await jobs.publish_many([Job(n=start + n, text="x" * size) for n in range(20)])
        await eventually(lambda: len(blocked) == 4)
        most = 0
        for _ in range(20):
            most = max(most, client.xpending(JOBS, "g")["pending"])
            await asyncio.sleep(0.01)
        release.set()
        await eventually(lambda: outcomes(app, "g").get("ok") == 800)
    one_read = bound // size
    assert 4 < most <= 4 + 2 * one_read


async def test_every_delivery_is_counted_with_one_outcome(redis_url: str, client: Any) -> None:
    app = App("shop", settings=settings(redis_url))
    jobs = app.topic(JOBS, Job)

    @app.handler(jobs, group="g", retry=Retry(max_attempts=3, base=0.001))
    async def handle(event: Job, ctx: Context) -> None:
        match event.n % 5:
            case 1 if ctx.attempt < 3:
                raise ValueError("again")
            case 2:
                raise ValueError("never")
            case 3:
                raise Reject("no")

    async with app:
        await jobs.publish_many([Job(n=n) for n in range(100)])
        copy = client.xrange(JOBS)[0][1]
        client.xadd(JOBS, copy)
        client.xadd(JOBS, {"hello": "world"})
        assert await burst(app) == 0
        found = outcomes(app, "g")
        assert found == {"ok": 60, "retry": 80, "dead": 41, "duplicate": 1}
        assert counted(app, "events_received_total", group="g") == sum(found.values())
        assert counted(app, "events_received_total", group="g", delivery="new") == 102
        assert counted(app, "dead_letters_total", group="g") == len(dead_letters(client, JOBS, "g")) == 41
        assert counted(app, "retries_scheduled_total", group="g") == 80
        assert counted(app, "duplicates_suppressed_total", group="g") == 1
        assert counted(app, "inflight_events", group="g") == 0


async def test_a_worker_is_ready_while_it_works_and_not_while_it_drains(redis_url: str) -> None:
    app = App("shop", settings=settings(redis_url))
    jobs = app.topic(JOBS, Job)
    release = asyncio.Event()

    @app.handler(jobs, group="g")
    async def handle(event: Job) -> None:
        await release.wait()

    async with app:
        assert app.worker().readiness() == (False, "starting")
        async with running(app) as one:
            await eventually(lambda: one.worker.readiness() == (True, "ready"))
            await jobs.publish(Job())
            await eventually(lambda: counted(app, "events_received_total", group="g"))
            one.ask_to_stop()
            await eventually(lambda: one.worker.readiness() == (False, "draining"))
            assert one.worker.live()[0]
            release.set()


@pytest.mark.row(43, 45)
async def test_a_user_without_the_right_to_msetex_is_served_too(own_server: Servers) -> None:
    """Least privilege may name commands one by one, and that one is new: marks are then written each by itself."""
    server = own_server()
    client: Any = server.client()
    known = b"msetex" in client.execute_command("COMMAND LIST")  # servers before it know no such right
    client.execute_command("ACL", "SETUSER", "app", "on", ">secret", "~*", "&*", "+@all", *(["-msetex"] * known))
    app = App("shop", settings=settings(server.url.replace("redis://", "redis://app:secret@")))
    jobs = app.topic(JOBS, Job, key="n")
    runs: Counter[int] = Counter()

    @app.handler(jobs, group="g")
    async def handle(event: Job) -> None:
        runs[event.n] += 1

    rows = app.projection("rows", jobs, Row, key="n")

    @rows.on(Job)
    def fold(row: Row | None, event: Job) -> Row:
        return Row(n=event.n)

    async with app:
        await jobs.publish_many([Job(n=n) for n in range(50)])
        assert await burst(app) == 0
        assert await rows.count() == 50
    assert set(runs.values()) == {1}
    assert outcomes(app, "g") == {"ok": 50}
    assert backlog(client) == 0
    assert len(client.keys(f"{{{JOBS}}}:idem:rows:*")) == 50, "done marks of the projection"


@pytest.mark.row(22)
async def test_a_worker_whose_handlers_are_busy_is_not_ready_while_it_is_cut_off(
    proxy: ChaosProxy, client: Any
) -> None:
    """It has read all that it may: neither a read, nor a claim, nor an outcome is left to ask Redis for."""
    quick = RedisSettings(url=proxy.url, timeout_s=0.5)
    app = App("shop", settings=settings("", sections={"redis": quick}, lease_ms=1_000, batch=2, concurrency=1))
    jobs = app.topic(JOBS, Job)
    release = asyncio.Event()

    @app.handler(jobs, group="g")
    async def handle(event: Job) -> None:
        await release.wait()

    async with app:
        await jobs.publish_many([Job(n=n) for n in range(20)])
        async with running(app) as one:
            await eventually(lambda: backlog(client) > 2 and one.worker.readiness()[0])
            proxy.blackhole()
            await eventually(lambda: "not renewed" in one.worker.readiness()[1])
            assert not one.worker.readiness()[0]
            proxy.heal()
            await eventually(lambda: one.worker.readiness()[0])
            release.set()
