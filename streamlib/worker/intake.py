"""How events come into a unit: what it asks of the two ways, reads shared by all workers and partitions with owners."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from collections.abc import Set as AbstractSet
from typing import Any, Protocol

from streamlib.worker.consumer import Consumer
from streamlib.worker.inbox import Waits
from streamlib.worker.work import Ended, Work

Numbers = AbstractSet[int]
"""Of partitions."""
_NONE: Numbers = frozenset()

Loop = Callable[[str, Callable[[], Awaitable[float]], Callable[[], bool]], Coroutine[Any, Any, None]]
"""(name, step, stopping) -> the loop that repeats the step through whatever Redis answers."""


class Intake(Protocol):
    """Reads for one group in one process, and feeds its consumer."""

    @property
    def inbox(self) -> Waits | None:
        """Where entries wait; None for the consumer's own."""
        ...

    def attach(self, consumer: Consumer) -> None:
        """Feed this consumer."""
        ...

    def settled(self, ended: Ended, counts: bool) -> None:
        """An outcome was settled, or its lease was lost."""
        ...

    def fenced(self, partition: int, epoch: int) -> None:
        """A script said that this partition is another worker's by now."""
        ...

    def may_start(self, work: Work) -> bool:
        """Whether what was claimed may still start."""
        ...

    def start(self, loop: Loop) -> list[asyncio.Task[None]]:
        """Start the loops; none of them ends by itself but through a bug."""
        ...

    async def stop(self) -> None:
        """Read nothing more."""
        ...

    async def leave(self, grace_s: float) -> bool:
        """After everything was settled: let others have what was this process's. False if time ran out."""
        ...

    @property
    def halted(self) -> list[tuple[int, str]]:
        """Partition and key of each key that waits for an operator here."""
        ...

    @property
    def halted_events(self) -> int:
        """How many events wait with them."""
        ...

    @property
    def stands_still(self) -> bool:
        """Whether halted keys are all that is left, also where more waits behind them than may be read."""
        ...

    def polled_within(self, seconds: float, silent: Numbers = _NONE, heard: Numbers = _NONE) -> bool:
        """Whether Redis answered reads of some partition lately, or there is nothing to read.

        `silent` partitions do not count: what is asked for them is refused. While there are any, one that we do not
        want to read counts if it was `heard` of lately.
        """
        ...
