"""Claims under way, one task per partition: one that is not answered holds up its own partition only."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from msgspec import Struct

from streamlib.worker.lanes import Lanes

_SLOW_S = 0.25


class _Claim(Struct, eq=False):
    task: asyncio.Task[None]
    taken: Counter[Lanes]
    timer: asyncio.TimerHandle


class Claiming:
    """What is being claimed counts as taken from its lanes, so that no more is claimed than there is room for.

    A claim that has no answer after a quarter of a second is slow: it takes no room from the other partitions any more.
    `on_change` hears when a claim ends or turns slow.
    """

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._claims: dict[int, _Claim] = {}
        self._others: set[asyncio.Task[None]] = set()
        self._bug: BaseException | None = None
        self.slow: set[int] = set()
        """Partitions whose claim is slow."""

    @property
    def partitions(self) -> set[int]:
        """Partitions that have a claim under way: no other one starts there meanwhile."""
        return set(self._claims)

    def taken(self, lanes: Lanes) -> int:
        """How many events are being claimed for these lanes, by claims that are not slow."""
        return sum(claim.taken[lanes] for claim in self._claims.values())

    def start(self, partition: int, taken: Counter[Lanes], claim: Coroutine[Any, Any, None]) -> None:
        """Run the claim of a partition that has none under way."""
        task = asyncio.get_running_loop().create_task(claim)
        timer = asyncio.get_running_loop().call_later(_SLOW_S, self._turns_slow, partition)
        self._claims[partition] = _Claim(task, taken, timer)
        task.add_done_callback(lambda task: self._ended(partition, task))

    def beside(self, step: Coroutine[Any, Any, None]) -> None:
        """Run a step of admission that no lane has to wait for."""
        task = asyncio.get_running_loop().create_task(step)
        self._others.add(task)
        task.add_done_callback(self._other_ended)

    def raise_bug(self) -> None:
        """Raise what ended a claim: errors of the client are retried, so this is a bug of ours."""
        if self._bug is not None:
            raise self._bug

    async def finish(self) -> None:
        """Wait until nothing is under way; cancelled, cancel all that is."""
        try:
            while tasks := self._tasks():
                await asyncio.wait(tasks)
                self.raise_bug()
        finally:
            if tasks := self._tasks():
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)

    def _tasks(self) -> set[asyncio.Task[None]]:
        every = {claim.task for claim in self._claims.values()} | self._others
        return {task for task in every if not task.done()}

    def _turns_slow(self, partition: int) -> None:
        self.slow.add(partition)
        self._claims[partition].taken.clear()
        self._on_change()

    def _ended(self, partition: int, task: asyncio.Task[None]) -> None:
        self._claims.pop(partition).timer.cancel()
        self.slow.discard(partition)
        self._other_ended(task)

    def _other_ended(self, task: asyncio.Task[None]) -> None:
        self._others.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._bug = error
        self._on_change()
