"""When a failed event runs again: exponential backoff with full jitter, capped."""

from __future__ import annotations

import random

from msgspec import Struct

from streamlib.errors import DeclarationError


class Retry(Struct, frozen=True, kw_only=True):
    """The retry policy of a handler.

    `max_attempts` counts every run, the first included. The delay before attempt n+1 is drawn evenly from
    0 to min(cap, base * 2**(n-1)) seconds ("full jitter": Exponential Backoff And Jitter, AWS, 2015), so that
    many events which failed together do not come back together.
    """

    max_attempts: int = 8
    base: float = 0.5
    cap: float = 300.0

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise DeclarationError(f"Retry(max_attempts={self.max_attempts}): at least 1, the first run")
        if not 0 <= self.base <= self.cap <= 30 * 86_400:
            raise DeclarationError(f"Retry(base={self.base}, cap={self.cap}): 0 <= base <= cap <= 2592000 seconds")

    def delay_ms(self, attempt: int, rng: random.Random) -> int:
        """Milliseconds to wait after attempt number `attempt` (1 for the first run) has failed."""
        ceiling = min(self.cap, self.base * 2.0 ** min(attempt - 1, 64))
        return int(rng.uniform(0, ceiling) * 1000)
