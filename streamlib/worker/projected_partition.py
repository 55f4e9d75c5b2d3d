"""One partition of a projection in one worker: standby, owner, reader, committer, and standby again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from enum import Enum
from functools import partial
from typing import Any, TypeVar

from streamlib.errors import RedisError
from streamlib.keys import Keys
from streamlib.message import entry_order
from streamlib.metrics.worker import GroupMetrics
from streamlib.redisio.commits import MAX_BYTES, MAX_EVENTS, Verdict
from streamlib.redisio.connection import Lane, RedisDoor
from streamlib.redisio.failures import CLIENT_ERRORS
from streamlib.redisio.indexes import ViewKeys
from streamlib.redisio.registry import last_id, live_types
from streamlib.redisio.view_state import (
    ROLLED_BACK,
    ViewHead,
    declare_view,
    live_generation,
    mark_halted,
    read_entries,
    view_head,
)
from streamlib.settings import Settings
from streamlib.worker.applying import Applier
from streamlib.worker.folding import Folder, RawEntry, Stop
from streamlib.worker.loops import NEVER, Never, cancel, first_set, unless
from streamlib.worker.ownership import Shares
from streamlib.worker.pausing import Gate
from streamlib.worker.projection import Projection

T = TypeVar("T")

log = logging.getLogger(__name__)

TYPES_LIVE_S = 600.0
_LOOK_S = 1.0


class Leave(Enum):
    """Why an owner stops projecting."""

    STOP = "stop"
    SHARE = "share"  # another worker is to have it
    FENCED = "fenced"
    HALTED = "halted"
    AWAY = "away"  # only another worker can read what comes next
    RELOAD = "reload"  # the view is not where we thought: look again


class ProjectedPartition:
    """Projects one partition while this process owns it; `halted` says why it stands still."""

    def __init__(
        self,
        projection: Projection[Any],
        partition: int,
        redis: RedisDoor,
        keys: Keys,
        settings: Settings,
        shares: Shares,
        metrics: GroupMetrics,
        gate: Gate | None = None,
    ) -> None:
        self.partition = partition
        self.lease = shares.partition(partition)
        self.halted = ""
        self._at_end = False
        self._projection = projection
        self._redis = redis
        self._keys = keys
        self._stream = keys.stream(projection.topic.name, partition, projection.topic.partitions)
        self._settings = settings.worker
        self._window_ms = int(settings.idempotency.window_s * 1000)
        self._shares = shares
        self._metrics = metrics
        self._gate = gate or Gate()
        self._generation = 0
        self._checkpoint = "0-0"
        self._away_before = ""
        self._moved = asyncio.Event()
        self._count = MAX_EVENTS
        self._fields = {"projection": projection.name, "topic": projection.topic.name, "partition": partition}

    @property
    def idle(self) -> bool:
        """Nothing is left to do here: it is at its end, stands still, or is another worker's."""
        return self._at_end if self.lease.held else self.lease.standby

    async def run(self, stop: asyncio.Event) -> None:
        """Project the partition whenever it is this process's, until `stop` is set."""
        while not stop.is_set():
            try:
                await self._turn(stop)
                self.halted = ""
            except (*CLIENT_ERRORS, RedisError) as error:
                self._halt("projection_failed", str(error))
                await first_set(stop, timeout_s=self._settings.reclaim_ms / 1000)

    async def _turn(self, stop: asyncio.Event) -> None:
        """One ownership, from taking the partition to giving it up."""
        if self._away_before and not await self._may_return(stop):
            await first_set(stop, timeout_s=self._settings.reclaim_ms / 1000)
            return
        if await self.lease.acquire(stop) is None:
            return
        self._at_end = False
        self._moved.clear()
        watching = asyncio.create_task(self._watch_generation())
        lane = self._redis.blocking(self._settings.block_ms)
        try:
            leave = await self._own(lane, stop)
            if leave is Leave.HALTED:
                await self._stand_still()
            elif leave is Leave.AWAY:
                self._shares.refuse(self.partition)
            elif leave is Leave.FENCED:
                self.lease.fenced()
        finally:
            await cancel(watching)
            await lane.close()
            await self.lease.release()
        log.info("projection_left", extra={**self._fields, "why": leave.value})

    async def _own(self, lane: Lane, stop: asyncio.Event) -> Leave:
        """Project until something ends it."""
        keys, head = await self._look()
        if head.halted:
            self._halt("projection_halted", f"{head.halted}: rebuild the view")
            return Leave.HALTED
        applier = self._applier(keys)
        reading = self._read_after(lane, self._checkpoint)
        try:
            while True:
                entries = await self._unless_over(reading)
                if self._gate.closed and not isinstance(entries, Never):  # paused: we stay the owner, and fold later
                    opened = await self._unless_over(self._gate.wait_open())
                    entries = NEVER if isinstance(opened, Never) else entries
                if isinstance(entries, Never):
                    return self._why_over(stop)
                self._metrics.polled()
                if not entries:
                    leave = await self._look_at_end(keys)
                    reading = self._read_after(lane, self._checkpoint)
                else:
                    self._at_end = False
                    # The next batch comes in while this one is folded.
                    reading = self._read_after(lane, entries[-1].id)
                    leave = await self._project(applier, entries)
                if leave is not None:
                    return leave
                self.halted = ""
        finally:
            await cancel(reading)

    def _applier(self, keys: ViewKeys) -> Applier:
        return Applier(
            Folder(self._projection, keys, self.partition, self.lease.worker_id),
            self._redis,
            self._metrics,
            owner=self.lease.worker_id,
            epoch=self.lease.epoch,
            window_ms=self._window_ms,
            checkpoint=self._checkpoint,
            log_fields=self._fields,
        )

    async def _look(self) -> tuple[ViewKeys, ViewHead]:
        """Where the view stands now; one that stands earlier than we brought it was lost with its server."""
        project = self._projection
        await self._persist(lambda: declare_view(self._redis, self._keys, project.topic.name, project.name))
        generation = await self._persist(
            lambda: live_generation(self._redis, self._keys, project.topic.name, project.name)
        )
        keys = ViewKeys(self._stream, project.name, generation)
        head = await self._persist(lambda: view_head(self._redis, keys))
        if generation == self._generation and entry_order(head.checkpoint) < entry_order(self._checkpoint):
            self._metrics.stream_lost()
            log.error(
                ROLLED_BACK,
                extra={
                    **self._fields,
                    "was_at": self._checkpoint,
                    "view_at": head.checkpoint,
                    "action": "go on from there",
                },
            )
        self._generation, self._checkpoint = generation, head.checkpoint
        return keys, head

    def _read_after(self, lane: Lane, after: str) -> asyncio.Task[list[RawEntry]]:
        async def read() -> list[RawEntry]:
            found = await self._persist(
                lambda: read_entries(lane, self._stream.stream, after, self._count, self._settings.block_ms)
            )
            return [RawEntry(entry_id, fields) for entry_id, fields in found]

        return asyncio.create_task(read())

    async def _look_at_end(self, keys: ViewKeys) -> Leave | None:
        """Nothing came: is that the end of the stream, or was the stream or the view lost or rolled back?"""
        last = await self._persist(lambda: last_id(self._redis, self._stream.stream))
        if entry_order(last) < entry_order(self._checkpoint):
            return await self._behind(keys, last)
        head = await self._persist(lambda: view_head(self._redis, keys))
        if entry_order(head.checkpoint) < entry_order(self._checkpoint):
            return Leave.RELOAD  # a failover took back our last commits: no event would tell
        self._at_end = True
        return None

    async def _behind(self, keys: ViewKeys, last: str) -> Leave:
        """The stream ends before the view: with the view lost too, start over; else stand still."""
        head = await self._persist(lambda: view_head(self._redis, keys))
        if entry_order(head.checkpoint) < entry_order(self._checkpoint):
            return Leave.RELOAD
        self._metrics.stream_lost()
        await self._persist(lambda: mark_halted(self._redis, keys))
        self._halt(ROLLED_BACK, f"the view is at {self._checkpoint}, the stream ends at {last}: rebuild the view")
        return Leave.HALTED

    async def _project(self, applier: Applier, entries: Sequence[RawEntry]) -> Leave | None:
        """Fold and commit entries that follow the checkpoint."""
        sizes = [sum(map(len, entry.fields)) for entry in entries]
        self._count = max(1, min(MAX_EVENTS, MAX_BYTES * len(entries) // max(sum(sizes), 1)))
        self._metrics.received("new", len(entries))
        self._metrics.sizes(sizes)
        folder, topic, name = applier.folder, self._projection.topic.name, self._projection.name
        prepared, stop = folder.prepare(entries)
        if folder.meets_unknown:
            folder.elsewhere = await self._persist(
                lambda: live_types(self._redis, self._keys, topic, name, TYPES_LIVE_S)
            )
            prepared, stop = folder.prepare(entries)
        result = await applier.apply(prepared)
        self._checkpoint = applier.checkpoint
        if isinstance(result, Stop):
            self._metrics.handler_error(name, result.failure.error_type)
            self._halt("projection_halted", f"entry {result.entry_id}: {result.failure.error}")
            return Leave.HALTED
        if result.verdict is Verdict.FENCED:
            log.warning("projection_fenced", extra={**self._fields, "epoch": self.lease.epoch})
            self._metrics.lease_lost(1)
            return Leave.FENCED
        if result.verdict is Verdict.BEHIND:
            return await self._behind(folder.keys, result.detail)
        if stop is None:
            return None
        self._away_before = stop.entry_id
        log.error(
            "projection_needs_newer_worker",
            extra={**self._fields, "entry": stop.entry_id, "error": stop.failure.error},
        )
        return Leave.AWAY

    async def _watch_generation(self) -> None:
        """Another generation of the view may go live: its place is looked up anew then."""
        project = self._projection
        while True:
            await asyncio.sleep(_LOOK_S)
            asking = partial(live_generation, self._redis, self._keys, project.topic.name, project.name)
            try:
                generation = await self._persist(asking)
            except CLIENT_ERRORS as error:
                log.warning("generation_unknown", extra={**self._fields, "error": str(error)})
                continue
            if generation != (self._generation or generation):
                self._moved.set()
                return

    async def _stand_still(self) -> None:
        """Halted: keep the partition, so that no other worker goes on either, until it is to be given up."""
        self._at_end = True
        await first_set(self.lease.lost, self.lease.leaving, self._moved)

    async def _may_return(self, stop: asyncio.Event) -> bool:
        """Whether another worker has brought the view past what we cannot read, or none is left that could."""
        if isinstance(await unless(self._look(), stop), Never):
            return False
        topic, name = self._projection.topic.name, self._projection.name
        passed = entry_order(self._checkpoint) >= entry_order(self._away_before)
        if not passed:
            live = await self._persist(lambda: live_types(self._redis, self._keys, topic, name, TYPES_LIVE_S))
            passed = not live - self._projection.type_names
        if passed:
            self._away_before = ""
            self._shares.accept(self.partition)
        return passed

    def _halt(self, event: str, why: str) -> None:
        if self.halted != why:
            log.error(event, extra={**self._fields, "error": why})
        self.halted = why

    async def _persist(self, operation: Callable[[], Awaitable[T]]) -> T:
        return await self._redis.persist(operation, give_up_s=None)

    async def _unless_over(self, work: Coroutine[Any, Any, T] | asyncio.Task[T]) -> T | Never:
        return await unless(work, self.lease.lost, self.lease.leaving, self._moved)

    def _why_over(self, stop: asyncio.Event) -> Leave:
        if self.lease.lost.is_set():
            return Leave.FENCED
        if self._moved.is_set():
            return Leave.RELOAD
        return Leave.STOP if stop.is_set() else Leave.SHARE
