"""Limits of a group over all its workers: what is declared, and the script that gives permits away."""

from __future__ import annotations

import re

from msgspec import Struct

from streamlib.errors import DeclarationError
from streamlib.redisio.connection import SyncClient
from streamlib.redisio.scripts import Arg, Executes, Script

_admit = Script("admit")
_RATE = re.compile(r"([1-9]\d{0,8})\s*/\s*([smhd])")
_PERIODS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
MAX_AT_ONCE = 1_000_000
HORIZON_US = 100_000
LATE_US = 50_000
"""How late a start may come after its time, by the claim before it: intervals are longer for it, so that starts which
were late and starts which were not never make more than the rate in one period."""


class Rate(Struct, frozen=True):
    """At most so many starts in any so many seconds, evenly spread."""

    starts: int
    period_s: int

    @property
    def per_second(self) -> float:
        return self.starts / self.period_s

    @property
    def interval_us(self) -> float:
        return (self.period_s * 1_000_000 + LATE_US) / self.starts


class Limits(Struct, frozen=True):
    """What all workers of a group together may do; None sets no bound."""

    rate: Rate | None = None
    concurrency: int | None = None

    @property
    def any(self) -> bool:
        return self.rate is not None or self.concurrency is not None


class Grant(Struct, frozen=True):
    """An answer: permits, start times and the seconds until the first of them, ms until asking again may help, and how
    many other workers wait."""

    permits: int
    slots: int
    first_s: float
    again_ms: int
    waiting: int


class Request(Struct, frozen=True):
    """What one worker asks for; see admit.lua."""

    number: int
    busy: int
    want: int
    slots_left: int


def parse_rate(where: str, text: str) -> Rate:
    """ "100/s", "5/m", "1000/h" or "10/d". Raises DeclarationError."""
    found = _RATE.fullmatch(str(text).strip())
    if not found:
        raise DeclarationError(f"{where}: rate={text!r}; write a number and a period, s, m, h or d: rate='100/s'")
    return Rate(int(found[1]), _PERIODS_S[found[2]])


def read_limits(where: str, rate: str | None, concurrency: int | None) -> Limits:
    """The limits as declared. Raises DeclarationError."""
    if concurrency is not None and (isinstance(concurrency, bool) or not 1 <= concurrency <= MAX_AT_ONCE):
        raise DeclarationError(f"{where}: group_concurrency={concurrency!r}, not 1 to {MAX_AT_ONCE}")
    return Limits(None if rate is None else parse_rate(where, rate), concurrency)


async def admit(
    redis: Executes, key: str, limits: Limits, request: Request, *, worker_id: str, lease_ms: int
) -> Grant | None:
    """Ask for permits; None when a later request of this worker came first. Every try needs a number of its own."""
    reply = await _admit.run(redis, [key], _args(limits, request, worker_id, lease_ms))
    if reply is None:
        return None
    permits, slots, first_us, again_ms, waiting = reply
    return Grant(permits, slots, first_us / 1_000_000, again_ms, waiting)


def keep_share(client: SyncClient, key: str, limits: Limits, *, worker_id: str, lease_ms: int) -> None:
    """From a thread: hold what this worker holds for another lease."""
    _admit.run_sync(client, [key], _args(limits, Request(0, 0, 0, 0), worker_id, lease_ms))


def _args(limits: Limits, request: Request, worker_id: str, lease_ms: int) -> list[Arg]:
    return [
        worker_id,
        request.number,
        request.busy,
        request.want,
        request.slots_left,
        lease_ms,
        limits.concurrency or 0,
        limits.rate.interval_us if limits.rate else 0,
        HORIZON_US,
    ]
