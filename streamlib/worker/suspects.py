"""Runs events whose worker died while it held them: one at a time in this process, beside normal work."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from msgspec import Struct

from streamlib.errors import Fenced
from streamlib.redisio.claims import Claimed, Verdict
from streamlib.redisio.dead_letter import Failure
from streamlib.redisio.delivery import Delivery
from streamlib.redisio.failures import CLIENT_ERRORS, RETRYABLE, ErrorClass, classify
from streamlib.redisio.reader import Received
from streamlib.worker.inflight import InFlight
from streamlib.worker.lanes import Lanes
from streamlib.worker.parts import Parts
from streamlib.worker.work import Ended

logger = logging.getLogger(__name__)
_POLL_S = 0.002
_LATER_S = 1.0


class Steps(Struct, frozen=True, kw_only=True):
    """What the consumer does with an event, suspect or not."""

    claim: Callable[[Sequence[Delivery]], Awaitable[list[Claimed]]]
    """Claims suspects, once: raises what the client raises."""
    sort: Callable[[Received, Lanes | None, Claimed], None]
    leave: Callable[[Received], None]
    start: Callable[[Received, Lanes | None], None]
    settle: Callable[[Delivery, Ended], None]
    lanes_of: Callable[[Received], Lanes | None]
    bury: Callable[[Received, Failure, str], Ended]
    aside: Callable[[Delivery], None]
    resumed: Callable[[Received], bool]
    """Whether it is still this worker's to run."""
    fenced: Callable[[Received, Lanes], None]
    """Its partition is another worker's."""
    room: Callable[[Lanes], int]
    """How many more may be claimed for these lanes."""
    may_claim: Callable[[], bool]
    """Whether anything may be claimed without a permit: not while the group is paused, drains, or has limits."""


class Suspects:
    """A claim that has run out is looked at again after a third of the lease, more than a renewal period: while a
    server hangs everybody's leases run out at once, and the living renew theirs when it wakes."""

    def __init__(self, parts: Parts, steps: Steps) -> None:
        self._parts = parts
        self._steps = steps
        self._queue: asyncio.Queue[tuple[Received, Lanes, float]] = asyncio.Queue()

    def put(self, received: Received, lanes: Lanes) -> None:
        confirm_at = time.monotonic() + self._parts.settings.lease_ms / 3000
        self._queue.put_nowait((received, lanes, confirm_at))

    async def run(self, one_at_a_time: asyncio.Lock) -> None:
        """Until cancelled. An event whose partition is out of reach lets the others go first."""
        while True:
            received, lanes, confirm_at = await self._queue.get()
            await self._parts.gate.wait_open()
            await asyncio.sleep(max(confirm_at - time.monotonic(), 0.0))
            await self._parts.limiter.take_one()  # before the lock: a group that waits for it keeps no other waiting
            async with one_at_a_time:
                if not self._steps.resumed(received):
                    self._parts.limiter.unused(1)
                elif not await self.run_one(received, lanes):
                    self._parts.limiter.unused(1)
                    self._steps.aside(received.delivery)
                    self._queue.put_nowait((received, lanes, time.monotonic() + _LATER_S))

    async def run_one(self, received: Received, lanes: Lanes) -> bool:
        """Claim it, run it and wait for its end; False when Redis did not answer the claim."""
        delivery, handler, steps = received.delivery, lanes.handler, self._steps
        try:
            answer = (await steps.claim([delivery]))[0]
        except Fenced:
            steps.fenced(received, lanes)
            return True
        except CLIENT_ERRORS as error:
            error_class = classify(error)
            if error_class not in RETRYABLE | {ErrorClass.CONFIG}:
                raise
            self._parts.on_error(error_class.value, error)
            return False
        if answer.verdict is not Verdict.RUN:
            steps.sort(received, lanes, answer)
            return True
        steps.leave(received)
        started = steps.lanes_of(received)
        if (failure := self._why_not(answer.number, lanes, started)) is not None:
            self._parts.limiter.unused(1)
            steps.settle(delivery, steps.bury(received, failure, handler.name))
        else:
            logger.warning("suspect_runs_alone", extra={"event_id": delivery.event_id, "workers_died": answer.number})
            steps.start(received, started)
            self._parts.limiter.unused(1 if started is None else 0)
        key = InFlight.key(delivery, self._parts.group.group)
        # It has run when its outcome waits for a partition that is out of reach: the next one need not wait for that.
        while key in self._parts.inflight and not self._parts.settling.stuck(delivery):  # noqa: ASYNC110 - rare
            await asyncio.sleep(_POLL_S)
        return True

    def _why_not(self, died: int, lanes: Lanes, started: Lanes | None) -> Failure | None:
        limit = self._parts.settings.crash_limit
        if died >= limit:
            crash = RuntimeError(f"{died} workers died while they held this event (crash_limit {limit})")
            return Failure.of("crash", crash)
        if died and lanes.handler.rerun == "never" and started is not None:
            unknown = RuntimeError("its worker died while it ran, and its handler must not run twice")
            return Failure.of("outcome_unknown", unknown)
        return None
