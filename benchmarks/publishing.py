"""Publishing: in bulk, by a thousand coroutines at once, and one awaited call after another."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
import redis
import redis.asyncio

from benchmarks.case import Case, Figures, Run, Size, nothing
from benchmarks.checks import published
from benchmarks.clock import asked, server_cpu_s
from benchmarks.payload import CHUNK, STREAM, OrderCreated, order
from benchmarks.working import opened_app
from streamlib import Position, Topic
from streamlib.message import new_event_id

COROUTINES = 1000
CONNECTIONS = 50


async def measured(url: str, events: int, work: Callable[[], Awaitable[int]]) -> Run:
    """Figures of publishing `events`; `work` returns how many were confirmed."""
    with redis.Redis.from_url(url, protocol=2) as client:
        before = asked(client)
        started_s, cpu_s = time.perf_counter(), time.process_time()
        confirmed = await work()
        seconds, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
        after = asked(client)
    figures: Figures = {
        "events_per_s": events / seconds,
        "cpu_us": cpu_s / events * 1e6,
        "server_us": (server_cpu_s(after) - server_cpu_s(before)) / events * 1e6,
    }
    return Run(figures, confirmed)


# --- streamlib


async def publish_many(url: str, size: Size) -> Run:
    async def work(topic: Topic, orders: Sequence[OrderCreated]) -> int:
        answers = await topic.publish_many(orders)
        return sum(isinstance(answer, Position) for answer in answers)

    return await _publishing(url, size, work)


async def publish_awaited(url: str, size: Size) -> Run:
    async def work(topic: Topic, orders: Sequence[OrderCreated]) -> int:
        async def publish_some(some: Sequence[OrderCreated]) -> int:
            return len([await topic.publish(one) for one in some])

        return sum(await asyncio.gather(*(publish_some(orders[n::COROUTINES]) for n in range(COROUTINES))))

    return await _publishing(url, size, work)


async def publish_one(url: str, size: Size) -> Run:
    async def work(topic: Topic, orders: Sequence[OrderCreated]) -> int:
        return len([await topic.publish(one) for one in orders])

    return await _publishing(url, size, work)


async def _publishing(url: str, size: Size, work: Callable[[Topic, Sequence[OrderCreated]], Awaitable[int]]) -> Run:
    app, topic = opened_app(url)
    orders = [order(number) for number in range(size.events)]
    async with app:
        return await measured(url, size.events, lambda: work(topic, orders))


# --- redis-py, without protection against resends or a full topic


async def raw_pipeline(url: str, size: Size) -> Run:
    async def work(client: redis.asyncio.Redis, orders: Sequence[OrderCreated]) -> int:
        confirmed = 0
        for start in range(0, len(orders), CHUNK):
            async with client.pipeline(transaction=False) as batch:
                for event in orders[start : start + CHUNK]:
                    batch.xadd(STREAM, fields_of(event))
                confirmed += len(await batch.execute())
        return confirmed

    return await _adding(url, size, work)


async def raw_awaited(url: str, size: Size) -> Run:
    async def work(client: redis.asyncio.Redis, orders: Sequence[OrderCreated]) -> int:
        async def add_some(some: Sequence[OrderCreated]) -> int:
            return len([await client.xadd(STREAM, fields_of(one)) for one in some])

        return sum(await asyncio.gather(*(add_some(orders[n::COROUTINES]) for n in range(COROUTINES))))

    return await _adding(url, size, work)


async def raw_xadd(url: str, size: Size) -> Run:
    async def work(client: redis.asyncio.Redis, orders: Sequence[OrderCreated]) -> int:
        return len([await client.xadd(STREAM, fields_of(one)) for one in orders])

    return await _adding(url, size, work)


def fields_of(event: OrderCreated) -> dict[Any, Any]:
    return {
        "id": new_event_id(), "type": "OrderCreated", "v": 1, "key": event.order_id, "data": msgspec.json.encode(event),
    }  # fmt: skip


async def _adding(
    url: str, size: Size, work: Callable[[redis.asyncio.Redis, Sequence[OrderCreated]], Awaitable[int]]
) -> Run:
    pool = redis.asyncio.BlockingConnectionPool.from_url(url, protocol=2, max_connections=CONNECTIONS, timeout=None)
    client = redis.asyncio.Redis.from_pool(pool)
    orders = [order(number) for number in range(size.events)]
    await client.ping()
    run = await measured(url, size.events, lambda: work(client, orders))
    await client.aclose()
    return run


CASES = [
    Case("raw_pipeline", "redis-py: XADD in pipelines of 500", raw_pipeline, published, nothing),
    Case(
        "publish_many", "typed events, stored once however often sent", publish_many, published, nothing, "raw_pipeline"
    ),
    Case("raw_awaited", "redis-py: a thousand coroutines await XADD", raw_awaited, published, nothing),
    Case("publish_awaited", "a thousand coroutines await publish", publish_awaited, published, nothing, "raw_awaited"),
    Case("raw_xadd", "redis-py: one awaited XADD after another", raw_xadd, published, nothing),
    Case("publish_one", "one awaited publish after another", publish_one, published, nothing, "raw_xadd"),
]
