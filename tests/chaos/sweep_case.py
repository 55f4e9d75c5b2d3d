"""One case of the crash sweep: whose message is caught, which, at what moment, and what is then done to its sender."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from msgspec import Struct

from tests.chaos.conftest import LEASE_MS
from tests.helpers.proxy import ChaosProxy
from tests.helpers.waiting import wait_until
from tests.helpers.wire import Moment, script_words
from tests.helpers.workers import WorkerProc

EFFECT = "(effect)"
"""The outside effect of a handler, in the place of a script."""
DRAIN = "drain"
"""The moment before an effect, in a process that has been told to end."""
MOMENTS, FAULTS, TAKEN = ("before", "after"), ("kill", "stop", "lost"), "taken"
RECOVERS_S = 30.0
"""Within so long everything must have gone on: the lease, the time to reclaim, and what a loaded machine takes."""
FROZEN_S = 1.5 * LEASE_MS / 1000


class Case(Struct, frozen=True, order=True):
    """`sender` is the worker or a deed of tests/chaos/sweep_deeds.py, `point` the script or EFFECT, `moment` one of
    MOMENTS or DRAIN. `fault` is SIGKILL, SIGSTOP past the lease until others have done all, the loss of the message, or
    TAKEN: SIGSTOP until another has taken over and is at it."""

    sender: str
    point: str
    moment: str
    fault: str
    nth: int = 1
    """Which sending of it is struck."""

    def __str__(self) -> str:
        return f"{self.sender}: {self.point} ({self.nth}), {self.moment}, {self.fault}"

    @property
    def is_frozen(self) -> bool:
        return self.fault in ("stop", TAKEN)

    @property
    def words(self) -> Collection[bytes]:
        """What names the request on the wire."""
        return {b"RPUSH"} if self.point == EFFECT else script_words(self.point)

    @property
    def caught_at(self) -> Moment:
        return "after" if self.moment == "after" else "before"


def strike(case: Case, road: ChaosProxy, sender: WorkerProc, meanwhile: Callable[[], None]) -> None:
    """Do the fault to the process whose message is held. `meanwhile` is what others do while it stands still."""
    if case.fault == "kill":
        sender.kill9()
        road.lose_caught()
    elif case.fault == "lost":
        road.lose_caught()
    else:
        sender.stop()
        until_s = time.monotonic() + FROZEN_S
        meanwhile()
        wait_until(lambda: time.monotonic() > until_s, 2 * FROZEN_S, what="its lease is over")
        road.deliver_caught()
        sender.cont()
