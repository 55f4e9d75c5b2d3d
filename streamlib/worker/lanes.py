"""The lanes of one handler: up to `concurrency` runs at once, each lane taking the next claimed event."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections import deque
from collections.abc import Callable

from streamlib.redisio.delivery import Delivery
from streamlib.worker.executor import Executor
from streamlib.worker.handlers import HandlerSpec
from streamlib.worker.work import OnEnd, Work

logger = logging.getLogger(__name__)
_SMOOTHING = 0.2
_MOST = 500
_CLAIM_AHEAD_S = 0.05
_IN_A_ROW = 128
"""Events that a lane runs before the event loop has a turn: settling and claiming go on meanwhile."""


class Lanes:
    """Claimed work waits here for a lane. A lane runs one event after another in one task, so that a coroutine which
    never really waits costs none of its own."""

    def __init__(
        self,
        handler: HandlerSpec,
        executor: Executor,
        *,
        concurrency: int,
        batch: int,
        on_end: OnEnd,
        on_room: Callable[[], None],
        may_start: Callable[[Work], bool] | None = None,
    ) -> None:
        self.handler = handler
        self._executor = executor
        self._concurrency = concurrency
        self._batch = batch if handler.is_batch else 1
        self._on_end = on_end
        self._on_room = on_room
        self._may_start = may_start
        self._ready: deque[Work] = deque()
        self._bug: BaseException | None = None
        self._finished: deque[Work] = deque()
        self._telling = False
        self._running: dict[asyncio.Task[None], list[Work]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._watch: asyncio.TimerHandle | None = None
        self._seconds_per_event: float | None = None
        self._context = contextvars.copy_context()
        self._stopping = False
        self._asleep: deque[asyncio.Future[None]] = deque()

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        for _ in range(self._concurrency):
            self._start_lane()

    @property
    def running(self) -> int:
        """Events in handlers now."""
        return sum(len(works) for works in self._running.values())

    @property
    def held(self) -> int:
        """Events claimed for this handler: waiting or running."""
        return len(self._ready) + self.running

    @property
    def free(self) -> int:
        """How many more could start this moment."""
        idle = self._concurrency - len(self._running)
        return max(idle * self._batch - len(self._ready), 0) if not self._stopping else 0

    @property
    def room(self) -> int:
        """How many more may be claimed."""
        limit, waiting = self.limit, len(self._ready)
        return limit - waiting if waiting <= limit // 2 and not self._stopping else 0

    @property
    def limit(self) -> int:
        """How many may wait, claimed: little, for what a dead worker had claimed runs one by one elsewhere."""
        at_least = self._batch if self.handler.is_batch else self._concurrency
        return min(max(self.startable(_CLAIM_AHEAD_S), at_least), max(_MOST, at_least))

    def startable(self, seconds: float) -> int:
        """How many events can start within this time, going by how long they took lately."""
        if self._seconds_per_event is None:
            return self._concurrency * self._batch
        return int(self._concurrency * seconds / max(self._seconds_per_event, 1e-6))

    @property
    def waiting_bytes(self) -> int:
        return sum([work.delivery.size for work in self._ready.copy()])

    def put(self, work: Work) -> None:
        self._ready.append(work)
        if self._asleep:
            self._wake_one()

    def lost(self, delivery: Delivery) -> None:
        """The claim of a delivery that is here was lost."""
        for work in self.works():
            if work.delivery is delivery:
                self.discard(work)

    def discard(self, work: Work) -> None:
        """The claim was lost: drop the work if it waits, cancel it if it runs alone in a lane. A thread cannot be
        cancelled and keeps its lane until it ends; its outcome is fenced."""
        work.lost = True
        try:
            self._ready.remove(work)
        except ValueError:
            pass
        else:
            self._on_end(work, None)
            self._on_room()
            return
        for task, works in self._running.items():
            if works == [work] and self.handler.is_async:
                task.cancel()

    def stop(self) -> list[Work]:
        """Start nothing more; the work that did not start."""
        self._stopping = True
        while self._asleep:
            self._wake_one()
        return self.take_back()

    def take_back(self, partition: int | None = None) -> list[Work]:
        """The work that did not start, all or of one partition; it waits here no more."""
        waiting: list[Work] = []
        while (work := self._pop()) is not None:
            waiting.append(work)
        unstarted = [work for work in waiting if partition in (None, work.delivery.partition)]
        self._ready.extend(work for work in waiting if partition not in (None, work.delivery.partition))
        return unstarted

    def works(self) -> list[Work]:
        """All that is claimed for this handler: what waits, and what runs."""
        return [*self._ready.copy(), *(work for works in self._running.values() for work in works)]

    def cancel(self) -> None:
        """Cancel the handlers that run now."""
        for task, works in list(self._running.items()):
            for work in works:
                work.cancelled = True
            if self.handler.is_async:  # a thread goes on: its lane, and its claim, end when it does
                task.cancel()

    def raise_bug(self) -> None:
        """Raise what ended a lane: a bug of ours, for handlers' errors are outcomes."""
        if self._bug is not None:
            raise self._bug

    async def wait(self, timeout_s: float) -> bool:
        """After `stop`: wait for the lanes to end; False when some still run."""
        if not self._tasks:
            return True
        _, pending = await asyncio.wait(set(self._tasks), timeout=timeout_s)
        return not pending

    def _start_lane(self) -> None:
        task = asyncio.get_running_loop().create_task(self._lane(), context=self._context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._lane_ended)

    def _lane_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._running.pop(task, None)
        if not self._tasks and self._watch is not None:
            self._watch.cancel()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._bug = error
            self._on_room()

    async def _lane(self) -> None:
        task = asyncio.current_task()
        if task is None:  # cannot be: this coroutine runs in a task
            return
        loop, in_a_row = asyncio.get_running_loop(), 0
        while True:
            works = self._take()
            if not works:
                if self._stopping:
                    return
                await self._sleep()
                continue
            self._running[task] = works
            if self._watch is None:
                self._watch = loop.call_later(self.handler.timeout_s, self._look)
            first, began = works[0], time.perf_counter()
            await self._executor.run(works, self._on_end, self._follow)
            went_on = works[0] is not first  # in a thread, with others
            self._took(works[0].seconds if went_on else (time.perf_counter() - began) / len(works))
            del self._running[task]
            self._on_room()
            if task.cancelling() or contextvars.copy_context() != self._context:
                # Cancelled with its handler, or by it; or the handler set context variables, which the next event
                # must not see: a fresh lane takes over.
                if not self._stopping:
                    self._start_lane()
                return
            in_a_row += 1
            if in_a_row % _IN_A_ROW == 0:
                await asyncio.sleep(0)

    def _look(self) -> None:
        """Cancel what has run for too long; look again when the next one may have."""
        now, next_s = time.perf_counter(), self.handler.timeout_s
        for task, works in list(self._running.items()):
            for work in works:
                started = work.started  # a thread may end it meanwhile
                if not started or work.timed_out:
                    continue
                left_s = started + self.handler.timeout_s - now
                next_s = min(next_s, max(left_s, 0.001))
                if left_s <= 0:
                    work.timed_out = True
                    self._overran(task)
        self._watch = asyncio.get_running_loop().call_later(next_s, self._look) if self._running else None

    def _overran(self, task: asyncio.Task[None]) -> None:
        if self.handler.is_async:
            task.cancel()
        else:
            extra = {"handler": self.handler.name, "timeout_s": self.handler.timeout_s}
            logger.error("handler_overran", extra=extra)

    async def _sleep(self) -> None:
        """Until there is work, or the end."""
        waiting = asyncio.get_running_loop().create_future()
        self._asleep.append(waiting)
        try:
            await waiting
        except asyncio.CancelledError:
            if not waiting.cancelled():  # we were woken, and end: the work is another lane's
                self._wake_one()
            raise

    def _wake_one(self) -> None:
        """One event needs one lane: with hundreds of them, waking all would cost more than the event."""
        while self._asleep:
            waiting = self._asleep.pop()
            if not waiting.done():
                waiting.set_result(None)
                return

    def _take(self) -> list[Work]:
        works: list[Work] = []
        while not self._stopping and len(works) < self._batch and (work := self._pop()) is not None:
            if self._may_start is None or self._may_start(work):
                works.append(work)
            else:
                work.lost = True
                self._on_end(work, None)
                self._on_room()
        return works

    def _pop(self) -> Work | None:
        """The next that waits: threads take from here too, so that looking first would be of no use."""
        try:
            return self._ready.popleft()
        except IndexError:
            return None

    def _follow(self, ended: Work) -> Work | None:
        """In a thread, whose event simply succeeded: the next one for it, if one waits that needs no asking. Then the
        event loop is told of that end, if it is not about to hear of others."""
        following = None if self._stopping or self._may_start is not None else self._pop()
        if following is not None:
            self._finished.append(ended)
            if not self._telling:
                self._telling = True
                self._loop.call_soon_threadsafe(self._tell)
        return following

    def _tell(self) -> None:
        self._telling = False
        while self._finished:
            work = self._finished.popleft()
            self._took(work.seconds)
            self._on_end(work, self._executor.done(work))
        self._on_room()

    def _took(self, seconds: float) -> None:
        """So long an event took lately."""
        known = self._seconds_per_event
        self._seconds_per_event = seconds if known is None else known + _SMOOTHING * (seconds - known)
