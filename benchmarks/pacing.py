"""Events that come one at a time: how long one waits, and what a worker does while none come."""

import asyncio
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import redis

from benchmarks import checks
from benchmarks.case import Case, Figures, Run, Size, nothing
from benchmarks.clock import asked, server_cpu_s
from benchmarks.loops import Loop, opened
from benchmarks.payload import GROUP, STREAM, OrderCreated
from benchmarks.working import opened_app
from streamlib import App, Context, Event
from streamlib.settings import RedisSettings, Settings

ROOT = Path(__file__).parents[1]
PER_SECOND = 1000
MOST = 5_000
WATCHED = 2_000
WARM = 500
SETTLE_S, IDLE_S = 3.0, 10.0


class Timed(Event):
    sent_ns: int


class Latencies:
    """Milliseconds from sending to the handler's start."""

    def __init__(self) -> None:
        self.starts_ms: list[float] = []

    def started(self, event: Timed) -> None:
        self.starts_ms.append((time.monotonic_ns() - event.sent_ns) / 1e6)


async def latency_raw(url: str, size: Size) -> Run:
    latencies, loop, decoder = Latencies(), Loop(await opened(url)), msgspec.json.Decoder(Timed)

    async def consume() -> None:
        while True:
            if entries := await loop.read():
                keys, entries = await loop.claim(entries)
                for _, fields in entries:
                    latencies.started(decoder.decode(fields[b"data"]))
                await loop.settle(keys, entries)

    consuming = asyncio.create_task(consume())
    run = await _paced(url, size, latencies, consuming)
    consuming.cancel()
    await asyncio.wait({consuming})
    await loop.close()
    return run


async def latency_worker(url: str, size: Size) -> Run:
    app, latencies, stop = App("bench", settings=Settings(redis=RedisSettings(url=url))), Latencies(), asyncio.Event()
    topic = app.topic(STREAM, Timed)

    @app.handler(topic, group=GROUP)
    async def handle(event: Timed, ctx: Context) -> None:
        latencies.started(event)

    async with app:
        running = asyncio.create_task(app.worker().run(stop))
        run = await _paced(url, size, latencies, running)
        stop.set()
        await running
    return run


async def _paced(url: str, size: Size, latencies: Latencies, consuming: "asyncio.Task[object]") -> Run:
    """Starts are timed with nothing beside them; acks afterwards, under MONITOR, which costs the server something."""
    count = min(size.events, MOST)
    cpu_s = time.process_time()
    await _pace(url, WARM + count)
    await _until(lambda: len(latencies.starts_ms) >= WARM + count, consuming)
    cpu_s = time.process_time() - cpu_s
    starts_ms = latencies.starts_ms[WARM:]
    acks_ms = json.loads(await _pace(url, WATCHED, "watch"))[WARM:]
    figures = {
        "cpu_us": cpu_s / (WARM + count) * 1e6,
        "start_p50_ms": quantile(starts_ms, 0.5),
        "start_p99_ms": quantile(starts_ms, 0.99),
        "ack_p50_ms": quantile(acks_ms, 0.5),
        "ack_p99_ms": quantile(acks_ms, 0.99),
    }
    return Run(figures, len(latencies.starts_ms))


async def _pace(url: str, count: int, how: str = "") -> bytes:
    words = [sys.executable, "-m", "benchmarks.pacer", url, str(count), str(PER_SECOND), how]
    pacer = await asyncio.create_subprocess_exec(*words, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    told, _ = await pacer.communicate()
    if pacer.returncode:
        raise RuntimeError(f"the pacer ended with code {pacer.returncode}")
    return told


async def _until(reached: Callable[[], bool], working: "asyncio.Task[object]") -> None:
    while not reached():
        if working.done():
            raise RuntimeError(f"the consumer ended by itself: {working!r}")
        await asyncio.sleep(0.01)


def quantile(values: list[float], part: float) -> float:
    """The smallest value that at least this part of the values does not exceed."""
    ordered = sorted(values)
    return ordered[max(-int(-part * len(ordered) // 1) - 1, 0)]


def paced_events_are_settled(client: redis.Redis, size: Size, run: Run) -> list[str]:
    return checks.settled(client, run, WARM + min(size.events, MOST) + WATCHED)


# --- nothing to do


async def idle(url: str, size: Size) -> Run:
    """What a worker of one group sends while no event comes, by command; those inside scripts count too."""
    app, topic = opened_app(url)
    stop = asyncio.Event()

    @app.handler(topic, group=GROUP)
    async def handle(event: OrderCreated, ctx: Context) -> None: ...

    async with app:
        running = asyncio.create_task(app.worker().run(stop))
        await asyncio.sleep(SETTLE_S)
        with redis.Redis.from_url(url, protocol=2) as client:
            before, cpu_s, started_s = asked(client), time.process_time(), time.perf_counter()
            await asyncio.sleep(IDLE_S)
            after, cpu_s, seconds = asked(client), time.process_time() - cpu_s, time.perf_counter() - started_s
        stop.set()
        await running
    calls = {name[8:]: stats["calls"] for name, stats in after.items() if name.startswith("cmdstat_")}
    calls = {name: count - before.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name, count in calls.items()}
    del calls["info"]
    figures: Figures = {
        "commands_per_s": sum(calls.values()) / seconds,
        "cpu_ms_per_s": cpu_s / seconds * 1000,
        "server_cpu_ms_per_s": (server_cpu_s(after) - server_cpu_s(before)) / seconds * 1000,
        **{f"{name}_per_s": count / seconds for name, count in sorted(calls.items()) if count},
    }
    return Run(figures, 0)


def nothing_happened(client: redis.Redis, size: Size, run: Run) -> list[str]:
    return checks.counted("entries in the stream", client.xlen(STREAM), 0)


CASES = [
    Case(
        "latency_raw",
        f"raw_claimed at {PER_SECOND:,} events per second: ms from sending to start, from XADD to XACK",
        latency_raw,
        paced_events_are_settled,
        nothing,
    ),
    Case("latency_worker", "a worker at that pace", latency_worker, paced_events_are_settled, nothing, "latency_raw"),
    Case("idle", "what a worker sends while no event comes, per second", idle, nothing_happened, nothing),
]
