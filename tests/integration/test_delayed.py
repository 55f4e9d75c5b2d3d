"""Delayed events: never early, for every group, once, whatever happens to connections, workers and the server."""

import asyncio
import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from streamlib import App, Context, Event, Exact, ReadModel, Settings
from streamlib.errors import DeclarationError, IdempotencyConflict, PublishError, TopicFull
from streamlib.message import Position, entry_time_ms
from streamlib.ops.inspect import inspect
from streamlib.redisio.later import promote_later
from streamlib.settings import LimitSettings
from tests.helpers.delivering import burst, counted, outcomes, running, settings
from tests.helpers.oracle import assert_nothing_lost
from tests.helpers.proxy import ChaosProxy
from tests.helpers.publishing import entries, stored_ids
from tests.helpers.servers import RedisProc
from tests.helpers.waiting import eventually

LATER, BODIES = "{jobs}:later", "{jobs}:laterbody"


class Job(Event):
    n: int
    note: str = ""


class Row(ReadModel):
    n: int
    note: str


def an_app(configured: Settings, seen: Counter[tuple[str, int]] | None = None, **declared: Any) -> App:
    """A topic, two groups that note what they get, and a view."""
    app = App("shop", settings=configured)
    jobs = app.topic("jobs", Job, **declared)
    found = Counter[tuple[str, int]]() if seen is None else seen

    @app.handler(jobs, group="a")
    async def first(event: Job) -> None:
        found["a", event.n] += 1

    @app.handler(jobs, group="b")
    async def second(event: Job) -> None:
        found["b", event.n] += 1

    view = app.projection("rows", jobs, Row, key="n", indexes=[Exact("note")])

    @view.on(Job)
    def _(row: Row | None, event: Job) -> Row:
        return Row(n=event.n, note=event.note)

    return app


def server_ms(client: Any) -> float:
    seconds, micros = client.time()
    return float(seconds * 1000 + micros / 1000)


async def make_due(client: Any, *event_ids: str) -> None:
    for event_id in event_ids or [raw.decode() for raw in client.zrange(LATER, 0, -1)]:
        client.zadd(LATER, {event_id: 1}, xx=True)


async def test_it_enters_the_stream_in_time_and_never_early(redis_url: str, client: Any) -> None:
    seen: Counter[tuple[str, int]] = Counter()
    app = an_app(settings(redis_url), seen)
    delays = {n: 0.05 + n * 0.137 for n in range(8)}
    async with app:
        not_before = {}
        for n in reversed(range(8)):
            not_before[n] = server_ms(client) + delays[n] * 1000
            position = await app.topics["jobs"].publish(Job(n=n), id=f"e-{n}", delay=delays[n])
            assert position == Position("jobs", 0, "")
        assert client.xlen("jobs") == 0
        async with running(app):
            await eventually(lambda: len(seen) == 16)
            await eventually(lambda: client.xlen("jobs") == 8)
    stored = {int(fields[b"id"][2:]): entry_time_ms(entry_id) for entry_id, fields in entries(client, "jobs")}
    assert list(stored) == sorted(stored), "in the order in which they are due"
    early = {n: stored[n] - at for n, at in not_before.items() if stored[n] < math.floor(at)}
    assert not early
    assert seen == Counter({(group, n): 1 for group in "ab" for n in range(8)})
    assert client.exists(LATER, BODIES) == 0


async def test_a_projection_gets_it_too_with_no_handler_about(redis_url: str, client: Any) -> None:
    app = App("shop", settings=settings(redis_url))
    jobs = app.topic("jobs", Job, key="n", partitions=3)
    view = app.projection("rows", jobs, Row, key="n")

    @view.on(Job)
    def _(row: Row | None, event: Job) -> Row:
        return Row(n=event.n, note=event.note)

    async with app, running(app):
        for n in range(9):
            await jobs.publish(Job(n=n, note="é\r\n\0"), delay=0.1)
        for n in range(9):
            await eventually(partial(view.get, str(n)))
        assert await view.get("3") == Row(n=3, note="é\r\n\0")
        assert counted(app, "published_events_total", outcome="stored") == 9


async def test_an_entry_is_the_same_as_without_delay(redis_url: str, client: Any) -> None:
    app = an_app(settings(redis_url))
    async with app:
        jobs = app.topics["jobs"]
        about: dict[str, Any] = {"id": "same", "correlation_id": "c", "headers": {"a": "1:2"}, "time_ms": 7}
        await jobs.publish(Job(n=1, note="12:ä"), **about)
        await jobs.publish(Job(n=1, note="12:ä"), **about, delay=0.001)
        await eventually(lambda: promote(app))
    (_, direct), (_, delayed) = entries(client, "jobs")
    assert direct == delayed
    assert list(direct) == list(delayed)


async def promote(app: App) -> int:
    return (await promote_later(app.redis, app.keys.stream("jobs", 0, 1))).count


async def test_moving_twice_moves_once(redis_url: str, client: Any) -> None:
    app = an_app(settings(redis_url))
    async with app:
        for n in range(250):
            await app.topics["jobs"].publish(Job(n=n), id=f"e-{n:03}", delay=60)
        keys = app.keys.stream("jobs", 0, 1)
        waiting = await promote_later(app.redis, keys)
        assert waiting.count == 0
        assert 0 < waiting.next_ms <= 60_001
        await make_due(client)
        answers = await asyncio.gather(*(promote_later(app.redis, keys) for _ in range(6)))
        assert sorted(answer.count for answer in answers) == [0, 0, 0, 50, 100, 100]
        assert (await promote_later(app.redis, keys)).next_ms == -1
    assert stored_ids(client, "jobs") == [f"e-{n:03}" for n in range(250)]


@pytest.mark.row(21)
async def test_a_lost_reply_doubles_nothing(proxy: ChaosProxy, client: Any, redis_url: str) -> None:
    app = an_app(settings(proxy.url))
    async with app:
        jobs = app.topics["jobs"]
        await jobs.publish(Job(n=-1), id="warm up")
        for n in range(5):
            proxy.drop_next_reply(f"e-{n}".encode())
            assert (await jobs.publish(Job(n=n), id=f"e-{n}", delay=60)).entry_id == ""
        assert proxy.struck == 5
        assert client.zcard(LATER) == client.hlen(BODIES) == 5
        results = await jobs.publish_many([Job(n=9)])
        assert isinstance(results[0], Position)
        await make_due(client)
        proxy.drop_next_reply(b"laterbody")
        await app.redis.persist(lambda: promote_later(app.redis, app.keys.stream("jobs", 0, 1)), give_up_s=5)
        assert proxy.struck == 6
    assert Counter(stored_ids(client, "jobs")).most_common(1)[0][1] == 1
    assert client.xlen("jobs") == 7


async def test_an_id_that_waits_is_a_copy_and_keeps_its_time(redis_url: str, client: Any) -> None:
    app = an_app(settings(redis_url))
    async with app:
        jobs = app.topics["jobs"]
        await jobs.publish(Job(n=1), id="e", delay=1_000)
        due = client.zscore(LATER, "e")
        assert await jobs.publish(Job(n=2), id="e", delay=1) == Position("jobs", 0, "")
        assert await asyncio.gather(*(jobs.publish(Job(n=3), id="f", delay=1_000) for _ in range(3)))
        assert client.zscore(LATER, "e") == due
        assert client.zcard(LATER) == client.hlen(BODIES) == 2
        assert counted(app, "published_events_total", outcome="duplicate") == 3


async def test_the_dedup_window_knows_delayed_ones(redis_url: str, client: Any) -> None:
    app = an_app(settings(redis_url), dedup_window_s=60)
    async with app:
        jobs = app.topics["jobs"]
        await jobs.publish(Job(n=1), id="e", delay=1_000)
        with pytest.raises(IdempotencyConflict, match="a delayed event"):
            await jobs.publish(Job(n=2), id="e", delay=1_000)
        with pytest.raises(IdempotencyConflict):
            await jobs.publish(Job(n=2), id="e")
        assert (await jobs.publish(Job(n=1), id="e")).entry_id == "", "the copy waits where the first one does"
        await make_due(client)
        assert await promote(app) == 1
        assert (await jobs.publish(Job(n=1), id="e", delay=5)).entry_id == ""
    assert client.xlen("jobs") == 1
    assert client.exists(LATER) == 0


async def test_waiting_ones_count_for_a_full_topic(redis_url: str, client: Any) -> None:
    configured = settings(redis_url, sections={"limits": LimitSettings(topic_len=3)})
    async with (app := an_app(configured)):
        jobs = app.topics["jobs"]
        for n in range(2):
            await jobs.publish(Job(n=n), delay=1_000)
        await jobs.publish(Job(n=2))
        with pytest.raises(TopicFull, match="delayed"):
            await jobs.publish(Job(n=3))
        with pytest.raises(TopicFull):
            await jobs.publish(Job(n=3), delay=1)
        await make_due(client)
        assert await promote(app) == 2, "they had their room before"


@pytest.mark.parametrize("delay", [-1, -0.001, math.nan, math.inf, 4e8, True, "5"])
async def test_a_delay_that_is_none_is_refused(redis_url: str, client: Any, delay: Any) -> None:
    async with (app := an_app(settings(redis_url))):
        with pytest.raises(PublishError, match="delay="):
            await app.topics["jobs"].publish(Job(n=1), delay=delay)
    assert client.exists(LATER, "jobs") <= 1


async def test_an_unreadable_one_blocks_no_other(redis_url: str, client: Any) -> None:
    seen: Counter[tuple[str, int]] = Counter()
    app = an_app(settings(redis_url), seen)
    async with app:
        for n in range(4):
            await app.topics["jobs"].publish(Job(n=n), id=f"e-{n}", delay=1_000)
        client.hset(BODIES, "e-0", "5:abc")
        client.hset(BODIES, "e-1", "2:id")
        client.hdel(BODIES, "e-2")
        await make_due(client)
        async with running(app):
            await eventually(lambda: seen["a", 3] and seen["b", 3])
        assert set(client.zrange(LATER, 0, -1)) == {b"e-0", b"e-1", b"e-2"}, "kept for a person to look at"
        assert client.zscore(LATER, "e-0") > server_ms(client)
        client.delete(LATER, BODIES)


@pytest.mark.allow_keys("{jobs.0}:later")
async def test_a_partition_of_the_wrong_type_blocks_no_other(redis_url: str, client: Any) -> None:
    app = App("shop", settings=settings(redis_url))
    jobs = app.topic("jobs", Job, key="n", partitions=2)
    seen: list[int] = []

    @app.handler(jobs, group="a")
    async def handle(event: Job) -> None:
        seen.append(event.n)

    async with app:
        client.set("{jobs.0}:later", "foreign")
        results = await asyncio.gather(*(jobs.publish(Job(n=n), delay=0.01) for n in range(8)), return_exceptions=True)
        refused = [str(result) for result in results if isinstance(result, Exception)]
        assert refused
        assert all("{jobs.0}:later" in text for text in refused)
        async with running(app):
            await eventually(lambda: len(seen) == 8 - len(refused))


async def test_info_and_metrics_tell_how_many_wait(redis_url: str, client: Any) -> None:
    app = App("shop", settings=settings(redis_url))
    jobs = app.topic("jobs", Job, key="n", partitions=4)
    handled: list[int] = []

    @app.handler(jobs, group="a")
    async def handle(event: Job) -> None:
        handled.append(event.n)

    async with app:
        for n in range(10):
            await jobs.publish(Job(n=n), delay=1_000)
        (info,) = await inspect(app.redis, app.keys, "jobs")
        assert (info.length, info.delayed, info.groups[0].backlog) == (0, 10, 0)
        async with running(app):
            await eventually(lambda: counted(app, "delayed_events", topic="jobs") == 10)
        assert await burst(app) == 0, "what is not due keeps no burst going"
    assert not handled


async def test_wait_for_knows_no_place_for_it(redis_url: str) -> None:
    async with (app := an_app(settings(redis_url))):
        position = await app.topics["jobs"].publish(Job(n=1), delay=1_000)
        with pytest.raises(ValueError, match="delayed"):
            await app.projections["rows"].wait_for(position, timeout=0.1)


async def test_a_handler_emits_later_and_a_repeat_not_twice(redis_url: str, client: Any) -> None:
    app = App("shop", settings=settings(redis_url))
    jobs = app.topic("jobs", Job)
    seen: Counter[int] = Counter()

    @app.handler(jobs, group="a")
    async def handle(event: Job, ctx: Context) -> None:
        seen[event.n] += 1
        if event.n == 0:
            ctx.publish(jobs, Job(n=1, note=f"run {ctx.attempt}"), delay=1_000)
            ctx.publish(jobs, Job(n=2), delay=-1 if ctx.attempt == 1 else 0)

    async with app, running(app):
        await jobs.publish(Job(n=0))
        await eventually(lambda: seen[2] == 1)
        assert (seen[0], seen[1], client.zcard(LATER)) == (2, 0, 1)
        await make_due(client)
        await eventually(lambda: seen[1] == 1)
        assert outcomes(app, "a")["retry"] == 1


async def test_a_server_that_comes_back_still_has_them(own_server: Callable[..., RedisProc]) -> None:
    server = own_server(aof=True)
    seen: Counter[tuple[str, int]] = Counter()
    app = an_app(settings(server.url), seen)
    async with app, running(app):
        ids = [f"e-{n}" for n in range(50)]
        for n, event_id in enumerate(ids):
            await app.topics["jobs"].publish(Job(n=n), id=event_id, delay=0.5 + n / 100)
        await asyncio.to_thread(server.kill9)
        await asyncio.to_thread(server.start)
        await eventually(lambda: len(seen) == 100, 30)
        with server.client() as client:
            assert sorted(stored_ids(client, "jobs")) == sorted(ids)
            for group in "ab":
                await eventually(partial(_settled, client, group, ids))


def _settled(client: Any, group: str, ids: list[str]) -> bool:
    return assert_nothing_lost(client, "jobs", group, ids).settled


def test_only_events_that_are_declared(redis_url: str) -> None:
    class Other(Event):
        n: int

    app = an_app(settings(redis_url))
    with app.blocking() as shop:
        with pytest.raises(DeclarationError):
            shop.publish(app.topics["jobs"], Other(n=1), delay=1)
        assert shop.publish(app.topics["jobs"], Job(n=1), delay=100).entry_id == ""
