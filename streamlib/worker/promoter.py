"""Brings due retries back into the stream that the group reads."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Sequence

from streamlib.keys import StreamKeys
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.retries import promote

IDLE_S = 5.0
_SOONEST_S = 0.005


class Promoter:
    """Any worker may promote any partition: each move is one script.

    Whoever schedules a retry expects it, so it is promoted when it is due. The look every few seconds is for retries of
    workers that are gone: more often it would cost every worker its time for each partition, idle ones too.
    """

    def __init__(self, door: RedisDoor, partitions: Sequence[StreamKeys], group: str) -> None:
        self._door = door
        self._partitions = partitions
        self._group = group
        self._next = [0.0] * len(partitions)
        self._sooner = [asyncio.Event() for _ in partitions]

    def expect(self, number: int, delay_s: float) -> None:
        """A retry of this partition will be due after so long."""
        due = time.monotonic() + delay_s
        if due < self._next[number]:
            self._next[number] = due
            self._sooner[number].set()

    async def run_once(self, number: int) -> float:
        """Promote what is due now in one partition, then wait until something may be due again."""
        self._next[number] = time.monotonic() + IDLE_S * random.uniform(0.8, 1.0)
        _, next_ms = await promote(self._door, self._partitions[number], self._group)
        if next_ms >= 0:
            self.expect(number, max(next_ms / 1000, _SOONEST_S))
        while (left_s := self._next[number] - time.monotonic()) > 0:
            self._sooner[number].clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._sooner[number].wait(), left_s)
        return 0.0
