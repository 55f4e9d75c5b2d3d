"""Settles outcomes as they come: while one script is under way the next outcomes gather, and go together.

Each partition has a queue of its own: one that does not answer holds up its own outcomes only.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from streamlib.errors import Fenced
from streamlib.metrics.worker import GroupMetrics
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.delivery import Delivery
from streamlib.redisio.failures import CLIENT_ERRORS
from streamlib.redisio.reader import Received
from streamlib.redisio.settler import Settled, settle
from streamlib.worker.answering import Answering
from streamlib.worker.inflight import InFlight
from streamlib.worker.work import Ended, Group

logger = logging.getLogger(__name__)
_MAX_BATCH = 500
_REFUSED_AGAIN_S = 5.0
_MAX_BYTES = 4 * 1024 * 1024


Place = tuple[int, int]
"""Partition, and the epoch in which it is owned (0 in groups without owners)."""


class _Queue:
    """The outcomes of one partition and epoch: one script takes no others."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.waiting: list[Ended] = []
        self.sending: list[Ended] = []
        self.task: asyncio.Task[None] | None = None
        self.failing = False


class Follows(Protocol):
    """What is claimed along with endings."""

    def of(self, endings: Sequence[Ended]) -> Sequence[Received | None]:
        """For each ending the event that is to be claimed once it is recorded, if there is one."""
        ...

    def claimed(self, received: Received) -> None:
        """It was, and `on_settled` has heard of the ending."""
        ...


class Settling:
    """The outcomes of one group in one process; the only caller of the settle script.

    `on_settled` hears of each outcome and whether it counts, `on_fenced` of places that are another worker's by now.
    `successors` are set in ordered groups.
    """

    successors: Follows | None = None

    def __init__(
        self,
        door: RedisDoor,
        group: Group,
        inflight: InFlight,
        metrics: GroupMetrics,
        *,
        lease_ms: int,
        on_error: Callable[[str, Exception], None],
        on_settled: Callable[[Ended, bool], None] | None = None,
        on_fenced: Callable[[int, int], None] | None = None,
    ) -> None:
        self._door = door
        self._group = group
        self._inflight = inflight
        self._metrics = metrics
        self._lease_ms = lease_ms
        self._on_error = on_error
        self._on_settled = on_settled
        self._on_fenced = on_fenced
        self.answering = Answering(apart=not door.one_node)
        self._queues: dict[Place, _Queue] = {}
        self._bug: BaseException | None = None
        self._running = False
        self._failed = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    def put(self, ended: Ended) -> None:
        place = _place(ended)
        queue = self._queues.get(place)
        if queue is None:
            queue = self._queues[place] = _Queue(place)
        queue.waiting.append(ended)
        if queue.task is None:
            self._empty.clear()
            self._go_on(queue)

    def stuck(self, delivery: Delivery) -> bool:
        """Whether this delivery's outcome waits for a partition that refuses or does not answer."""
        queue = self._queues.get((delivery.partition, delivery.epoch))
        if queue is None or not queue.failing:
            return False
        return any(ended.settlement.delivery is delivery for ended in (*queue.sending, *queue.waiting))

    async def flush(self) -> None:
        """Wait until everything put so far is settled."""
        await self._empty.wait()

    async def run(self) -> None:
        """Until cancelled. Raises a bug of ours."""
        self._running = True
        try:
            for queue in self._queues.values():
                if queue.waiting and queue.task is None:
                    self._go_on(queue)
            await self._failed.wait()
            if self._bug is not None:
                raise self._bug
        finally:
            self._running = False
            if tasks := {queue.task for queue in self._queues.values() if queue.task is not None}:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)

    def _go_on(self, queue: _Queue) -> None:
        """Settle what waits, in a task: whatever else ends in this turn of the loop goes along."""
        if not self._running or self._bug is not None:
            return
        queue.task = asyncio.get_running_loop().create_task(self._settle_all(queue))
        queue.task.add_done_callback(partial(self._settled_all, queue))

    async def _settle_all(self, queue: _Queue) -> None:
        while queue.waiting:
            queue.sending, queue.waiting = queue.waiting, []
            chunks = _chunks(queue.sending)
            if len(chunks) == 1:
                await self._settle(queue, chunks[0])
            else:
                await asyncio.gather(*(self._settle(queue, chunk) for chunk in chunks))
            queue.sending = []

    def _settled_all(self, queue: _Queue, task: asyncio.Task[None]) -> None:
        queue.task = None
        if not task.cancelled() and (error := task.exception()) is not None:
            self._bug = error
            self._failed.set()
        if queue.waiting:  # it came as the task was ending
            self._go_on(queue)
        elif queue.place[1]:  # an epoch ends
            del self._queues[queue.place]
        if not any(queue.waiting or queue.task is not None for queue in self._queues.values()):
            self._empty.set()

    async def _settle(self, queue: _Queue, chunk: list[Ended]) -> None:
        along = self.successors.of(chunk) if self.successors is not None else [None] * len(chunk)
        try:
            answers = await self._send(queue, chunk, along)
        except Fenced:
            answers = [Settled.LOST] * len(chunk)
            if self._on_fenced is not None:
                self._on_fenced(*queue.place)
        except CLIENT_ERRORS as error:
            if len(chunk) > 1:
                for ended in chunk:
                    await self._settle(queue, [ended])
                return
            self._refused(chunk[0], error)
            return
        self._inflight.remove((ended.settlement.delivery for ended in chunk), self._group.group)
        self._record_all(chunk, answers)
        for ended, answer, successor in zip(chunk, answers, along, strict=True):
            if self._on_settled is not None:
                self._on_settled(ended, answer is not Settled.LOST)
            if answer is Settled.LEADS_ON and successor is not None and self.successors is not None:
                self.successors.claimed(successor)

    async def _send(self, queue: _Queue, chunk: list[Ended], along: Sequence[Received | None]) -> list[Settled]:
        settlements = [ended.settlement for ended in chunk]
        successors = [one.delivery if one is not None else None for one in along]
        tries = 0

        async def once() -> list[Settled]:
            nonlocal tries
            tries += 1
            with self.answering.at(settlements[0].delivery.keys.stream):
                return await settle(
                    self._door,
                    settlements,
                    group=self._group.group,
                    worker_id=self._group.worker_id,
                    window_ms=self._group.window_ms,
                    resent=tries > 1,
                    successors=successors,
                    lease_ms=self._lease_ms,
                    marks=self._group.marks,
                )

        def failed(kind: str, error: Exception) -> None:
            queue.failing = True
            self._on_error(kind, error)

        answers = await self._door.persist(once, give_up_s=None, on_error=failed)
        queue.failing = False
        return answers

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

    def _record_all(self, chunk: Sequence[Ended], answers: Sequence[Settled]) -> None:
        handled: dict[str, list[Ended]] = {}
        for ended, answer in zip(chunk, answers, strict=True):
            if ended.outcome == "ok" and answer is not Settled.LOST:
                handled.setdefault(ended.handler, []).append(ended)
            else:
                self._record(ended, answer is not Settled.LOST)
        now_s = time.time()
        for handler, endings in handled.items():
            self._metrics.processed(handler, "ok", *(ended.seconds or 0.0 for ended in endings))
            self._metrics.end_to_end(*(now_s - ended.stored_ms / 1000 for ended in endings))
            self._metrics.attempts(*(ended.attempts for ended in endings))

    def _record(self, ended: Ended, counts: bool) -> None:
        """What became of a delivery that did not end well, or not here."""
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
        if ended.seconds is None:
            metrics.processed(ended.handler, ended.outcome, n=1)
        else:
            metrics.processed(ended.handler, ended.outcome, ended.seconds)
        if ended.outcome == "duplicate":
            metrics.duplicate(1)
        elif ended.outcome == "retry":
            metrics.retry_scheduled()
        elif ended.outcome == "dead" and ended.failure is not None:
            metrics.dead_letter(ended.handler, ended.failure.reason)
            metrics.attempts(ended.attempts)
        if ended.failure is not None:
            metrics.handler_error(ended.handler, ended.failure.error_type)


def _place(ended: Ended) -> Place:
    delivery = ended.settlement.delivery
    return delivery.partition, delivery.epoch


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
    parts, size = ended.settlement.parts, ended.settlement.delivery.size
    return size + sum(len(part) for part in parts if isinstance(part, bytes | str)) if parts else size
