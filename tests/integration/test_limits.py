"""Limits of a group over all its workers: the rate is never exceeded, nor the number at once, and nobody starves."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import redis

from streamlib import App, BatchContext, Context, Event, Retry
from tests.helpers.delivering import burst, counted, outcomes, running, settings
from tests.helpers.proxy import ChaosProxy
from tests.helpers.waiting import eventually

pytestmark = pytest.mark.allow_keys("starts", "running", "most")

STARTED = """
local time = redis.call('TIME')
redis.call('RPUSH', KEYS[1], ARGV[1] .. ' ' .. string.format('%.6f', time[1] + time[2] / 1e6))
redis.call('SADD', KEYS[2], ARGV[2])
local now, most = redis.call('SCARD', KEYS[2]), tonumber(redis.call('GET', KEYS[3]) or 0)
if now > most then redis.call('SET', KEYS[3], now) end
"""


class Job(Event):
    n: int


class Book:
    """Where handlers write, by the server's clock, who started when, and how many ran at once at the most."""

    def __init__(self, client: redis.Redis) -> None:
        self.client: Any = client

    def started(self, worker: str, run: str) -> None:
        self.client.eval(STARTED, 3, "starts", "running", "most", worker, run)

    def ended(self, run: str) -> None:
        self.client.srem("running", run)

    @property
    def most(self) -> int:
        return int(self.client.get("most") or 0)

    def times(self) -> list[float]:
        return sorted(float(row.split()[1]) for row in self.client.lrange("starts", 0, -1))

    def by_worker(self) -> Counter[str]:
        return Counter(row.split()[0].decode() for row in self.client.lrange("starts", 0, -1))


def an_app(book: Book, name: str, url: str, *, seconds: float = 0.0, partitions: int = 1, **limits: Any) -> App:
    """An app of its own for each worker, so that handlers know where they run."""
    app = App("shop", settings=settings(url, concurrency=8))
    jobs = app.topic("jobs", Job, key="n", partitions=partitions)

    @app.handler(jobs, group="g", **limits)
    async def handle(event: Job, ctx: Context) -> None:
        run = f"{name}-{event.n}-{ctx.attempt}"
        book.started(name, run)
        await asyncio.sleep(seconds)
        book.ended(run)

    return app


@asynccontextmanager
async def workers(make: Callable[[str], App], number: int = 3) -> AsyncIterator[list[App]]:
    async with AsyncExitStack() as stack:
        apps = [make(f"w{n}") for n in range(number)]
        for app in apps:
            await stack.enter_async_context(app)
            await stack.enter_async_context(running(app))
        yield apps


async def publish(app: App, count: int) -> None:
    results = await app.topics["jobs"].publish_many([Job(n=n) for n in range(count)])
    assert not [result for result in results if isinstance(result, Exception)]


def most_in(times: Sequence[float], window_s: float) -> int:
    """The largest number of times in any window of this length."""
    most, first = 0, 0
    for last, at in enumerate(times):
        while times[first] <= at - window_s:
            first += 1
        most = max(most, last - first + 1)
    return most


@pytest.mark.parametrize("partitions", [1, 4])
async def test_three_workers_together_keep_the_rate(client: Any, redis_url: str, partitions: int) -> None:
    book = Book(client)
    async with workers(lambda name: an_app(book, name, redis_url, rate="100/s", partitions=partitions)) as apps:
        await publish(apps[0], 400)
        await eventually(lambda: len(book.times()) == 400, 30)
        throttled = sum(counted(app, "throttled_seconds_total", group="g") for app in apps)
    times = book.times()
    assert most_in(times, 2.0) <= 200
    assert min(book.by_worker().values()) >= 40
    assert throttled > 1


async def test_the_number_at_once_is_never_exceeded_and_is_used(client: Any, redis_url: str) -> None:
    book = Book(client)
    async with workers(lambda name: an_app(book, name, redis_url, seconds=0.02, group_concurrency=5)) as apps:
        await publish(apps[0], 300)
        await eventually(lambda: len(book.times()) == 300, 60)
    assert book.most == 5
    assert min(book.by_worker().values()) >= 30
    assert client.exists("streamlib:limit:jobs:g") == 0, "who leaves gives back what it held"


async def test_one_at_once_goes_round(client: Any, redis_url: str) -> None:
    book = Book(client)
    async with workers(lambda name: an_app(book, name, redis_url, seconds=0.005, group_concurrency=1)) as apps:
        await publish(apps[0], 300)
        await eventually(lambda: len(book.times()) == 300, 60)
    assert book.most == 1
    assert min(book.by_worker().values()) >= 30


async def test_both_limits_hold_together(client: Any, redis_url: str) -> None:
    book = Book(client)

    def make(name: str) -> App:
        return an_app(book, name, redis_url, seconds=0.03, rate="50/s", group_concurrency=2)

    async with workers(make) as apps:
        await publish(apps[0], 120)
        await eventually(lambda: len(book.times()) == 120, 60)
    assert book.most <= 2
    assert most_in(book.times(), 2.0) <= 100


async def test_every_run_counts_also_of_retries_and_batches(client: Any, redis_url: str) -> None:
    app = App("shop", settings=settings(redis_url))
    jobs = app.topic("jobs", Job)
    book, sizes = Book(client), list[int]()

    @app.handler(jobs, group="again", rate="50/s", retry=Retry(max_attempts=3, base=0.001, cap=0.001))
    async def fails(event: Job) -> None:
        book.started("w", "r")
        raise ValueError("never")

    @app.handler(jobs, group="batch", rate="50/s")
    async def load(events: list[Job], ctx: BatchContext) -> None:
        sizes.append(len(events))

    async with app:
        await jobs.publish_many([Job(n=n) for n in range(40)])
        assert await burst(app, timeout_s=60) == 0
    assert len(book.times()) == 120
    assert most_in(book.times(), 1.5) <= 75
    assert sum(sizes) == 40


@pytest.mark.row(21)
@pytest.mark.parametrize("limits", [{"rate": "200/s"}, {"group_concurrency": 3}], ids=["rate", "at once"])
async def test_lost_replies_exceed_nothing_and_stop_nothing(
    proxy: ChaosProxy, client: Any, redis_url: str, limits: dict[str, Any]
) -> None:
    book = Book(client)
    async with workers(lambda name: an_app(book, name, proxy.url, seconds=0.01, **limits), 2) as apps:
        await publish(apps[0], 20)
        await eventually(lambda: len(book.times()) >= 20)
        for lost in range(5):
            proxy.drop_next_reply(b"streamlib:limit:jobs:g")
            await publish(apps[0], 20)
            await eventually(lambda lost=lost: proxy.struck > lost)  # type: ignore[misc]
        await eventually(lambda: len(book.times()) == 120, 30)
    assert most_in(book.times(), 2.0) <= 400
    assert book.most <= limits.get("group_concurrency", 16)


async def test_while_redis_is_away_nothing_starts_and_then_it_goes_on(
    proxy: ChaosProxy, client: Any, redis_url: str
) -> None:
    book = Book(client)
    async with workers(lambda name: an_app(book, name, proxy.url, rate="100/s"), 2) as apps:
        await publish(apps[0], 200)
        await eventually(lambda: len(book.times()) > 50)
        proxy.blackhole()
        await asyncio.sleep(0.5)
        before = len(book.times())
        await asyncio.sleep(0.5)
        assert len(book.times()) == before
        proxy.heal()
        await eventually(lambda: len(book.times()) == 200, 30)
        await eventually(lambda: sum(outcomes(app, "g").get("ok", 0) for app in apps) == 200, what="all ended")
    assert most_in(book.times(), 2.0) <= 200


async def test_a_suspect_needs_a_permit_too(client: Any, redis_url: str) -> None:
    """A worker died over these events; what runs in their stead keeps the limit."""
    book = Book(client)
    app = an_app(book, "w", redis_url, seconds=0.05, group_concurrency=1)
    async with app:
        positions = await app.topics["jobs"].publish_many([Job(n=n) for n in range(6)])
        for n, (_, fields) in enumerate(client.xrange("jobs")[:3]):
            entry_id = positions[n].entry_id  # type: ignore[union-attr]
            client.xreadgroup("g", "dead", {"jobs": ">"}, count=1)
            client.set("{jobs}:idem:g:" + fields[b"id"].decode(), f"c1:dead:{entry_id}", px=60_000)
        client.xclaim("jobs", "g", "dead", 0, [p.entry_id for p in positions[:3]], idle=60_000)  # type: ignore[union-attr]
        async with running(app):
            await eventually(lambda: outcomes(app, "g").get("ok") == 6)
        assert client.hlen("{jobs}:suspect:g") == 0
    assert book.most == 1
    assert len(book.times()) == 6


async def test_unlimited_groups_ask_for_nothing(client: Any, redis_url: str) -> None:
    book = Book(client)
    async with (app := an_app(book, "w", redis_url)):
        await publish(app, 20)
        assert await burst(app) == 0
        assert counted(app, "throttled_seconds_total", group="g") == 0
    assert not client.keys("streamlib:limit:*")
