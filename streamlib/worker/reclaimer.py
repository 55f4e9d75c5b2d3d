"""Finds entries that lie in the pending list of workers that are gone, and brings them in."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence

from streamlib.keys import StreamKeys
from streamlib.metrics.worker import GroupMetrics
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.reader import Reader
from streamlib.settings import WorkerSettings
from streamlib.worker.consumer import Consumer

logger = logging.getLogger(__name__)
_COUNT = 100


class Reclaimer:
    """Walks the pending lists of every partition with a kept cursor, a page at a time.

    Living workers renew every quarter of the lease, so what nobody touched for two thirds of one is worth a look. Who
    may run it, and when, is for the claim to say.
    """

    def __init__(
        self,
        door: RedisDoor,
        reader: Reader,
        consumer: Consumer,
        partitions: Sequence[StreamKeys],
        settings: WorkerSettings,
        metrics: GroupMetrics,
    ) -> None:
        self._door = door
        self._reader = reader
        self._consumer = consumer
        self._settings = settings
        self._metrics = metrics
        self._cursors = {(number, again): "0-0" for number in range(len(partitions)) for again in (True, False)}

    async def run_once(self) -> float:
        """Take over one page of each pending list; seconds until the next round.

        A backlog that keeps the inbox full must not keep the dead's work waiting, so this has room of its own.
        """
        more = False
        for place in list(self._cursors):
            count = self._consumer.room_to_reclaim
            if count <= 0:
                break
            more |= await self._page(place, min(count, _COUNT))
            self._cursors[place] = self._cursors.pop(place)  # to the end: the next round starts where this one ended
        return (0.0 if more else self._settings.reclaim_ms / 1000) * random.uniform(0.8, 1.2)

    async def _page(self, place: tuple[int, bool], count: int) -> bool:
        partition, again = place
        try:
            cursor, received, missing = await self._reader.take_over(
                self._door,
                partition,
                again,
                idle_ms=self._settings.lease_ms * 2 // 3,
                cursor=self._cursors[place],
                count=count,
            )
        except Exception:
            self._cursors[place] = "0-0"
            raise
        self._cursors[place] = cursor
        if missing.entry_ids:
            self._metrics.stream_lost()
            logger.error("pending_entry_missing", extra={"stream": missing.stream, "ids": missing.entry_ids[:20]})
        self._consumer.offer(received)
        return cursor != "0-0"
