"""Finds entries that lie in the pending list of workers that are gone, and brings them in."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence

from streamlib.keys import StreamKeys
from streamlib.metrics.worker import GroupMetrics
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.large_entries import Room
from streamlib.redisio.reader import Reader
from streamlib.settings import WorkerSettings
from streamlib.worker.consumer import Consumer

logger = logging.getLogger(__name__)
_COUNT = 100
_FULL_S = 0.05


class Reclaimer:
    """Walks the pending lists of each partition with a kept cursor, a page at a time.

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
        payload_bytes: int = 0,
    ) -> None:
        self._door = door
        self._reader = reader
        self._consumer = consumer
        self._settings = settings
        self._metrics = metrics
        self._asked: dict[int, int] = {}
        self._failing: set[int] = set()
        places = [(number, again) for number in range(len(partitions)) for again in (True, False)]
        self._cursors = dict.fromkeys(places, "0-0")
        # What comes again was read before, and is kept nowhere else: of that nothing is given up.
        self._rooms = {(number, again): Room(0 if again else payload_bytes) for number, again in places}

    async def run_once(self, number: int) -> float:
        """Take over one page of each pending list of a partition; seconds until the next round.

        A backlog that keeps the inbox full must not keep the dead's work waiting, so this has room of its own.
        """
        more = False
        for place in [place for place in self._cursors if place[0] == number]:
            count = min(self._consumer.room_to_reclaim - sum(self._asked.values()), _COUNT)
            if count <= 0:
                return _FULL_S * random.uniform(0.8, 1.2)
            more |= await self._page(place, count)
            self._cursors[place] = self._cursors.pop(place)  # to the end: the next round starts where this one ended
        return (0.0 if more else self._settings.reclaim_ms / 1000) * random.uniform(0.8, 1.2)

    async def _page(self, place: tuple[int, bool], count: int) -> bool:
        partition, again = place
        if partition not in self._failing:  # what does not answer takes no room from the others
            self._asked[partition] = count
        try:
            cursor, received, missing = await self._reader.take_over(
                self._door,
                partition,
                again,
                idle_ms=self._settings.lease_ms * 2 // 3,
                cursor=self._cursors[place],
                count=count,
                room=self._rooms[place],
            )
            self._failing.discard(partition)
        except Exception:
            self._cursors[place] = "0-0"
            self._failing.add(partition)
            raise
        finally:
            self._asked.pop(partition, None)
        self._cursors[place] = cursor
        if missing.entry_ids:
            self._metrics.stream_lost()
            logger.error("pending_entry_missing", extra={"stream": missing.stream, "ids": missing.entry_ids[:20]})
        self._consumer.offer(received)
        return cursor != "0-0"
