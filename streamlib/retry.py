"""When a failed event runs again, and when a group waits because all its events fail: exponential backoff with full
jitter, capped."""

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
        return _jittered_ms(self.base, self.cap, attempt, rng)


class Breaker(Struct, frozen=True, kw_only=True):
    """A circuit breaker for what the handlers of a group call; each process has its own.

    It opens when `failures` runs in a row have ended with an exception or a timeout, whatever their events. While it is
    open the group's events wait in Redis. After a pause, drawn evenly from 0 to `pause` seconds, one event runs as a
    probe: its success closes the breaker, its failure doubles the next pause's range, up to `cap`.

    What fails while the breaker is not closed comes again without having spent an attempt. That ends after `patience`
    seconds: failed probes spend attempts from then on, for an event that always fails and has no neighbours must find
    its end. `Reject` and `RetryLater` are a handler's own decisions: they neither count nor reset the count.
    """

    failures: int = 20
    pause: float = 5.0
    cap: float = 60.0
    patience: float = 86_400.0

    def __post_init__(self) -> None:
        if not 1 <= self.failures <= 1_000_000:
            raise DeclarationError(f"Breaker(failures={self.failures}): 1 to 1000000 runs in a row")
        if not 0 < self.pause <= self.cap <= 86_400:
            raise DeclarationError(f"Breaker(pause={self.pause}, cap={self.cap}): 0 < pause <= cap <= 86400 seconds")
        if not 0 <= self.patience <= 30 * 86_400:
            raise DeclarationError(f"Breaker(patience={self.patience}): 0 to 2592000 seconds")

    def pause_ms(self, opening: int, rng: random.Random) -> int:
        """Milliseconds to wait before the next probe; `opening` is 1 at first, and one more after each failed probe."""
        return _jittered_ms(self.pause, self.cap, opening, rng)


def _jittered_ms(base: float, cap: float, n: int, rng: random.Random) -> int:
    """The n-th delay, from 1."""
    return int(rng.uniform(0, min(cap, base * 2.0 ** min(n - 1, 64))) * 1000)
