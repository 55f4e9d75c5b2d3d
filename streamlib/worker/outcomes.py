"""What an ending of user code means for its event: exactly one outcome."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Sequence

from streamlib.codec import Fields
from streamlib.errors import PublishError, RedisUnavailable, Reject, RetryLater, StreamlibError
from streamlib.redisio.dead_letter import Failure, Reason
from streamlib.redisio.delivery import Delivery
from streamlib.redisio.settler import bury, done, give_back, halt, retry
from streamlib.worker.circuit import Circuit
from streamlib.worker.work import Ended, Group, Work

logger = logging.getLogger(__name__)
_OUTAGE_MS = 1_000


class HandlerReturned(StreamlibError):
    """A handler returned something; success is None, failure is an exception."""


class HandlerTimeout(StreamlibError):
    """A run took longer than the handler's timeout."""


class Outcomes:
    """Turns endings of runs of one group into outcomes."""

    def __init__(self, group: Group, rng: random.Random, circuit: Circuit) -> None:
        self.circuit = circuit
        self._group = group
        self._rng = rng

    def done(self, work: Work, emitted: Sequence[Fields], seconds: float | None = None) -> Ended:
        """A run that ended well, after `seconds` (None: those of the work)."""
        if self.circuit.failed:
            self.circuit.succeeded(work)
        delivery, took = work.delivery, work.seconds if seconds is None else seconds
        return Ended(done(delivery, emitted), "ok", work.handler.name, took, None, delivery.attempts + 1)

    def of_error(self, work: Work, error: BaseException, seconds: float) -> Ended | None:
        """The outcome of a run that raised; None where nothing may be recorded."""
        if self.is_ours(work, error):
            return self.cancelled(work)
        policy, attempts = work.handler.retry, work.delivery.attempts + 1
        if isinstance(error, Reject | HandlerReturned):
            return self._bury(work, Failure.of("rejected", error), seconds)
        never = work.handler.rerun == "never"
        if not never and isinstance(error, PublishError) and isinstance(error.__cause__, RedisUnavailable):
            later = retry(work.delivery, delay_ms=_OUTAGE_MS, attempts=work.delivery.attempts)
            return Ended(later, "released", work.handler.name)  # not its fault: no attempt is spent
        spends = isinstance(error, RetryLater) or self.circuit.spends(work, error)
        last = spends and attempts >= policy.max_attempts
        if last or never:
            reason: Reason = "max_attempts" if last else "outcome_unknown"
            return self._bury(work, Failure.of(reason, error), seconds)
        asked_s = error.delay if isinstance(error, RetryLater) else None
        delay_ms = policy.delay_ms(attempts, self._rng) if asked_s is None else int(asked_s * 1000)
        return self._retry(work, error, delay_ms, seconds, attempts if spends else work.delivery.attempts)

    def is_ours(self, work: Work, error: BaseException) -> bool:
        """Whether we cancelled this run; a CancelledError that user code made up is an error like others."""
        return isinstance(error, asyncio.CancelledError) and (work.cancelled or work.lost)

    def unstarted(self, work: Work) -> Ended:
        """The worker stops before this one ran: others shall run it at once, its attempt unspent."""
        return Ended(give_back(work.delivery, claimed=True), "released", work.handler.name)

    def cancelled(self, work: Work) -> Ended | None:
        """Cancelled by us: the claim was lost, or the worker stops and others shall run the event at once."""
        if work.lost or not work.handler.is_async:
            return None
        if work.handler.rerun == "never":
            error = StreamlibError("the worker stopped while it ran, and its handler must not run twice")
            return self._bury(work, Failure.of("outcome_unknown", error), None)
        return Ended(give_back(work.delivery, claimed=True), "released", work.handler.name)

    def _retry(self, work: Work, error: BaseException, delay_ms: int, seconds: float, attempts: int) -> Ended:
        """It comes again; `attempts` are spent by then."""
        failure = Failure.of("max_attempts", error)
        logger.info(
            "retry_scheduled",
            extra={
                "handler": work.handler.name, "event_id": work.delivery.event_id, "attempt": attempts,
                "delay_ms": delay_ms, "error": failure.error,
            },
        )  # fmt: skip
        settlement = retry(work.delivery, delay_ms=delay_ms, attempts=attempts, error=failure.error)
        return Ended(settlement, "retry", work.handler.name, seconds, failure, attempts)

    def _bury(self, work: Work, failure: Failure, seconds: float | None) -> Ended:
        attempts = work.delivery.attempts + 1
        return bury_as_dead(work.delivery, failure, self._group, work.handler.name, attempts, seconds)


def bury_as_dead(
    delivery: Delivery, failure: Failure, group: Group, handler: str, attempts: int, seconds: float | None = None
) -> Ended:
    """The outcome that puts a delivery among the dead letters, or halts its key; said in the log too."""
    now_ms = int(time.time() * 1000)
    end = halt if group.halts else bury
    settlement = end(delivery, failure, attempts=attempts, group=group.group, consumer=group.consumer, now_ms=now_ms)
    logger.warning(
        "key_halted" if group.halts else "dead_lettered",
        extra={
            "topic": group.topic, "group": group.group, "handler": handler, "event_id": delivery.event_id,
            "entry_id": delivery.origin_id, "reason": failure.reason, "error": failure.error,
        },
    )  # fmt: skip
    return Ended(settlement, "halted" if group.halts else "dead", handler, seconds, failure, attempts)
