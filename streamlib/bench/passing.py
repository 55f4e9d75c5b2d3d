"""One consumer on a topic of its own: events in bulk are published and drained, then come some one by one; checked."""

from __future__ import annotations

import asyncio
import time

from msgspec import Struct

from streamlib.app import App
from streamlib.bench.checks import wrong
from streamlib.bench.clock import Clock, Latencies, Size
from streamlib.bench.consumers import CONSUMERS, GROUP
from streamlib.bench.events import OrderCreated, order
from streamlib.bench.figures import Figures, quantile
from streamlib.errors import PublishError, StreamlibError
from streamlib.keys import Keys
from streamlib.ops.scratch import expire, remove
from streamlib.producer import Topic
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.counting import Counter, counting_door, server_cpu_s
from streamlib.settings import Settings

TOPIC = "orders"
PACED_PER_S = 200
_STUCK_S = 30.0
_LOOK_S = 0.01


class Passed(Struct, frozen=True):
    """What was measured, and what is wrong with the result."""

    publishing: Figures
    consuming: Figures
    problems: list[str]


class Pass:
    """`redis` asks and cleans up and is not counted; what is measured has a door of its own, under `settings`, whose
    namespace is the scratch namespace `keys`."""

    def __init__(self, redis: RedisDoor, keys: Keys, settings: Settings, size: Size) -> None:
        self._redis = redis
        self._keys = keys
        self._settings = settings
        self._size = size
        self._counter = Counter()
        self._clock = Clock(size, self._counter)
        self._latencies = Latencies(size.paced)
        self._stream = keys.stream(TOPIC, 0, 1)
        self._server = redis.lane(self._stream.stream)

    async def run(self, case: str) -> Passed:
        """Leaves nothing behind when the result is right. Raises StreamlibError when nothing moves any more, and what
        ends the consumer."""
        app = App("bench", settings=self._settings)
        topic = app.topic(TOPIC, OrderCreated, key="order_id")
        app.handler(topic, group=GROUP)(self._handle)
        await app.open(counting_door(self._settings.redis, self._counter))
        try:
            publishing = await self._publish(topic)
            await expire(self._redis, self._keys)
            consuming = await self._consume(app, topic, case)
        finally:
            await app.close()
            await self._server.close()
        handled = self._clock.handled + len(self._latencies.ms)
        problems = await wrong(self._redis, self._stream, GROUP, handled=handled, total=self._size.total)
        if not problems:
            await remove(self._redis, self._keys)
        return Passed(publishing, consuming, problems)

    async def _handle(self, event: OrderCreated) -> None:
        if event.sent_ns:
            self._latencies.started(event.sent_ns)
        else:
            self._clock.tick()

    async def _publish(self, topic: Topic) -> Figures:
        events, count = [order(number) for number in range(self._size.backlog)], self._size.backlog
        server_s, commands = await server_cpu_s(self._server), self._counter.commands
        started_s, cpu_s = time.perf_counter(), time.process_time()
        answers = await topic.publish_many(events)
        seconds, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
        for answer in answers:
            if isinstance(answer, PublishError):
                raise answer
        return {
            "events_per_second": count / seconds,
            "client_us": cpu_s / count * 1e6,
            "commands_per_1000": (self._counter.commands - commands) / count * 1000,
            **await self._server_us(server_s, count),
        }

    async def _consume(self, app: App, topic: Topic, case: str) -> Figures:
        server_s = await server_cpu_s(self._server)
        stop = asyncio.Event()
        running = asyncio.ensure_future(CONSUMERS[case](app, self._stream, self._handle, stop))
        try:
            await self._until_settled(self._clock.finished, running)
            drained = self._clock.figures() | await self._server_us(server_s, self._size.backlog)
            await expire(self._redis, self._keys)  # the worker has joined the register by now
            await asyncio.gather(*(_publish_at(topic, number) for number in range(self._size.paced)))
            await self._until_settled(self._latencies.complete, running)
        finally:
            stop.set()
            await running
        ms = self._latencies.ms
        return drained | {"p50_ms": quantile(ms, 0.5), "p99_ms": quantile(ms, 0.99)}

    async def _server_us(self, before_s: float | None, count: int) -> Figures:
        after_s = await server_cpu_s(self._server)
        return {} if before_s is None or after_s is None else {"server_us": (after_s - before_s) / count * 1e6}

    async def _until_settled(self, handled: asyncio.Event, running: asyncio.Future[None]) -> None:
        """Until all is handled and nothing is pending. Redis is not asked before, so that nothing is measured too."""
        moved_s, last = time.monotonic(), -1
        while not (handled.is_set() and await self._pending() == 0):
            if running.done():
                running.result()
                raise StreamlibError("the worker ended by itself before all events were handled")
            now = self._clock.handled + len(self._latencies.ms)
            if now != last:
                moved_s, last = time.monotonic(), now
            elif time.monotonic() - moved_s > _STUCK_S:
                raise StreamlibError(
                    f"nothing has moved for {_STUCK_S:g} s: {now:,} of {self._size.total:,} events handled, "
                    f"{await self._pending():,} of them not acknowledged; with -v the worker says what it waits for"
                )
            await asyncio.sleep(_LOOK_S)

    async def _pending(self) -> int:
        count: int = (await self._redis.execute("XPENDING", self._stream.stream, GROUP))[0]
        return count


async def _publish_at(topic: Topic, number: int) -> None:
    await asyncio.sleep(number / PACED_PER_S)
    await topic.publish(order(number, sent_ns=time.monotonic_ns()))
