"""Circuit breakers at work: while what handlers call is down, events wait in Redis and keep their attempts."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import redis

from streamlib import App, BatchContext, Breaker, Context, Event, Reject, Retry, RetryLater, Topic
from streamlib.redisio.claims import Claimed, claim
from streamlib.settings import RedisSettings
from streamlib.worker import parts
from streamlib.worker.limiter import Limiter
from streamlib.worker.pausing import BREAKER, Gate
from tests.helpers.delivering import counted, dead_letters, outcomes, running, settings
from tests.helpers.oracle import assert_nothing_lost
from tests.helpers.publishing import stored_ids
from tests.helpers.waiting import eventually

CONCURRENCY = 8
TWICE = Retry(max_attempts=2, base=0.01, cap=0.05)
QUICK = Breaker(failures=5, pause=0.1, cap=0.2)


class Job(Event):
    n: int
    key: str = ""


class Downstream:
    """What handlers call: it answers, refuses or hangs."""

    def __init__(self) -> None:
        self.up = True
        self.refused: list[int] = []
        self.poison = set[int]()
        self.done: dict[int, list[int]] = {}
        """Job -> the attempts at which it was done."""
        self.order: list[Job] = []

    def call(self, job: Job, attempt: int) -> None:
        if not self.up or job.n in self.poison:
            self.refused.append(job.n)
            raise ConnectionError("down")
        self.done.setdefault(job.n, []).append(attempt)
        self.order.append(job)

    @property
    def spent(self) -> int:
        """Attempts that were spent before those at which the jobs were done."""
        return sum(attempts[0] - 1 for attempts in self.done.values())


def a_handler(downstream: Downstream, how: str) -> Callable[..., Any]:
    async def plain(event: Job, ctx: Context) -> None:
        await asyncio.sleep(0.001)
        downstream.call(event, ctx.attempt)

    def thread(event: Job, ctx: Context) -> None:
        downstream.call(event, ctx.attempt)

    async def batch(events: list[Job], ctx: BatchContext) -> None:
        for event in events if downstream.up else events[:1]:
            downstream.call(event, ctx.of(event).attempt)

    handlers: dict[str, Callable[..., Any]] = {"plain": plain, "thread": thread, "batch": batch, "ordered": plain}
    return handlers[how]


def an_app(url: str, downstream: Downstream, how: str = "plain", **options: Any) -> tuple[App, Topic]:
    app = App("shop", settings=settings(url, concurrency=CONCURRENCY))
    jobs = app.topic("jobs", Job, key="key")
    declared = {"retry": TWICE, "breaker": QUICK, "ordering": "key" if how == "ordered" else "none", **options}
    app.handler(jobs, group="g", **declared)(a_handler(downstream, how))
    return app, jobs


def some(count: int) -> list[Job]:
    return [Job(n=n, key=f"k{n % 20}") for n in range(count)]


def is_open(app: App) -> bool:
    return counted(app, "breaker_open", group="g") == 1


def settled(client: redis.Redis, *, group: str = "g") -> bool:
    return assert_nothing_lost(client, "jobs", group, stored_ids(client, "jobs")).settled


@pytest.mark.parametrize("how", ["plain", "thread", "batch", "ordered"])
async def test_an_outage_spends_no_attempts_but_those_that_open_the_breaker(
    redis_url: str, client: redis.Redis, how: str
) -> None:
    downstream = Downstream()
    downstream.up = False
    app, jobs = an_app(redis_url, downstream, how)
    async with app:
        await jobs.publish_many(some(400))
        async with running(app):
            await eventually(lambda: is_open(app))
            assert len(downstream.refused) < 100, "those that were not started wait"
            await eventually(lambda: len(downstream.refused) > QUICK.failures + 2 * CONCURRENCY + 5, what="probes fail")
            assert is_open(app)
            downstream.up = True
            await eventually(lambda: settled(client), 30)
            assert not is_open(app)
    assert {n: len(attempts) for n, attempts in downstream.done.items()} == dict.fromkeys(range(400), 1)
    assert downstream.spent <= QUICK.failures
    assert outcomes(app, "g").get("dead", 0) == 0
    if how == "ordered":
        for key in {job.key for job in downstream.order}:
            of_key = [job.n for job in downstream.order if job.key == key]
            assert of_key == sorted(of_key)


async def test_while_it_is_open_one_event_at_a_time_is_tried(redis_url: str) -> None:
    downstream, at_once = Downstream(), list[int]()
    downstream.up = False
    app = App("shop", settings=settings(redis_url, concurrency=CONCURRENCY))
    jobs = app.topic("jobs", Job)
    running_now = 0

    @app.handler(jobs, group="g", retry=TWICE, breaker=Breaker(failures=1, pause=0.1, cap=0.1))
    async def slow(event: Job, ctx: Context) -> None:
        nonlocal running_now
        running_now += 1
        at_once.append(running_now)
        await asyncio.sleep(0.02)
        running_now -= 1
        downstream.call(event, ctx.attempt)

    async with app:
        await jobs.publish_many(some(100))
        async with running(app):
            await eventually(lambda: is_open(app) and at_once[-3:] == [1, 1, 1], what="what ran as it opened has ended")
            assert max(at_once) == CONCURRENCY
            before = len(at_once)
            await eventually(lambda: len(at_once) >= before + 10)
            probes = downstream.refused[before : before + 10]
    assert set(at_once[before : before + 10]) == {1}
    assert len(set(probes)) == len(probes), "no event is tried again before the others had their turn"


async def test_what_was_being_claimed_as_the_gate_closed_does_not_start(
    redis_url: str, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    downstream, gates = Downstream(), list[Gate]()
    app, jobs = an_app(redis_url, downstream)

    async def claim_and_close(*given: Any, **options: Any) -> list[Claimed]:
        claimed = await claim(*given, **options)
        if not gates:
            gates.append(one.worker._pauses.gate("jobs", "g"))
            gates[0].set(is_open=False, by=BREAKER)
        return claimed

    monkeypatch.setattr(parts, "claim", claim_and_close)
    async with app, running(app) as one:
        await jobs.publish_many(some(50))
        await eventually(lambda: outcomes(app, "g").get("released"), what="what was claimed went back")
        assert not downstream.done
        gates[0].set(is_open=True, by=BREAKER)
        await eventually(lambda: settled(client))
    assert downstream.done == {n: [1] for n in range(50)}


async def test_other_groups_of_the_worker_go_on(redis_url: str) -> None:
    downstream, handled = Downstream(), list[int]()
    downstream.up = False
    app, jobs = an_app(redis_url, downstream, breaker=Breaker(failures=1, pause=60))

    @app.handler(jobs, group="other")
    async def other(event: Job) -> None:
        handled.append(event.n)

    async with app, running(app):
        await jobs.publish_many(some(50))
        await eventually(lambda: is_open(app) and len(handled) == 50)
        await jobs.publish_many(some(50))
        await eventually(lambda: len(handled) == 100)
        assert is_open(app)


async def test_a_worker_whose_breaker_is_open_is_ready_though_it_does_not_read(redis_url: str) -> None:
    """What it should do it can do; that its group waits is told beside."""
    downstream = Downstream()
    downstream.up = False
    app, jobs = an_app(redis_url, downstream, breaker=Breaker(failures=1, pause=60))
    app.configure(settings(redis_url, sections={"redis": RedisSettings(url=redis_url, timeout_s=0.3)}))
    async with app, running(app) as one:
        await jobs.publish_many(some(50))
        await eventually(lambda: is_open(app))
        last_poll = "last_poll_timestamp_seconds"
        await eventually(lambda: time.time() - counted(app, last_poll, group="g") > 0.6, what="nobody reads")
        assert one.worker.readiness() == (True, "ready; circuit breaker open: jobs/g")


async def test_a_timeout_is_a_failure_too(redis_url: str) -> None:
    app = App("shop", settings=settings(redis_url, concurrency=4))
    jobs = app.topic("jobs", Job)

    @app.handler(jobs, group="g", timeout=0.05, breaker=Breaker(failures=4, pause=60))
    async def hangs(event: Job) -> None:
        await asyncio.Event().wait()

    async with app, running(app):
        await jobs.publish_many(some(20))
        await eventually(lambda: is_open(app))


async def test_what_handlers_decide_themselves_opens_nothing(redis_url: str, client: redis.Redis) -> None:
    app = App("shop", settings=settings(redis_url))
    jobs = app.topic("jobs", Job)

    @app.handler(jobs, group="g", breaker=Breaker(failures=1, pause=60))
    async def decides(event: Job, ctx: Context) -> None:
        if event.n % 2:
            raise Reject("never")
        if ctx.attempt == 1:
            raise RetryLater(delay=0.01)

    async with app, running(app):
        await jobs.publish_many(some(40))
        await eventually(lambda: settled(client))
    assert outcomes(app, "g") == {"ok": 20, "retry": 20, "dead": 20}
    assert counted(app, "breaker_openings_total") == 0


async def test_poison_keeps_no_neighbour_waiting_and_ends_in_the_dead_letters(
    redis_url: str, client: redis.Redis
) -> None:
    downstream = Downstream()
    downstream.poison = {0, 1, 2}
    app, jobs = an_app(redis_url, downstream, breaker=Breaker(failures=2, pause=0.05, cap=0.1))
    async with app, running(app):
        await jobs.publish_many(some(3))
        await eventually(lambda: len(downstream.refused) > 10, what="nothing but poison is there, and it is tried")
        assert is_open(app)
        assert not dead_letters(client, "jobs", "g"), "for all that is known this is an outage"
        for n in range(3, 60):
            await jobs.publish(Job(n=n))
            await eventually(lambda: n in downstream.done)  # noqa: B023
            if len(dead_letters(client, "jobs", "g")) == 3:
                break
        await eventually(lambda: settled(client))
    dead = dead_letters(client, "jobs", "g")
    assert [letter["dl-attempts"] for letter in dead] == ["2"] * 3


async def test_poison_without_neighbours_ends_in_the_dead_letters_too(redis_url: str, client: redis.Redis) -> None:
    downstream = Downstream()
    downstream.up = False
    policy = Breaker(failures=1, pause=0.05, cap=0.05, patience=0.5)
    app, jobs = an_app(redis_url, downstream, breaker=policy, retry=Retry(max_attempts=3, base=0.01, cap=0.01))
    async with app:
        await jobs.publish(Job(n=0))
        async with running(app):
            await eventually(lambda: settled(client))
    [letter] = dead_letters(client, "jobs", "g")
    assert (letter["dl-reason"], letter["dl-attempts"]) == ("max_attempts", "3")
    assert len(downstream.refused) > 5, "while it is patient a failed probe spends nothing"


async def test_a_probe_that_hangs_keeps_its_neighbours_waiting_no_longer_than_the_cap(redis_url: str) -> None:
    """A connection that an outage left behind may hang for as long as the handler's timeout, 15 minutes by default."""
    app = App("shop", settings=settings(redis_url, concurrency=CONCURRENCY, reclaim_ms=60_000))
    jobs = app.topic("jobs", Job)
    hangs, release, done = list[int](), asyncio.Event(), set[int]()

    @app.handler(jobs, group="g", retry=TWICE, breaker=Breaker(failures=3, pause=0.05, cap=0.3))
    async def call(event: Job) -> None:
        if not counted(app, "breaker_openings_total", group="g"):
            raise ConnectionError("down")
        if not hangs:
            hangs.append(event.n)
            await release.wait()
        done.add(event.n)

    async with app:
        await jobs.publish_many(some(50))
        async with running(app):
            await eventually(lambda: len(done) == 49)
            assert not is_open(app)
            release.set()
            await eventually(lambda: len(done) == 50)


async def test_an_event_that_must_not_run_twice_is_not_tried_again_but_its_neighbours_wait(
    redis_url: str, client: redis.Redis
) -> None:
    downstream = Downstream()
    downstream.up = False
    app, jobs = an_app(redis_url, downstream, rerun="never", breaker=Breaker(failures=5, pause=60))
    async with app:
        await jobs.publish_many(some(300))
        async with running(app):
            await eventually(lambda: is_open(app))
            await eventually(lambda: len(dead_letters(client, "jobs", "g")) == len(downstream.refused))
    assert len(downstream.refused) <= 5 + 2 * CONCURRENCY
    assert Counter(downstream.refused).most_common(1)[0][1] == 1
    assert_nothing_lost(client, "jobs", "g", stored_ids(client, "jobs"))


@pytest.mark.parametrize("how", ["plain", "ordered"])
async def test_what_a_stopping_worker_had_parked_runs_elsewhere_at_once(
    redis_url: str, client: redis.Redis, how: str
) -> None:
    downstream = Downstream()
    downstream.up = False
    options = {"breaker": Breaker(failures=5, pause=60)}
    first, jobs = an_app(redis_url, downstream, how, **options)
    second, _ = an_app(redis_url, downstream, how, **options)
    async with first, second:
        await jobs.publish_many(some(200))
        async with running(first):
            await eventually(lambda: is_open(first))
        downstream.up = True
        began = time.monotonic()
        async with running(second):
            await eventually(lambda: settled(client))
        assert time.monotonic() - began < 20, "nobody waited for the other's pause"
    assert downstream.spent <= 5
    assert {len(attempts) for attempts in downstream.done.values()} == {1}


async def test_a_limited_group_parks_too(redis_url: str, client: redis.Redis) -> None:
    downstream = Downstream()
    downstream.up = False
    app, jobs = an_app(redis_url, downstream, group_concurrency=3, rate="500/s")
    async with app:
        await jobs.publish_many(some(100))
        async with running(app):
            await eventually(lambda: len(downstream.refused) > 20)
            await eventually(lambda: counted(app, "inflight_events", group="g") == 0)
            downstream.up = True
            await eventually(lambda: settled(client), 30)
    assert {len(attempts) for attempts in downstream.done.values()} == {1}
    assert downstream.spent <= QUICK.failures


async def test_a_probe_asks_for_one_permit_and_leaves_the_others_to_other_workers(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = App("shop", settings=settings(redis_url, concurrency=CONCURRENCY))
    jobs = app.topic("jobs", Job)
    wanted, hangs, release = list[int](), asyncio.Event(), asyncio.Event()
    want = Limiter.want

    def heard(limiter: Limiter, now: int, soon: int = 0) -> None:
        if is_open(app):
            wanted.append(max(now, soon))
        want(limiter, now, soon)

    monkeypatch.setattr(Limiter, "want", heard)

    @app.handler(jobs, group="g", rate="200/s", breaker=Breaker(failures=3, pause=0.1, cap=0.1))
    async def call(event: Job) -> None:
        if counted(app, "breaker_openings_total", group="g"):
            hangs.set()
            await release.wait()
        raise ConnectionError("down")

    async with app:
        await jobs.publish_many(some(100))
        async with running(app):
            await hangs.wait()
            before = len(wanted)
            await jobs.publish(Job(n=100))
            await eventually(lambda: len(wanted) > before, what="it has looked what to start")
            release.set()
    assert set(wanted) == {0, 1}


async def test_a_success_between_failures_keeps_it_closed(redis_url: str, client: redis.Redis) -> None:
    app = App("shop", settings=settings(redis_url, concurrency=1))
    jobs = app.topic("jobs", Job)

    @app.handler(jobs, group="g", breaker=Breaker(failures=2, pause=60), retry=Retry(base=2, cap=2), concurrency=1)
    async def every_other(event: Job, ctx: Context) -> None:
        if event.n % 2 and ctx.attempt == 1:
            raise ConnectionError("once")

    async with app, running(app):
        await jobs.publish_many(some(20))
        await eventually(lambda: settled(client))
    assert counted(app, "breaker_openings_total") == 0
