"""Moves delayed events of one partition into its stream when they are due; any worker may."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable

from streamlib.keys import StreamKeys
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.later import promote_later

logger = logging.getLogger(__name__)
_LEADING_S = 0.5
_IDLE_S = 5.0
_SOONEST_S = 0.002


class LaterMover:
    """Looks at least twice a second where this worker leads, for any producer may have published meanwhile what is due
    sooner. Elsewhere others do, and it looks now and then, should they not."""

    def __init__(self, door: RedisDoor, keys: StreamKeys, leads: Callable[[], bool]) -> None:
        self._door = door
        self._keys = keys
        self._leads = leads

    @property
    def stream(self) -> str:
        return self._keys.stream

    async def run_once(self) -> float:
        """Move what is due now; seconds until something may be due again."""
        moved = await promote_later(self._door, self._keys)
        for event_id in moved.refused:
            logger.error("delayed_event_unreadable", extra={"key": self._keys.later_body(), "event_id": event_id})
        if moved.next_ms == 0:
            return 0.0
        idle_s = _LEADING_S if self._leads() else _IDLE_S
        idle_s *= random.uniform(0.8, 1.0)  # workers that started together need not ask together
        return idle_s if moved.next_ms < 0 else min(max(moved.next_ms / 1000, _SOONEST_S), idle_s)
