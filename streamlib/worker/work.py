"""One run of one event, from its claim to what is recorded about it."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct, field

from streamlib.event import Event
from streamlib.message import Message, entry_time_ms
from streamlib.redisio.dead_letter import Failure
from streamlib.redisio.delivery import Delivery
from streamlib.redisio.marks import Marks
from streamlib.redisio.settler import Settlement
from streamlib.worker.handlers import HandlerSpec

NO_HANDLER = "-"
"""The handler label of an event that reached none."""


class Work(Struct, eq=False, gc=False):
    """A claimed, decoded event on its way to its handler. `lost` is set when another worker took the claim,
    `cancelled` when this one stops waiting for the handler, `timed_out` when that has run for too long. `probe` is set
    where its end tells whether others may start again (`Circuit`). `started` is the clock (perf_counter) when its
    handler was called, 0 while none runs; `seconds` is how long it ran."""

    delivery: Delivery
    message: Message
    event: Event
    handler: HandlerSpec
    lost: bool = False
    cancelled: bool = False
    timed_out: bool = False
    probe: bool = False
    started: float = 0.0
    seconds: float = 0.0


class Ended(Struct, frozen=True, eq=False, gc=False):
    """The one outcome of a delivery: what is settled, and what the metrics hear when it is.

    `outcome` is one of ok, retry, dead, halted, skipped, duplicate, released; `seconds` is the handler's time, None if
    it did not run; `stored_ms` is the server's clock when the event was published.
    """

    settlement: Settlement
    outcome: str
    handler: str = NO_HANDLER
    seconds: float | None = None
    failure: Failure | None = None
    attempts: int = 0
    elsewhere: bool = False
    """Only other live workers of the group handle its type."""

    @property
    def stored_ms(self) -> int:
        return entry_time_ms(self.settlement.delivery.origin_id)


OnEnd = Callable[[Work, Ended | None], None]
"""Hears how a run ended; None where nothing may be recorded."""


class Group(Struct, frozen=True, kw_only=True):
    """Names that everything about one group in one process shares."""

    topic: str
    group: str
    worker_id: str
    consumer: str
    window_ms: int = field(default=3_600_000)
    marks: Marks | None = None
    """Where done marks are members of sets; None where they are keys."""
    halts: bool = False
    """Whether a key stands still at an event that would go to the dead letters."""
