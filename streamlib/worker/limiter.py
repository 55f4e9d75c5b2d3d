"""The permits of one group in one process: asked for in batches, used at once, given back soon."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable

from streamlib.metrics.worker import GroupMetrics
from streamlib.redisio.connection import RedisDoor, SyncClient
from streamlib.redisio.failures import CLIENT_ERRORS
from streamlib.redisio.limits import HORIZON_US, Grant, Limits, Request, admit, keep_share

UNLIMITED = 1_000_000_000
AHEAD_S = HORIZON_US / 1_000_000
_TURN_S = 0.1
"""While others wait, a permit is used again for so long; what then ends makes room for them."""
_LAPSE_S = 0.03
"""The rest of limits.LATE_US is for the claim."""
_TICK_S = 0.005
"""Permits of a fast rate become good in clumps, so that claims stay batches."""
_IDLE_S = 1.0
_SLOWEST_ASK_S = 0.05


class Limiter:
    """Each event of a limited group takes one permit before it is claimed and keeps it until its run ends.

    With a rate, a permit has a start time on the server's clock: it is good from then on for a moment and lapses. With
    a bound at once, a permit may be used again for a tenth of a second, and longer only while nobody else waits. While
    Redis does not answer there are no permits. Lives on the event loop, but for `keep`.
    """

    def __init__(
        self,
        door: RedisDoor,
        key: str,
        limits: Limits,
        *,
        worker_id: str,
        lease_ms: int,
        metrics: GroupMetrics,
    ) -> None:
        self.active = limits.any
        self.on_more: Callable[[], None] = _nobody
        """Hears that permits may have become available."""
        self._door = door
        self._key = key
        self._limits = limits
        self._worker_id = worker_id
        self._lease_ms = lease_ms
        self._metrics = metrics
        self._busy = 0
        self._held = self._fresh = 0
        self._slots: deque[float] = deque()
        self._ripe_at = 0.0
        self._usable_until = self._turn_until = 0.0
        self._want = self._reserved = 0
        self._number = self._empty_asks = self._waiting = 0
        self._asking = self._marked = False
        self._asked_at = self._ask_at = 0.0
        self._throttled_since: float | None = None
        self._wake = asyncio.Event()
        self._more = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    # -- for who starts events ------------------------------------------------------------------------------------

    @property
    def available(self) -> int:
        """How many events may be claimed and started now."""
        return max(self._free(time.monotonic()) - self._reserved, 0) if self.active else UNLIMITED

    def want(self, now: int, soon: int = 0) -> None:
        """`now` events could start beside those that have a permit, `soon` within AHEAD_S; 0 when nothing waits."""
        if not self.active:
            return
        self._count_throttled(now > 0)
        self._want = now if self._limits.concurrency else max(now, soon)
        self._wake.set()

    def take(self, n: int) -> None:
        """Use permits, at most `available`. Each is given back by `ended` or `unused`."""
        if not self.active or not n:
            return
        self._busy += n
        self._fresh = max(self._fresh - n, 0)
        for _ in range(n if self._limits.rate else 0):
            self._slots.popleft()

    async def take_one(self) -> None:
        """Wait for one permit, before others of this process, and use it."""
        if not self.active:
            return
        self._reserved += 1
        try:
            while self._free(time.monotonic()) < 1:
                self._more.clear()
                self._wake.set()
                await self._more.wait()
            self.take(1)
        finally:
            self._reserved -= 1

    def ended(self, n: int) -> None:
        """So many runs have ended."""
        if self.active:
            self._busy -= n
            self._wake.set()

    def unused(self, n: int) -> None:
        """So many permits were taken, and nothing was started with them."""
        if self.active and n:
            self.ended(n)
            if self._limits.rate:
                self._slots.extendleft([time.monotonic()] * n)
                self._tell()

    def ahead(self, startable: int, lanes: int, seconds: float) -> int:
        """How many events to read ahead: at most what may start here within `seconds`, where `lanes` could start
        `startable`; at least 1."""
        if self._limits.concurrency and self._limits.concurrency < lanes:
            startable = startable * self._limits.concurrency // lanes
        if self._limits.rate:
            startable = min(startable, int(self._limits.rate.per_second * seconds))
        return max(startable, 1)

    # -- asking ---------------------------------------------------------------------------------------------------

    async def run_once(self) -> float:
        """Ask Redis when that is due, or wait until it may be. Raises what the client raises."""
        self._wake.clear()
        wait_s = self._due(time.monotonic()) - time.monotonic()
        if wait_s <= 0:
            await self._ask()
        else:
            handle = asyncio.get_running_loop().call_later(wait_s, self._wake.set)
            try:
                await self._wake.wait()
            finally:
                handle.cancel()
        return 0.0

    def keep(self, client: SyncClient) -> None:
        """From the renewal thread: runs under way keep their permits, also while the event loop is blocked."""
        if self._limits.concurrency and self._busy > 0:
            keep_share(client, self._key, self._limits, worker_id=self._worker_id, lease_ms=self._lease_ms)

    async def close(self) -> None:
        """After the loop has ended: give back what is not in use. Where Redis does not answer it lapses."""
        if self._timer is not None:
            self._timer.cancel()
        self._count_throttled(False)
        if self._held > 0 or self._marked:
            self._want = self._reserved = 0
            try:
                await self._ask()
            except CLIENT_ERRORS:
                return

    def _due(self, now: float) -> float:
        """When to ask next, monotonic seconds."""
        wanted = self._want + self._reserved
        due = now + _IDLE_S
        if wanted > self._at_hand(now) or (self._marked and not wanted):
            due = min(due, self._ask_at)
        if self._limits.concurrency and self._held > 0:
            due = min(due, self._asked_at + self._lease_ms / 4000)
            idle = self._held - self._busy
            if idle > 0:
                turn_ended = now >= self._turn_until and idle > self._fresh
                if self._waiting and (turn_ended or not wanted):
                    return now
                due = min(due, self._usable_until if now >= self._turn_until else self._turn_until)
        return due

    async def _ask(self) -> None:
        self._number += 1
        now = self._asked_at = time.monotonic()
        self._forget_lapsed(now)
        self._count_throttled(self._throttled_since is not None)
        want = self._want + self._reserved
        request = Request(self._number, self._busy, want, len(self._slots))
        self._asking = True
        self._usable_until = 0.0
        try:
            grant = await admit(
                self._door, self._key, self._limits, request, worker_id=self._worker_id, lease_ms=self._lease_ms
            )
        finally:
            self._asking = False
        if grant is not None:
            self._take_over(request, grant, now)

    def _take_over(self, request: Request, grant: Grant, asked_at: float) -> None:
        now = time.monotonic()
        self._waiting = grant.waiting
        if self._limits.concurrency:
            self._held, self._fresh = request.busy + grant.permits, grant.permits
            self._usable_until = asked_at + _TURN_S
            if not grant.waiting or (grant.permits and not request.busy):
                self._turn_until = self._usable_until
        if self._limits.rate:
            interval_s = self._limits.rate.interval_us / 1_000_000
            self._slots.extend(now + grant.first_s + n * interval_s for n in range(grant.slots))
        self._marked = grant.permits < request.want
        self._empty_asks = self._empty_asks + 1 if self._marked and not grant.permits else 0
        if self._marked:
            asked_s = grant.again_ms / 1000
            slower_s = min(asked_s * 1.2**self._empty_asks, _SLOWEST_ASK_S)
            self._ask_at = now + max(asked_s, slower_s) * random.uniform(0.9, 1.1)
        else:
            self._ask_at = now
        self._tell()

    # -- what is at hand ------------------------------------------------------------------------------------------

    def _free(self, now: float) -> int:
        """Permits that are good now."""
        free = self._permits(now)
        if self._limits.rate:
            self._forget_lapsed(now)
            free = min(free, sum(slot <= self._ripe_at for slot in self._slots))
        return free

    def _at_hand(self, now: float) -> int:
        """Permits that are good now or will be without asking."""
        free = self._permits(now)
        if self._limits.rate:
            self._forget_lapsed(now)
            free = min(free, len(self._slots))
        return free

    def _permits(self, now: float) -> int:
        if not self._limits.concurrency:
            return UNLIMITED
        if self._asking or now >= self._usable_until:
            return 0
        idle = max(self._held - self._busy, 0)
        return idle if now < self._turn_until else min(idle, self._fresh)

    def _forget_lapsed(self, now: float) -> None:
        while self._slots and self._slots[0] < now - _LAPSE_S:
            self._slots.popleft()

    def _tell(self) -> None:
        """Say that permits may be there, now and at each start time to come."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._ripe_at = time.monotonic()
        if self._free(now) > 0:
            self._more.set()
            self.on_more()
        coming = next((slot for slot in self._slots if slot > now), None)
        if coming is not None:
            after_s = max(coming - now, _TICK_S)
            self._timer = asyncio.get_running_loop().call_later(after_s, self._tell)

    def _count_throttled(self, throttled: bool) -> None:
        now = time.monotonic()
        if self._throttled_since is not None:
            self._metrics.throttled(now - self._throttled_since)
        self._throttled_since = now if throttled else None


def _nobody() -> None:
    """Hears nothing."""
