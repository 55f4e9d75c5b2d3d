"""The circuit breaker of one group in one process: whether its events are started, and whether failing costs them."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Protocol

from streamlib.metrics.worker import GroupMetrics
from streamlib.redisio.dead_letter import Failure
from streamlib.retry import Breaker
from streamlib.worker.pausing import BREAKER, Gate
from streamlib.worker.work import Group, Work

logger = logging.getLogger(__name__)


class Clock(Protocol):
    """An event loop is one."""

    def time(self) -> float: ...

    def call_later(self, delay: float, callback: Callable[[], None]) -> asyncio.TimerHandle: ...


class Circuit:
    """Closed, until `failures` runs in a row have failed; then open, which closes the group's gate; after a pause
    half-open: `Admission` lets one event through, the probe, whose end closes or opens it. One that has not ended
    within `cap` keeps the next one waiting no longer: what hung up in an outage says nothing of what came after it.

    Without a policy it stays closed. Once it has left that state, runs that began before decide nothing any more.
    """

    def __init__(
        self,
        policy: Breaker | None,
        gate: Gate,
        group: Group,
        metrics: GroupMetrics,
        rng: random.Random,
        clock: Callable[[], Clock] = asyncio.get_running_loop,
    ) -> None:
        self.failed = 0
        """Runs that failed in a row; 0 tells that a success changes nothing."""
        self.half_open = False
        self.on_probe: Callable[[], None] = _nobody
        """Hears that another probe may start."""
        self._policy = policy
        self._gate = gate
        self._fields = {"topic": group.topic, "group": group.group}
        self._metrics = metrics
        self._rng = rng
        self._clock = clock
        self._openings = 0
        self._since = self._next_probe_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        if policy is not None:
            metrics.breaker(False)

    @property
    def closed(self) -> bool:
        return not self._openings

    @property
    def open(self) -> bool:
        """Nothing of the group may start."""
        return self._openings > 0 and not self.half_open

    def succeeded(self, work: Work) -> None:
        """A run ended well; nobody needs to tell while `failed` is 0."""
        if self.closed:
            self.failed = 0
        elif self.half_open and work.probe:
            self._close()

    def spends(self, work: Work, error: BaseException) -> bool:
        """A run failed; whether that spends an attempt of its event."""
        if self._policy is None:
            return True
        if self.closed:
            self.failed += 1
            if self.failed >= self._policy.failures:
                self._since = self._clock().time()
                self._metrics.breaker(True)
                self._open(self._policy, error)
            return True
        patient = self._clock().time() - self._since < self._policy.patience
        if self.half_open and work.probe:
            self._open(self._policy, error)
        return not patient

    def probes(self, under_way: int) -> int:
        """How many may start now while it is half-open, beside those under way."""
        return int(not under_way or self._clock().time() >= self._next_probe_at)

    def probing(self) -> None:
        """One is about to start."""
        if self._policy is not None:
            self._next_probe_at = self._clock().time() + self._policy.cap
            self._timer = self._clock().call_later(self._policy.cap, self.on_probe)

    def stop(self) -> None:
        """No probe any more: the worker ends."""
        if self._timer is not None:
            self._timer.cancel()

    def _open(self, policy: Breaker, error: BaseException) -> None:
        self._openings, self.half_open = self._openings + 1, False
        pause_ms = policy.pause_ms(self._openings, self._rng)
        failure = Failure.of("max_attempts", error).error
        told = {"failures": self.failed, "failed_probes": self._openings - 1, "pause_ms": pause_ms, "error": failure}
        logger.warning("breaker_opened", extra={**self._fields, **told})
        self._timer = self._clock().call_later(pause_ms / 1000, self._half_open)
        self._gate.set(is_open=False, by=BREAKER)

    def _half_open(self) -> None:
        self.half_open = True
        self._gate.set(is_open=True, by=BREAKER)

    def _close(self) -> None:
        told = {"failed_probes": self._openings - 1, "open_s": round(self._clock().time() - self._since, 1)}
        logger.info("breaker_closed", extra={**self._fields, **told})
        self.failed = self._openings = 0
        self.half_open = False
        self._metrics.breaker(False)


def _nobody() -> None:
    """Hears nothing."""
