"""Settles outcomes as they come: while one script is under way the next outcomes gather, and go together."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from streamlib.metrics.worker import GroupMetrics
from streamlib.redisio.connection import CLIENT_ERRORS, RedisDoor
from streamlib.redisio.settler import Settlement, settle
from streamlib.worker.inflight import InFlight
from streamlib.worker.work import Ended, Group

logger = logging.getLogger(__name__)
_MAX_BATCH = 500
_REFUSED_AGAIN_S = 5.0
_MAX_BYTES = 4 * 1024 * 1024


class Settling:
    """The outcomes of one group in one process; the only caller of the settle script."""

    def __init__(
        self,
        door: RedisDoor,
        group: Group,
        inflight: InFlight,
        metrics: GroupMetrics,
        *,
        on_error: Callable[[str, Exception], None],
    ) -> None:
        self._door = door
        self._group = group
        self._inflight = inflight
        self._metrics = metrics
        self._on_error = on_error
        self._waiting: list[Ended] = []
        self._wake = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    def put(self, ended: Ended) -> None:
        self._waiting.append(ended)
        self._empty.clear()
        self._wake.set()

    async def flush(self) -> None:
        """Wait until everything put so far is settled."""
        await self._empty.wait()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self.run_once()

    async def run_once(self) -> None:
        """Settle what waits now: a script per partition, side by side."""
        waiting, self._waiting = self._waiting, []
        by_partition: dict[int, list[Ended]] = {}
        for ended in waiting:
            by_partition.setdefault(ended.settlement.delivery.partition, []).append(ended)
        chunks = [chunk for of_one in by_partition.values() for chunk in _chunks(of_one)]
        await asyncio.gather(*(self._settle(chunk) for chunk in chunks))
        if not self._waiting:
            self._empty.set()

    async def _settle(self, chunk: list[Ended]) -> None:
        try:
            counted = await self._send([ended.settlement for ended in chunk])
        except CLIENT_ERRORS as error:
            if len(chunk) > 1:
                for ended in chunk:
                    await self._settle([ended])
                return
            self._refused(chunk[0], error)
            return
        now_s = time.time()
        for ended, counts in zip(chunk, counted, strict=True):
            self._inflight.remove(ended.settlement.delivery, self._group.group)
            self._record(ended, counts, now_s)

    async def _send(self, settlements: list[Settlement]) -> list[bool]:
        tries = 0

        async def once() -> list[bool]:
            nonlocal tries
            tries += 1
            return await settle(
                self._door,
                settlements,
                group=self._group.group,
                worker_id=self._group.worker_id,
                window_ms=self._group.window_ms,
                resent=tries > 1,
            )

        return await self._door.persist(once, give_up_s=None, on_error=self._on_error)

    def _refused(self, ended: Ended, error: Exception) -> None:
        """Redis refuses this one for a reason of its own. It is never acked unrecorded, and never run again for it: the
        claim is kept, and the outcome is tried again until a person has mended what is wrong."""
        delivery = ended.settlement.delivery
        asyncio.get_running_loop().call_later(_REFUSED_AGAIN_S, self.put, ended)
        self._metrics.ack_error()
        logger.error(
            "settle_refused",
            extra={
                "topic": self._group.topic, "group": self._group.group, "entry_id": delivery.entry_id,
                "event_id": delivery.event_id, "outcome": ended.outcome, "error": str(error),
            },
        )  # fmt: skip

    def _record(self, ended: Ended, counts: bool, now_s: float) -> None:
        metrics = self._metrics
        if not counts:
            metrics.lease_lost(1)
            logger.warning(
                "lease_lost",
                extra={
                    "topic": self._group.topic, "group": self._group.group,
                    "event_id": ended.settlement.delivery.event_id, "outcome": ended.outcome,
                },
            )  # fmt: skip
            return
        metrics.processed(ended.handler, ended.outcome, ended.seconds)
        if ended.outcome == "ok":
            metrics.end_to_end(max(now_s - ended.stored_ms / 1000, 0.0))
            metrics.attempts(ended.attempts)
        elif ended.outcome == "duplicate":
            metrics.duplicate(1)
        elif ended.outcome == "retry":
            metrics.retry_scheduled()
        elif ended.outcome == "dead" and ended.failure is not None:
            metrics.dead_letter(ended.handler, ended.failure.reason)
            metrics.attempts(ended.attempts)
        if ended.failure is not None:
            metrics.handler_error(ended.handler, ended.failure.error_type)


def _chunks(items: Sequence[Ended]) -> list[list[Ended]]:
    chunks: list[list[Ended]] = [[]]
    size = 0
    for ended in items:
        size += (own := _size(ended))
        if len(chunks[-1]) >= _MAX_BATCH or (size > _MAX_BYTES and chunks[-1]):
            chunks.append([])
            size = own
        chunks[-1].append(ended)
    return chunks


def _size(ended: Ended) -> int:
    parts = ended.settlement.parts
    return ended.settlement.delivery.size + sum(len(part) for part in parts if isinstance(part, bytes | str))
