"""Paces work that is done in batches: not more of it per time than was asked for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

AT_ONCE = 500
"""The largest batch."""


class Pace:
    """`wait()`, do at most `at_once`, `spend()` what was done. Without a rate nothing waits.

    The first batch goes at once, each further one when the time of those before it is over; time that was not used is
    not made up for.
    """

    def __init__(
        self,
        per_second: float | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.at_once = AT_ONCE if per_second is None else max(1, min(AT_ONCE, int(per_second / 10)))
        self._per_second = per_second
        self._clock = clock
        self._sleep = sleep
        self._free_at = clock()

    async def wait(self) -> None:
        """Until the next batch may go."""
        while (ahead_s := self._free_at - self._clock()) > 0:
            await self._sleep(ahead_s)

    def spend(self, done: int) -> None:
        """So many were done now."""
        if self._per_second is not None:
            self._free_at = max(self._free_at, self._clock()) + done / self._per_second
