"""How a worker ends, and what must not end it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from streamlib import App, Event
from streamlib.redisio.registry import declare_group
from streamlib.settings import RedisSettings, Settings
from tests.helpers.delivering import GROUP, running, settings
from tests.helpers.waiting import eventually


class Placed(Event):
    n: int


def shop(url: str, runs: list[int], *, work_s: float = 0.0, partitions: int = 1, **worker: Any) -> App:
    app = App("shop", settings=settings(url, **worker))
    orders = app.topic("orders", Placed, partitions=partitions)

    @app.handler(orders, group=GROUP, concurrency=4)
    async def handle(event: Placed) -> None:
        await asyncio.sleep(work_s)
        runs.append(event.n)

    return app


async def test_a_cancelled_worker_leaves_nothing_running(redis_url: str) -> None:
    runs: list[int] = []
    app = shop(redis_url, runs)
    async with app:
        before = asyncio.all_tasks()
        working = asyncio.create_task(app.worker().run(asyncio.Event()))
        await app.topics["orders"].publish(Placed(n=1))
        await eventually(lambda: runs == [1])
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working
        assert asyncio.all_tasks() == before
        await app.topics["orders"].publish(Placed(n=2))
        assert runs == [1]


async def test_a_server_that_comes_back_empty_does_not_end_a_busy_worker(redis_url: str, client: Any) -> None:
    runs: list[int] = []
    app = shop(redis_url, runs, work_s=0.5)
    async with app, running(app):
        await app.topics["orders"].publish_many([Placed(n=n) for n in range(40)])
        await eventually(lambda: len(runs) >= 4)
        client.flushall()
        await eventually(lambda: client.exists("streamlib:topics"), timeout=30)
        await app.topics["orders"].publish(Placed(n=100))
        await eventually(lambda: 100 in runs, timeout=30)


async def test_a_saturated_worker_is_ready(redis_url: str) -> None:
    runs: list[int] = []
    app = shop(redis_url, runs, work_s=1.5, block_ms=20)
    app.configure(_impatient(app))
    async with app:
        worker, stop = app.worker(), asyncio.Event()
        working = asyncio.create_task(worker.run(stop))
        await app.topics["orders"].publish_many([Placed(n=n) for n in range(60)])
        await eventually(lambda: len(runs) >= 4, timeout=30)
        assert worker.readiness() == (True, "ready")
        stop.set()
        assert await working == 0


def _impatient(app: App) -> Settings:
    """A worker is unready when Redis has not answered for block_ms + timeout_s: make that short."""
    redis = RedisSettings(url=app.settings.redis.url, timeout_s=0.4)
    return settings(redis.url, block_ms=20, sections={"redis": redis})


@pytest.mark.allow_keys("streamlib:*")
async def test_a_burst_that_cannot_look_at_its_backlog_says_so(redis_url: str, client: Any) -> None:
    runs: list[int] = []
    app = shop(redis_url, runs)
    async with app:
        client.delete("streamlib:topics")
        client.set("streamlib:topics", "not a hash")
        with pytest.raises(Exception, match="WRONGTYPE"):
            await asyncio.wait_for(app.worker().run(asyncio.Event(), burst=True), 30)
        client.delete("streamlib:topics")


async def test_what_a_dead_worker_held_runs_in_spite_of_a_backlog(redis_url: str, client: Any) -> None:
    runs: list[int] = []
    app = shop(redis_url, runs, work_s=0.05, lease_ms=1_000)
    async with app:
        await app.topics["orders"].publish_many([Placed(n=n) for n in range(5)])
        client.xreadgroup(GROUP, "dead", {"orders": ">"}, count=5)
        await app.topics["orders"].publish_many([Placed(n=n) for n in range(100, 1_100)])
        stop = asyncio.Event()
        working = asyncio.create_task(app.worker().run(stop))
        await eventually(lambda: {0, 1, 2, 3, 4} <= set(runs), timeout=30)
        assert len(runs) < 900, "they did not wait for the end of the backlog"
        stop.set()
        assert await working == 0


async def test_retries_of_very_many_partitions_all_come_back(redis_url: str) -> None:
    runs: dict[int, int] = {}
    app = App("shop", settings=settings(redis_url))
    orders = app.topic("orders", Placed, partitions=300)

    @app.handler(orders, group=GROUP)
    async def handle(event: Placed) -> None:
        runs[event.n] = runs.get(event.n, 0) + 1
        if runs[event.n] == 1:
            raise ValueError("the first run fails")

    async with app, running(app):
        await orders.publish_many([Placed(n=n) for n in range(400)])
        await eventually(lambda: sorted(runs.values()) == [2] * 400, timeout=60)


async def test_a_group_declared_anew_keeps_its_place(redis_url: str) -> None:
    """Declaring is what every start does: it must not move a group."""
    runs: list[int] = []
    app = shop(redis_url, runs)
    async with app:
        await app.topics["orders"].publish_many([Placed(n=n) for n in range(10)])
        assert await app.worker().run(asyncio.Event(), burst=True) == 0
        await declare_group(app.redis, app.keys, app.topics["orders"].spec, GROUP, "handler", ["Placed"])
        assert await app.worker().run(asyncio.Event(), burst=True) == 0
        assert sorted(runs) == list(range(10))
