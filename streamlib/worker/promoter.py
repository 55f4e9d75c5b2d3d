"""Brings due retries back into the stream that the group reads."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from streamlib.keys import StreamKeys
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.retries import promote

_IDLE_S = 0.5
_SOONEST_S = 0.005
_AT_ONCE = 16


class Promoter:
    """Any worker may promote any partition: each move is one script."""

    def __init__(self, door: RedisDoor, partitions: Sequence[StreamKeys], group: str) -> None:
        self._door = door
        self._partitions = partitions
        self._group = group

    async def run_once(self) -> float:
        """Promote what is due now; seconds until something may be due again."""
        waits_s = [_IDLE_S]
        for start in range(0, len(self._partitions), _AT_ONCE):
            some = self._partitions[start : start + _AT_ONCE]
            answers = await asyncio.gather(*(promote(self._door, keys, self._group) for keys in some))
            waits_s += [max(next_ms / 1000, _SOONEST_S) for _, next_ms in answers if next_ms >= 0]
        return min(waits_s)
