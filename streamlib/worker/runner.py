"""One worker process: its groups, projections and background loops, from the first read to the last ack."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

from msgspec import Struct

from streamlib.keys import Keys
from streamlib.metrics.worker import WorkerMetrics
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.failures import CLIENT_ERRORS, error_kind
from streamlib.redisio.marks import refuse_members
from streamlib.redisio.publisher import Publisher
from streamlib.settings import Settings
from streamlib.topic import TopicSpec
from streamlib.worker.answering import Answering
from streamlib.worker.burst import Burst
from streamlib.worker.handlers import GroupSpec
from streamlib.worker.inflight import InFlight
from streamlib.worker.keeper import Beat, Keeper
from streamlib.worker.later import LaterMover
from streamlib.worker.loops import end, repeat
from streamlib.worker.ownership import Ownership
from streamlib.worker.pausing import Pauses
from streamlib.worker.projection import Projection
from streamlib.worker.projector import Projector
from streamlib.worker.renewer import Renewal, Renewer
from streamlib.worker.unit import GroupUnit, Shared

logger = logging.getLogger(__name__)

EXIT_DONE, EXIT_DRAIN_TIMEOUT = 0, 7
_ASK_S = 0.25

Lifespan = Callable[[], AbstractAsyncContextManager[Mapping[str, Any]]]


class WorkerParts(Struct, frozen=True, kw_only=True):
    """What a worker is built from; the app joins it."""

    door: RedisDoor
    keys: Keys
    settings: Settings
    publisher: Publisher
    metrics: WorkerMetrics
    groups: Sequence[GroupSpec]
    projections: Sequence[Projection[Any]]
    topics: Sequence[TopicSpec]
    lifespan: Lifespan


class Worker:
    """All chosen groups of an app in one process."""

    def __init__(self, parts: WorkerParts) -> None:
        self._parts = parts
        self.worker_id = uuid.uuid4().hex[:16]
        self.consumer = f"{socket.gethostname()}-{os.getpid()}-{self.worker_id}"
        self.clean = True
        """False once a drain had to leave something behind: code that does not end, or outcomes not settled."""
        self._inflight = InFlight()
        self._pauses = Pauses(parts.door, parts.keys)
        self._ownership: Ownership | None = None
        self._units: list[GroupUnit] = []
        self._projectors: dict[str, Projector] = {}
        self._draining = False
        self._started = False
        self._beat: Beat | None = None
        self._renewals_taken = Answering()
        self._projecting: list[asyncio.Task[None]] = []
        self._keeping: list[asyncio.Task[None]] = []
        self._stop_projecting = asyncio.Event()

    async def run(self, stop: asyncio.Event, *, burst: bool = False) -> int:
        """Work until `stop` is set (with `burst`, until nothing is left), then drain.

        Returns 0, or 7 when handlers did not end within worker.drain_s. A bug in a background loop is raised after
        the drain: the process must end and be started anew. Raises DeclarationError where other workers keep the done
        marks of a group in another store.
        """
        await self._check_store()
        threads = ThreadPoolExecutor(self._threads_needed(), thread_name_prefix="streamlib-handler")
        self._parts.door.observe = self._parts.metrics.redis_command
        try:
            async with self._parts.lifespan() as state, self._renewing() as renewer:
                return await self._work(stop, burst, state, threads, renewer)
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
            self._parts.door.observe = None

    def cancel_handlers(self) -> None:
        """Stop waiting for handlers: cancel them, their events go back."""
        for unit in self._units:
            unit.cancel_handlers()

    def live(self) -> tuple[bool, str]:
        """Whether the event loop turns. Never asks Redis; callable from any thread."""
        if self._beat is None:
            return True, "starting"
        silent_s = self._beat.silent_s
        return silent_s < self._parts.settings.worker.stall_s, f"event loop silent for {silent_s:.1f} s"

    def readiness(self) -> tuple[bool, str]:
        """Whether this worker takes work now; callable from any thread."""
        if self._draining or not self._started:
            return False, "draining" if self._draining else "starting"
        within_s = self._parts.settings.worker.block_ms / 1000 + self._parts.settings.redis.timeout_s
        problems = [
            f"{unit.spec.group}: no answer from Redis"
            for unit in self._units
            if not unit.polled_within(within_s, self._renewals_taken)
        ]
        if self._renewals_taken.refuses("", within_s):
            problems.append("claims are not renewed: no answer from Redis")
        for name, projector in self._projectors.items():
            problems += [f"{name}: {problem}" for problem in projector.problems.values()]
        told = ["; ".join(problems) or "ready"]
        broken = [(unit.spec.topic.name, unit.spec.group) for unit in self._units if not unit.circuit.closed]
        for word, places in (("paused", self._pauses.all_paused), ("circuit breaker open", broken)):
            told += [f"{word}: {', '.join(map('/'.join, places))}"] if places else []
        return not problems, "; ".join(told)

    # ---------------------------------------------------------------------------------------------------------

    async def _check_store(self) -> None:
        """A partition that does not answer at once keeps no other waiting: its claims are refused for that too."""
        parts = self._parts
        asking = [
            asyncio.create_task(
                refuse_members(
                    parts.door, parts.keys.stream(spec.topic.name, number, spec.topic.partitions), spec.group
                )
            )
            for spec in (parts.groups if parts.settings.idempotency.store == "keys" else ())
            for number in range(spec.topic.partitions)
        ]
        if not asking:
            return
        try:
            answered, _ = await asyncio.wait(asking, timeout=_ASK_S)
        finally:
            for task in asking:
                task.cancel()
        for answer in await asyncio.gather(*answered, return_exceptions=True):
            if isinstance(answer, BaseException) and not isinstance(answer, CLIENT_ERRORS):
                raise answer

    def _threads_needed(self) -> int:
        default = self._parts.settings.worker.concurrency
        return 1 + sum(h.concurrency or default for g in self._parts.groups for h in g.handlers if not h.is_async)

    @asynccontextmanager
    async def _renewing(self) -> AsyncIterator[Renewer]:
        renewer = Renewer(
            self._parts.door,
            self._inflight,
            self._parts.settings.worker,
            consumer=self.consumer,
            worker_id=self.worker_id,
            window_ms=int(self._parts.settings.idempotency.window_s * 1000),
            loop=asyncio.get_running_loop(),
            on_error=self._on_error,
            owned=self._renewals,
        )
        renewer.start()
        try:
            yield renewer
        finally:
            await asyncio.to_thread(renewer.close)

    def _renewals(self) -> list[Renewal]:
        """What the renewal thread keeps beside the claims."""
        limiters = [(f"limit of {unit.spec.group}", unit.limiter) for unit in self._units]
        limits = [(name, limiter.keep) for name, limiter in limiters if limiter.active]
        return [*(self._ownership.renewals() if self._ownership is not None else ()), *limits]

    async def _work(
        self,
        stop: asyncio.Event,
        burst: bool,
        state: Mapping[str, Any],
        threads: ThreadPoolExecutor,
        renewer: Renewer,
    ) -> int:
        looking = self._until_drained() if burst else stop.wait()
        ending = asyncio.create_task(looking, name="until nothing is left" if burst else "until the stop")
        stopping = asyncio.create_task(stop.wait())
        try:
            tasks = self._start(state, threads, renewer)
            finished, _ = await asyncio.wait({*tasks, ending, stopping}, return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            await self._drain(0.0)
            raise
        finally:
            ending.cancel()
            stopping.cancel()
        clean = await self._drain(self._parts.settings.worker.drain_s)
        if ending in finished:
            ending.result()  # looking at the backlog may have failed
        self._raise_bug(finished - {ending, stopping})
        return EXIT_DONE if clean else EXIT_DRAIN_TIMEOUT

    def _start(
        self, state: Mapping[str, Any], threads: ThreadPoolExecutor, renewer: Renewer
    ) -> list[asyncio.Task[None]]:
        """Start every loop; none of them ends by itself but through a bug."""
        parts = self._parts
        ownership = self._ownership = Ownership(
            parts.door, parts.keys, parts.settings.worker, worker_id=self.worker_id, metrics=parts.metrics
        )
        shared = self._shared(state, threads, ownership)
        self._units = [GroupUnit(spec, shared) for spec in parts.groups]
        self._projectors = {one.name: self._projector(one, ownership) for one in parts.projections}
        self._renewals_taken = renewer.answering
        self._beat = Beat(renewer.beat, parts.metrics.loop_lag)
        parts.metrics.concurrency_limit(parts.settings.worker.concurrency)
        working = [task for unit in self._units for task in unit.start()]
        self._projecting = [
            asyncio.create_task(projector.run(self._stop_projecting), name=f"projector {name}")
            for name, projector in self._projectors.items()
        ]
        self._keeping = self._keep(self._beat, ownership)
        self._started = True
        parts.metrics.ready(True)
        logger.info("worker_started", extra={"worker": self.consumer, "groups": self._names()})
        return [*working, *self._projecting, *self._keeping]

    async def _drain(self, drain_s: float) -> bool:
        self._draining = True
        self._parts.metrics.ready(False)
        started = time.monotonic()
        logger.info("worker_draining", extra={"worker": self.consumer, "inflight": len(self._inflight)})
        self._stop_projecting.set()
        if self._ownership is not None:
            self._ownership.drain()
        drained = await asyncio.gather(*(unit.drain(drain_s) for unit in self._units))
        drained.append(await end(self._projecting, grace_s=drain_s + self._parts.settings.redis.timeout_s))
        drained.append(await end(self._keeping))
        if self._ownership is not None:
            await self._ownership.leave()
        drained.append(len(self._inflight) == 0)
        seconds = round(time.monotonic() - started, 3)
        logger.info("worker_stopped", extra={"worker": self.consumer, "clean": all(drained), "seconds": seconds})
        self.clean = all(drained)
        return self.clean

    def _raise_bug(self, finished: set[asyncio.Task[Any]]) -> None:
        for task in finished:
            error = None if task.cancelled() else task.exception()
            logger.critical("background_loop_ended", extra={"loop": task.get_name(), "error": repr(error)})
            if error is not None:
                raise error
            raise RuntimeError(f"{task.get_name()} ended by itself")

    def _shared(self, state: Mapping[str, Any], threads: ThreadPoolExecutor, ownership: Ownership) -> Shared:
        return Shared(
            door=self._parts.door,
            keys=self._parts.keys,
            settings=self._parts.settings,
            publisher=self._parts.publisher,
            metrics=self._parts.metrics,
            inflight=self._inflight,
            threads=threads,
            worker_id=self.worker_id,
            consumer=self.consumer,
            one_suspect=asyncio.Lock(),
            state=state,
            on_error=self._on_error,
            pauses=self._pauses,
            ownership=ownership,
        )

    def _projector(self, projection: Projection[Any], ownership: Ownership) -> Projector:
        parts, topic = self._parts, projection.topic.name
        metrics, gate = partial(parts.metrics.group, topic), partial(self._pauses.gate, topic)
        return Projector(projection, parts.door, parts.keys, parts.settings, ownership, metrics, gate)

    def _keep(self, beat: Beat, ownership: Ownership) -> list[asyncio.Task[None]]:
        topics: dict[str, TopicSpec] = {unit.spec.topic.name: unit.spec.topic for unit in self._units}
        topics |= {projection.topic.name: projection.topic for projection in self._parts.projections}
        keeper = Keeper(
            self._parts.door,
            self._parts.keys,
            self._parts.settings,
            self._units,
            list(topics.values()),
            self._parts.metrics.backlog,
        )
        steps = [
            keeper.refresh_gauges,
            keeper.trim,
            keeper.sweep,
            beat.run_once,
            self._pauses.run_once,
            ownership.run_once,
        ]
        movers = [
            LaterMover(
                self._parts.door,
                self._parts.keys.stream(topic.name, number, topic.partitions),
                partial(ownership.leads, topic, number),
            )
            for topic in self._parts.topics
            for number in range(topic.partitions)
        ]
        loops = [(step.__qualname__, step) for step in steps]
        loops += [(f"delayed events of {mover.stream}", mover.run_once) for mover in movers]
        return [
            asyncio.create_task(repeat(name, step, heal=_nothing_to_heal, on_error=self._on_error), name=name)
            for name, step in loops
        ]

    async def _until_drained(self) -> None:
        parts = self._parts
        await Burst(parts.door, parts.keys, self._units, self._projectors, self._pauses).run()

    def _names(self) -> list[str]:
        groups = [f"{spec.topic.name}/{spec.group}" for spec in self._parts.groups]
        return groups + [f"{p.topic.name}/{p.name}" for p in self._parts.projections]

    def _on_error(self, kind: str, error: Exception) -> None:
        self._parts.metrics.redis_error(error_kind(error))


async def _nothing_to_heal() -> None:
    """House-keeping waits until a group has been healed by its own unit."""
