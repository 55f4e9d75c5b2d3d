"""One worker process of streamlib with default settings: every guarantee, metrics, renewal, reclaim and retry loops."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.case import Case, Run, Size
from benchmarks.clock import Clock
from benchmarks.loops import all_settled, filled
from benchmarks.payload import GROUP, STREAM, OrderCreated
from streamlib import App, BatchContext, Context, Topic
from streamlib.settings import RedisSettings, Settings

POLL_S = 0.002


def opened_app(url: str, *, partitions: int = 1) -> tuple[App, Topic]:
    """An app with the topic that every case is about."""
    app = App("bench", settings=Settings(redis=RedisSettings(url=url)))
    return app, app.topic(STREAM, OrderCreated, key="order_id", partitions=partitions)


async def drain(app: App, finished: asyncio.Event, acknowledged: Callable[[], Any]) -> None:
    """Runs a worker of the app until `finished`, and until `acknowledged` (a coroutine function) says so."""
    stop = asyncio.Event()
    running = asyncio.create_task(app.worker().run(stop))
    done = asyncio.create_task(finished.wait())
    await asyncio.wait({done, running}, return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        raise RuntimeError(f"the worker ended by itself with code {running.result()}")
    while not await acknowledged():  # noqa: ASYNC110 - Redis knows
        await asyncio.sleep(POLL_S)
    stop.set()
    await running


async def drain_groups(app: App, clock: Clock, streams: Sequence[str], groups: Sequence[str]) -> Run:
    """Opens the app and runs a worker until nothing is pending in any of the groups."""

    async def acknowledged() -> bool:
        return not any(
            [(await app.redis.execute("XPENDING", stream, group))[0] for stream in streams for group in groups]
        )

    async with app:
        await drain(app, clock.finished, acknowledged)
    return clock.run()


async def worker(url: str, size: Size) -> Run:
    (app, topic), clock = opened_app(url), Clock(url, size)

    @app.handler(topic, group=GROUP)
    async def handle(event: OrderCreated, ctx: Context) -> None:
        clock.tick()

    return await drain_groups(app, clock, [STREAM], [GROUP])


async def worker_awaits(url: str, size: Size) -> Run:
    (app, topic), clock = opened_app(url), Clock(url, size)

    @app.handler(topic, group=GROUP)
    async def handle(event: OrderCreated, ctx: Context) -> None:
        await asyncio.sleep(0)
        clock.tick()

    return await drain_groups(app, clock, [STREAM], [GROUP])


async def worker_sync(url: str, size: Size) -> Run:
    (app, topic), clock = opened_app(url), Clock(url, size)

    @app.handler(topic, group=GROUP)
    def handle(event: OrderCreated, ctx: Context) -> None:
        clock.tick()

    return await drain_groups(app, clock, [STREAM], [GROUP])


async def worker_batch(url: str, size: Size) -> Run:
    (app, topic), clock = opened_app(url), Clock(url, size)

    @app.handler(topic, group=GROUP)
    async def handle(events: list[OrderCreated], ctx: BatchContext) -> None:
        clock.tick_many(len(events))

    return await drain_groups(app, clock, [STREAM], [GROUP])


CASES = [
    Case("worker", "an async handler that does nothing", worker, all_settled, filled, base="raw_claimed"),
    Case("worker_awaits", "one that awaits sleep(0)", worker_awaits, all_settled, filled, base="raw_claimed"),
    Case("worker_sync", "a plain function, run in threads", worker_sync, all_settled, filled, base="raw_claimed"),
    Case("worker_batch", "a batch handler, with idempotency", worker_batch, all_settled, filled, base="raw_claimed"),
]
