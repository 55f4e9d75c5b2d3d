"""Everything that runs for one group in one process: intake, consumer, lanes, settling."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import Executor as Threads
from typing import Any

from msgspec import Struct

from streamlib.keys import Keys
from streamlib.metrics.worker import WorkerMetrics
from streamlib.redisio import consumers, registry
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.failures import CLIENT_ERRORS
from streamlib.redisio.marks import Marks
from streamlib.redisio.publisher import Publisher
from streamlib.settings import Settings
from streamlib.worker.answering import Answering
from streamlib.worker.circuit import Circuit
from streamlib.worker.consumer import Consumer
from streamlib.worker.executor import Executor
from streamlib.worker.handlers import GroupSpec, HandlerSpec
from streamlib.worker.inflight import InFlight
from streamlib.worker.intake import Intake
from streamlib.worker.lanes import Lanes
from streamlib.worker.limiter import Limiter
from streamlib.worker.loops import end, repeat
from streamlib.worker.outcomes import Outcomes
from streamlib.worker.owned_intake import OwnedIntake
from streamlib.worker.ownership import Ownership
from streamlib.worker.parts import Parts
from streamlib.worker.pausing import Pauses
from streamlib.worker.settling import Settling
from streamlib.worker.shared_intake import SharedIntake
from streamlib.worker.work import Group

_FLUSH_S = 5.0
_RELEASE_S = 2.0


class Shared(Struct, frozen=True, kw_only=True):
    """What all groups of a process share."""

    door: RedisDoor
    keys: Keys
    settings: Settings
    publisher: Publisher
    metrics: WorkerMetrics
    inflight: InFlight
    threads: Threads
    worker_id: str
    consumer: str
    one_suspect: asyncio.Lock
    state: Mapping[str, Any]
    on_error: Callable[[str, Exception], None]
    pauses: Pauses
    ownership: Ownership


class GroupUnit:
    """One group of one topic at work."""

    def __init__(self, spec: GroupSpec, shared: Shared) -> None:
        self.spec = spec
        self._shared = shared
        topic, settings = spec.topic, shared.settings
        self.partitions = [
            shared.keys.stream(topic.name, number, topic.partitions) for number in range(topic.partitions)
        ]
        self._metrics = shared.metrics.group(topic.name, spec.group)
        self._gate = shared.pauses.gate(topic.name, spec.group)
        group = Group(
            topic=topic.name,
            group=spec.group,
            worker_id=shared.worker_id,
            consumer=shared.consumer,
            window_ms=int(settings.idempotency.window_s * 1000),
            marks=Marks() if settings.idempotency.store == "compact" else None,
            halts=spec.on_dead == "block",
        )
        self.intake: Intake = self._make_intake(group)
        self._settling = Settling(
            shared.door,
            group,
            shared.inflight,
            self._metrics,
            lease_ms=settings.worker.lease_ms,
            on_error=shared.on_error,
            on_settled=self.intake.settled,
            on_fenced=self.intake.fenced,
        )
        rng = random.Random()
        self.circuit = Circuit(spec.breaker, self._gate, group, self._metrics, rng)
        self._executor = Executor(
            topic, group, shared.publisher, shared.state, shared.threads, Outcomes(group, rng, self.circuit)
        )
        self.limiter = Limiter(
            shared.door,
            shared.keys.limit(topic.name, spec.group),
            spec.limits,
            worker_id=shared.worker_id,
            lease_ms=settings.worker.lease_ms,
            metrics=self._metrics,
        )
        self.consumer = Consumer(self._parts(group), self._lanes_for, self.intake.inbox)
        self.intake.attach(self.consumer)
        self._reading: list[asyncio.Task[None]] = []
        self._admitting: list[asyncio.Task[None]] = []
        self._settling_task: list[asyncio.Task[None]] = []
        self._limiting: list[asyncio.Task[None]] = []
        self._suspecting: list[asyncio.Task[None]] = []

    def _make_intake(self, group: Group) -> Intake:
        spec, shared, settings = self.spec, self._shared, self._shared.settings.worker
        payload_bytes = shared.settings.limits.payload_bytes
        if not spec.ordered:
            shared.ownership.appear(spec.topic.name, spec.group)
            return SharedIntake(
                spec, shared.consumer, shared.door, self.partitions,
                settings=settings, payload_bytes=payload_bytes, gate=self._gate, metrics=self._metrics,
            )  # fmt: skip
        shares = shared.ownership.shares(spec.topic, spec.group, spec.kind)
        return OwnedIntake(
            spec, group, shared.door, self.partitions, shares,
            settings=settings, payload_bytes=payload_bytes, gate=self._gate, metrics=self._metrics,
        )  # fmt: skip

    def _parts(self, group: Group) -> Parts:
        shared = self._shared
        return Parts(
            spec=self.spec,
            group=group,
            door=shared.door,
            settings=shared.settings.worker,
            payload_bytes=shared.settings.limits.payload_bytes,
            inflight=shared.inflight,
            settling=self._settling,
            metrics=self._metrics,
            on_error=shared.on_error,
            live_types=self._live_types,
            limiter=self.limiter,
            circuit=self.circuit,
            gate=self._gate,
            on_fenced=self.intake.fenced,
        )

    async def _live_types(self) -> frozenset[str]:
        """The types that the live workers of this group handle, as registered now."""
        door, keys, spec = self._shared.door, self._shared.keys, self.spec

        async def ask() -> frozenset[str]:
            return await registry.live_types(door, keys, spec.topic.name, spec.group, registry.TYPES_LIVE_S)

        return await door.persist(ask, give_up_s=None, on_error=self._shared.on_error)

    def _lanes_for(self, handler: HandlerSpec, **hooks: Any) -> Lanes:
        worker = self._shared.settings.worker
        return Lanes(
            handler,
            self._executor,
            concurrency=handler.concurrency or worker.concurrency,
            batch=worker.batch,
            may_start=self.intake.may_start if self.spec.ordered else None,
            **hooks,
        )

    def start(self) -> list[asyncio.Task[None]]:
        """Start the loops; none of them ends by itself but through a bug."""
        self.consumer.start()
        name = f"{self.spec.topic.name}/{self.spec.group}"
        spawn = asyncio.get_running_loop().create_task
        self._reading = self.intake.start(self._loop)
        self._admitting = [spawn(self.consumer.run(), name=f"consumer {name}")]
        self._settling_task = [spawn(self._settling.run(), name=f"settling {name}")]
        self._suspecting = [spawn(self.consumer.suspects.run(self._shared.one_suspect), name=f"suspects {name}")]
        if self.limiter.active:
            limiting = self._loop("limiter", self.limiter.run_once, bool)
            self._limiting = [spawn(limiting, name=f"limiter {name}")]
        return [*self._reading, *self._admitting, *self._settling_task, *self._suspecting, *self._limiting]

    def _loop(
        self, name: str, step: Callable[[], Awaitable[float]], stopping: Callable[[], bool]
    ) -> Coroutine[Any, Any, None]:
        return repeat(name, step, heal=self._heal, on_error=self._shared.on_error, stopping=stopping)

    async def _heal(self) -> None:
        """The group or its stream is gone: make them again where they were, and say so."""
        shared, topic = self._shared, self.spec.topic
        restoring = (
            registry.restore_group(shared.door, shared.keys, topic, self.spec.group, partition, self.spec.kind)
            for partition in range(topic.partitions)
        )
        answers = await asyncio.gather(*restoring, return_exceptions=True)  # one out of reach must not stop the others
        await registry.declare_group(
            shared.door, shared.keys, topic, self.spec.group, self.spec.kind, self.spec.type_names
        )
        self._metrics.stream_lost()
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer

    def polled_within(self, seconds: float, renewals: Answering | None = None) -> bool:
        """Whether this group gets work of some partition: Redis answered a read lately, or we do not want to read, and
        takes what it does."""
        if self._shared.pauses.paused(self.spec.topic.name, self.spec.group):
            return True
        asked = [self._settling.answering, *([renewals] if renewals is not None else [])]
        numbered = [(number, keys.stream) for number, keys in enumerate(self.partitions)]
        silent = frozenset(n for n, stream in numbered if any(one.refuses(stream, seconds) for one in asked))
        heard = frozenset(n for n, stream in numbered if any(one.takes(stream, seconds) for one in asked))
        reads = self.circuit.open or self.intake.polled_within(seconds, silent, heard)
        return reads and len(silent) < len(numbered)

    def cancel_handlers(self) -> None:
        self.consumer.cancel_handlers()

    async def drain(self, timeout_s: float) -> bool:
        """Stop reading, hand back what did not start, let the rest end, settle it, leave. False if time ran out."""
        deadline = time.monotonic() + timeout_s
        self.consumer.stop_admitting()
        self.circuit.stop()
        await self.intake.stop()
        await end(self._admitting, grace_s=_FLUSH_S)
        await end(self._suspecting)
        self.consumer.stop()
        clean = await self.consumer.finish(max(deadline - time.monotonic(), 0.0))
        try:
            await asyncio.wait_for(self._settling.flush(), _FLUSH_S)
        except TimeoutError:
            clean = False
        clean &= await self.intake.leave(_RELEASE_S)
        self.consumer.close()
        await end(self._limiting)
        await self.limiter.close()
        clean &= await end(self._settling_task)
        await self._leave()
        return clean

    async def _leave(self) -> None:
        """Remove our consumer, unless something of it is still pending."""
        shared, group = self._shared, self.spec.group
        for keys in self.partitions:
            for stream in (keys.stream, keys.again(group)):
                try:
                    await consumers.remove(shared.door, stream, group, shared.consumer)
                except CLIENT_ERRORS as error:
                    shared.on_error("leave", error)
                    return
