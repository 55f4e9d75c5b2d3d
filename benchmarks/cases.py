"""What is measured, one case per process: a streamlib worker, plain redis-py loops, and two ways to publish.

`benchmarks.per_event` runs it as `python -m benchmarks.cases CASE URL EVENTS`; it prints one JSON object.
"""

import asyncio
import json
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from decimal import Decimal
from typing import Any

import msgspec
import redis
import redis.asyncio
import uvloop

from benchmarks.shares import Sampler
from streamlib import App, Context, Event
from streamlib.message import Position, new_event_id
from streamlib.settings import RedisSettings, Settings, WorkerSettings

STREAM, GROUP = "orders", "email"
READ_COUNT = 100
PIPELINE = 500
WINDOW_MS = 3_600_000
NOTHING_PENDING = [0, None, None, None]


class OrderCreated(Event):
    order_id: str
    customer_id: str
    total: Decimal
    lines: list[str]


def order(number: int) -> OrderCreated:
    return OrderCreated(
        order_id=f"o-{number}",
        customer_id=f"c-{number % 1000}",
        total=Decimal(number % 10_000) / 100,
        lines=["book", "pen", "paper"],
    )


def entry(number: int) -> list[bytes]:
    """The fields of an entry as streamlib stores it; every case reads these."""
    event = order(number)
    values = (new_event_id(), "OrderCreated", "1", event.order_id)
    names = (b"id", b"type", b"v", b"key")
    fields = [part for name, value in zip(names, values, strict=True) for part in (name, value.encode())]
    return [*fields, b"data", msgspec.json.encode(event)]


# --- one worker process of streamlib


async def worker(url: str, events: int, sampler: Sampler | None) -> float:
    """Seconds from the worker's start until every event is handled and none is pending."""
    settings = Settings(redis=RedisSettings(url=url), worker=WorkerSettings(block_ms=100))
    app = App("bench", settings=settings)
    topic = app.topic(STREAM, OrderCreated, key="order_id")
    all_ran, left = asyncio.Event(), events

    @app.handler(topic, group=GROUP)
    async def handle(event: OrderCreated, ctx: Context) -> None:
        nonlocal left
        left -= 1
        if not left:
            all_ran.set()

    stop = asyncio.Event()
    async with app:
        running = asyncio.create_task(app.worker().run(stop))
        with sampler or nullcontext():
            started = time.perf_counter()
            done = asyncio.create_task(all_ran.wait())
            await asyncio.wait({done, running}, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                raise RuntimeError(f"the worker ended by itself with code {running.result()}")
            while await app.redis.execute("XPENDING", STREAM, GROUP) != NOTHING_PENDING:  # noqa: ASYNC110 - Redis knows
                await asyncio.sleep(0.001)
            seconds = time.perf_counter() - started
        stop.set()
        await running
    return seconds


# --- plain redis-py, without retries, leases, dead letters and metrics


def _client(url: str) -> redis.asyncio.Redis:
    return redis.asyncio.Redis.from_url(url, protocol=2)


def _mark(event_id: bytes) -> str:
    return f"done:{event_id.decode()}"


async def handle_plain(event: OrderCreated) -> None:
    """Does nothing, like the worker's handler."""


async def loop(url: str, events: int) -> float:
    """One round trip after another: read 100, then per event SET NX and XACK."""
    client, decoder = _client(url), msgspec.json.Decoder(OrderCreated)
    await client.xgroup_create(STREAM, GROUP, "0")
    started = time.perf_counter()
    while events:
        for entry_id, fields in await _read(client):
            event = decoder.decode(fields[b"data"])
            if await client.set(_mark(fields[b"id"]), "1", nx=True, px=WINDOW_MS):
                await handle_plain(event)
            await client.xack(STREAM, GROUP, entry_id)
            events -= 1
    seconds = time.perf_counter() - started
    await client.aclose()
    return seconds


async def loop_sync(url: str, events: int) -> float:
    """The same with redis-py's blocking client, whose round trip is cheaper."""
    client, decoder = redis.Redis.from_url(url, protocol=2), msgspec.json.Decoder(OrderCreated)
    client.xgroup_create(STREAM, GROUP, "0")
    started = time.perf_counter()
    while events:
        reply: Any = client.xreadgroup(GROUP, "c", {STREAM: ">"}, count=READ_COUNT)
        for entry_id, fields in reply[0][1]:
            event = decoder.decode(fields[b"data"])
            if client.set(_mark(fields[b"id"]), "1", nx=True, px=WINDOW_MS):
                await handle_plain(event)
            client.xack(STREAM, GROUP, entry_id)
            events -= 1
    seconds = time.perf_counter() - started
    client.close()
    return seconds


async def pipeline(url: str, events: int) -> float:
    """What a careful author writes: per batch of 100 one pipeline of SET NX, the handlers, one XACK."""
    client, decoder = _client(url), msgspec.json.Decoder(OrderCreated)
    await client.xgroup_create(STREAM, GROUP, "0")
    started = time.perf_counter()
    while events:
        batch = await _read(client)
        async with client.pipeline(transaction=False) as marks:
            for _, fields in batch:
                marks.set(_mark(fields[b"id"]), "1", nx=True, px=WINDOW_MS)
            fresh = await marks.execute()
        for (_, fields), is_new in zip(batch, fresh, strict=True):
            event = decoder.decode(fields[b"data"])
            if is_new:
                await handle_plain(event)
        await client.xack(STREAM, GROUP, *(entry_id for entry_id, _ in batch))
        events -= len(batch)
    seconds = time.perf_counter() - started
    await client.aclose()
    return seconds


async def _read(client: redis.asyncio.Redis) -> list[tuple[bytes, dict[bytes, bytes]]]:
    reply: Any = await client.xreadgroup(GROUP, "c", {STREAM: ">"}, count=READ_COUNT)
    batch: list[tuple[bytes, dict[bytes, bytes]]] = reply[0][1]
    return batch


# --- publishing


async def publish_many(url: str, events: int) -> float:
    app = App("bench", settings=Settings(redis=RedisSettings(url=url)))
    topic = app.topic(STREAM, OrderCreated, key="order_id")
    orders = [order(number) for number in range(events)]
    async with app:
        started = time.perf_counter()
        answers = await topic.publish_many(orders)
        seconds = time.perf_counter() - started
    assert all(isinstance(answer, Position) for answer in answers)
    return seconds


async def xadd(url: str, events: int) -> float:
    """Plain XADD of the same fields in pipelines of 500: encoded, with an id, without protection against resends."""
    client = _client(url)
    orders: Sequence[OrderCreated] = [order(number) for number in range(events)]
    started = time.perf_counter()
    for start in range(0, events, PIPELINE):
        async with client.pipeline(transaction=False) as batch:
            for event in orders[start : start + PIPELINE]:
                fields: dict[Any, Any] = {
                    "id": str(uuid.uuid4()), "type": "OrderCreated", "v": 1, "key": event.order_id,
                    "data": msgspec.json.encode(event),
                }  # fmt: skip
                batch.xadd(STREAM, fields)
            await batch.execute()
    seconds = time.perf_counter() - started
    await client.aclose()
    return seconds


PLAIN: dict[str, Callable[[str, int], Awaitable[float]]] = {
    "loop": loop,
    "loop_sync": loop_sync,
    "pipeline": pipeline,
    "publish_many": publish_many,
    "xadd": xadd,
}
CONSUMING = ("streamlib", "loop", "loop_sync", "pipeline")
PUBLISHING = ("publish_many", "xadd")


async def _measure(case: str, url: str, events: int, sampler: Sampler | None) -> dict[str, Any]:
    cpu = time.process_time()
    seconds = await (worker(url, events, sampler) if case == "streamlib" else PLAIN[case](url, events))
    shares = sampler.shares() if sampler else {}
    return {"case": case, "seconds": seconds, "cpu_seconds": time.process_time() - cpu, "shares": shares}


def main(case: str, url: str, events: str, how: str = "") -> None:
    sampler = Sampler() if how == "sampled" else None
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # the loop that `streamlib run` takes
        print(json.dumps(runner.run(_measure(case, url, int(events), sampler))))


if __name__ == "__main__":
    main(*sys.argv[1:])
