"""One partition of one generation of a view in one process: standby, owner, reader, committer, and standby again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from enum import Enum
from typing import Any, TypeVar

from streamlib.errors import StreamlibError
from streamlib.message import entry_order, entry_time_ms
from streamlib.redisio.commits import MAX_BYTES, Answer, Verdict
from streamlib.redisio.connection import Lane
from streamlib.redisio.failures import CLIENT_ERRORS
from streamlib.redisio.generations import standing
from streamlib.redisio.large_entries import Room
from streamlib.redisio.registry import last_id, live_types
from streamlib.redisio.view_state import ROLLED_BACK, START, ViewHead, mark_halted, read_entries, view_head
from streamlib.worker.applying import Applier
from streamlib.worker.feed import Feed
from streamlib.worker.folding import Folder
from streamlib.worker.history import fold_history
from streamlib.worker.loops import NEVER, Never, cancel, first_set, unless
from streamlib.worker.preparing import Preparer, RawEntry, Stop
from streamlib.worker.seen import seen_before

T = TypeVar("T")

log = logging.getLogger(__name__)

TYPES_LIVE_S = 600.0
_MOST_READ = 500
"""Entries of one read."""


class Leave(Enum):
    """Why an owner stops projecting."""

    STOP = "stop"
    SHARE = "share"  # another worker is to have it
    FENCED = "fenced"
    HALTED = "halted"
    AWAY = "away"  # only another worker can read what comes next
    RELOAD = "reload"  # the view is not where we thought: look again
    GONE = "gone"  # the generation is being deleted


class ProjectedPartition:
    """Projects one partition while this process owns it, up to `checkpoint`; `halted` says why it stands still."""

    def __init__(self, feed: Feed, partition: int) -> None:
        self.partition = partition
        self.lease = feed.shares.partition(partition)
        self.halted = ""
        self.checkpoint = START
        self._at_end = False
        self._feed = feed
        self._redis = feed.redis
        self._view = feed.view_keys(partition)
        self._stream = self._view.stream.stream
        self._settings = feed.settings.worker
        self._metrics = feed.metrics
        self._away_before = ""
        self._count = _MOST_READ
        self._room = Room(feed.settings.limits.payload_bytes)
        self._more = False
        self._fields = {"projection": feed.group, "topic": feed.projection.topic.name, "partition": partition}

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
            except (*CLIENT_ERRORS, StreamlibError) as error:
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
        lane = self._redis.blocking(self._settings.block_ms)
        try:
            leave = await self._own(lane, stop)
            if leave is Leave.HALTED:
                await self._stand_still()
            elif leave is Leave.AWAY:
                self._feed.shares.refuse(self.partition)
            elif leave is Leave.FENCED:
                self.lease.fenced()
        finally:
            await lane.close()
            await self.lease.release()
        log.info("projection_left", extra={**self._fields, "why": leave.value})
        if leave is Leave.GONE:  # taking it made an owner anew, which nobody would delete
            self._halt("generation_gone", "this generation of the view is being deleted")
            await self._persist(lambda: self._redis.execute("UNLINK", self.lease.owner_key))
            await first_set(stop, timeout_s=self._settings.reclaim_ms / 1000)

    async def _own(self, lane: Lane, stop: asyncio.Event) -> Leave:
        """Project until something ends it."""
        head = await self._look()
        if head is None:
            return Leave.GONE
        if head.halted:
            self._halt("projection_halted", f"{head.halted}: rebuild the view")
            return Leave.HALTED
        applier, gate = await self._applier(), self._feed.gate
        history = self._feed.history
        if history is not None and not entry_time_ms(self.checkpoint):
            if isinstance(await self._unless_over(fold_history(history, self.partition, applier)), Never):
                return self._why_over(stop)
            self.checkpoint = applier.checkpoint
        reading = self._read_after(lane, self.checkpoint)
        try:
            while True:
                if not await applier.may_follow(reading) and (leave := await self._finish(applier)) is not None:
                    return leave
                entries = await self._unless_over(reading)
                if gate.closed and not isinstance(entries, Never):  # paused: we stay the owner, and fold later
                    if (leave := await self._finish(applier)) is not None:
                        return leave
                    opened = await self._unless_over(gate.wait_open())
                    entries = NEVER if isinstance(opened, Never) else entries
                if isinstance(entries, Never):
                    return await self._finish(applier) or self._why_over(stop)
                self._metrics.polled()
                if not entries:
                    leave = await self._finish(applier) or await self._look_at_end()
                    reading = self._read_after(lane, self.checkpoint)
                else:
                    self._at_end, more = False, self._more
                    # The next ones come in while these are folded; at once or never where a commit waits for them.
                    reading = self._read_after(lane, entries[-1].id, wait=not more)
                    leave = await self._project(applier, entries, more)
                if leave is not None:
                    return leave
                self.halted = ""
        finally:
            await cancel(reading)
            await applier.close()

    async def _applier(self) -> Applier:
        feed, seen = self._feed, None
        if feed.rebuilding:
            codec = feed.projection.topic.codec
            seen = await seen_before(self._redis, codec, self._stream, self.checkpoint, feed.window_ms)
        return Applier(
            Preparer(feed.projection, self.partition, feed.settings.limits.payload_bytes),
            Folder(feed.projection, self._view, self.lease.worker_id, seen),
            self._redis,
            self._metrics,
            owner=self.lease.worker_id,
            epoch=self.lease.epoch,
            window_ms=feed.window_ms,
            checkpoint=self.checkpoint,
            log_fields=self._fields,
        )

    async def _look(self) -> ViewHead | None:
        """Where the view stands now, None where nobody shall go on with this generation.

        A view that stands earlier than we brought it was lost with its server.
        """
        feed = self._feed
        topic, name = feed.projection.topic.name, feed.projection.name
        now = await self._persist(lambda: standing(self._redis, feed.keys, topic, name))
        if feed.generation not in now.folded:
            return None
        head = await self._persist(lambda: view_head(self._redis, self._view))
        if entry_order(head.checkpoint) < entry_order(self.checkpoint):
            self._metrics.stream_lost()
            log.error(
                ROLLED_BACK,
                extra={
                    **self._fields,
                    "was_at": self.checkpoint,
                    "view_at": head.checkpoint,
                    "action": "go on from there",
                },
            )
        self.checkpoint = head.checkpoint
        return head

    def _read_after(self, lane: Lane, after: str, *, wait: bool = True) -> asyncio.Task[list[RawEntry]]:
        block_ms = self._settings.block_ms if wait else None

        async def read() -> list[RawEntry]:
            count = self._count
            found = await self._persist(lambda: read_entries(lane, self._stream, after, count, block_ms, self._room))
            self._more = len(found) == count or (self._room.bounded and bool(found))
            return [RawEntry.of(entry_id, fields) for entry_id, fields in found]

        return asyncio.create_task(read())

    async def _look_at_end(self) -> Leave | None:
        """Nothing came: is that the end of the stream, or was the stream or the view lost or rolled back?"""
        last = await self._persist(lambda: last_id(self._redis, self._stream))
        if entry_order(last) < entry_order(self.checkpoint):
            return await self._behind(last)
        head = await self._persist(lambda: view_head(self._redis, self._view))
        if entry_order(head.checkpoint) < entry_order(self.checkpoint):
            return Leave.RELOAD  # a failover took back our last commits: no event would tell
        self._at_end = True
        return None

    async def _behind(self, last: str) -> Leave:
        """The stream ends before the view: with the view lost too, start over; else stand still."""
        head = await self._persist(lambda: view_head(self._redis, self._view))
        if entry_order(head.checkpoint) < entry_order(self.checkpoint):
            return Leave.RELOAD
        self._metrics.stream_lost()
        await self._persist(lambda: mark_halted(self._redis, self._view))
        self._halt(ROLLED_BACK, f"the view is at {self.checkpoint}, the stream ends at {last}: rebuild the view")
        return Leave.HALTED

    async def _project(self, applier: Applier, entries: Sequence[RawEntry], more: bool) -> Leave | None:
        """Take up entries that follow the last ones, and commit those, or wait for `more`."""
        sizes = [entry.size for entry in entries]
        self._count = max(1, min(_MOST_READ, MAX_BYTES * len(entries) // max(sum(sizes), 1)))
        self._metrics.received("new", len(entries))
        self._metrics.sizes(sizes)
        preparer = applier.preparer
        prepared, stop = preparer.prepare(entries)
        if preparer.meets_unknown:
            preparer.elsewhere = await self._types()
            prepared, stop = preparer.prepare(entries)
        leave = await self._after(applier, await applier.follow(prepared, more))
        if leave is not None or stop is None:
            return leave
        if (leave := await self._finish(applier)) is not None:
            return leave
        if not preparer.elsewhere - self._feed.projection.type_names:
            raise StreamlibError(f"entry {stop.entry_id}: {stop.failure.error}; no other worker reads it: deploy one")
        self._away_before = stop.entry_id
        log.error(
            "projection_needs_newer_worker",
            extra={**self._fields, "entry": stop.entry_id, "error": stop.failure.error},
        )
        return Leave.AWAY

    async def _finish(self, applier: Applier) -> Leave | None:
        """Commit what was taken up."""
        return await self._after(applier, await applier.finish())

    async def _after(self, applier: Applier, result: Answer | Stop) -> Leave | None:
        """What follows from how commits ended."""
        self.checkpoint = applier.checkpoint
        if isinstance(result, Stop):
            self._metrics.handler_error(self._feed.projection.name, result.failure.error_type)
            self._halt("projection_halted", f"entry {result.entry_id}: {result.failure.error}")
            return Leave.HALTED
        if result.verdict is Verdict.FENCED:
            log.warning("projection_fenced", extra={**self._fields, "epoch": self.lease.epoch})
            self._metrics.lease_lost(1)
            return Leave.FENCED
        return await self._behind(result.detail) if result.verdict is Verdict.BEHIND else None

    async def _stand_still(self) -> None:
        """Halted: keep the partition, so that no other worker goes on either, until it is to be given up."""
        self._at_end = True
        await first_set(self.lease.lost, self.lease.leaving)

    async def _may_return(self, stop: asyncio.Event) -> bool:
        """Whether another worker has brought the view past what we cannot read, or none is left that could."""
        if isinstance(await unless(self._look(), stop), Never):
            return False
        passed = entry_order(self.checkpoint) >= entry_order(self._away_before)
        if not passed:
            passed = not await self._types() - self._feed.projection.type_names
        if passed:
            self._away_before = ""
            self._feed.shares.accept(self.partition)
        return passed

    async def _types(self) -> frozenset[str]:
        """What some worker of this group folds."""
        feed = self._feed
        topic = feed.projection.topic.name
        return await self._persist(lambda: live_types(self._redis, feed.keys, topic, feed.group, TYPES_LIVE_S))

    def _halt(self, event: str, why: str) -> None:
        if self.halted != why:
            log.error(event, extra={**self._fields, "error": why})
        self.halted = why

    async def _persist(self, operation: Callable[[], Awaitable[T]]) -> T:
        return await self._redis.persist(operation, give_up_s=None)

    async def _unless_over(self, work: Coroutine[Any, Any, T] | asyncio.Task[T]) -> T | Never:
        return await unless(work, self.lease.lost, self.lease.leaving)

    def _why_over(self, stop: asyncio.Event) -> Leave:
        if self.lease.lost.is_set():
            return Leave.FENCED
        return Leave.STOP if stop.is_set() else Leave.SHARE
