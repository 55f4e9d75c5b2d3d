"""Brings due retries back into the stream that the group reads."""

from __future__ import annotations

from collections.abc import Sequence

from streamlib.keys import StreamKeys
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.retries import promote

_IDLE_S = 0.5
_SOONEST_S = 0.005


class Promoter:
    """Any worker may promote any partition: each move is one script."""

    def __init__(self, door: RedisDoor, partitions: Sequence[StreamKeys], group: str) -> None:
        self._door = door
        self._partitions = partitions
        self._group = group

    async def run_once(self, number: int) -> float:
        """Promote what is due now in one partition; seconds until something may be due again."""
        _, next_ms = await promote(self._door, self._partitions[number], self._group)
        return min(max(next_ms / 1000, _SOONEST_S), _IDLE_S) if next_ms >= 0 else _IDLE_S
