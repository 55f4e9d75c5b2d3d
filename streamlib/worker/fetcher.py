"""Reads ahead for one group, bounded in entries and bytes, on a connection that may block."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from streamlib.metrics.worker import GroupMetrics
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.failures import CLIENT_ERRORS
from streamlib.redisio.reader import Reader
from streamlib.settings import WorkerSettings
from streamlib.worker.consumer import Consumer

_TYPICAL_BYTES = 512


class Fetcher:
    """`run_once` is one XREADGROUP; the next is under way while the consumer works on this one.
    `sharing` tells how many fetchers want the room that there is."""

    def __init__(
        self,
        door: RedisDoor,
        reader: Reader,
        consumer: Consumer,
        settings: WorkerSettings,
        metrics: GroupMetrics,
        sharing: Callable[[], int] = lambda: 1,
    ) -> None:
        self.partitions = frozenset(reader.partitions)
        self._lane = door.blocking(settings.block_ms)
        self._reader = reader
        self._consumer = consumer
        self._settings = settings
        self._metrics = metrics
        self._count = settings.batch
        self._bytes_per_entry = float(_TYPICAL_BYTES)
        self.last_read: float | None = None
        self.waits_for_room = False
        self.found = False
        """Whether the last read brought something."""
        self._sharing = sharing

    async def run_once(self) -> float:
        """Seconds to wait before the next read (0, but for a server that does not block)."""
        entries, room_bytes = self._consumer.room_for(self._reader.partitions)
        if not entries:
            self.waits_for_room = True
            entries, room_bytes = await self._consumer.wait_to_read(self._reader.partitions)
            self.waits_for_room, self.last_read = False, time.monotonic()  # silence until now was our own
        if self._consumer.stopping:
            return 0.0
        count = max(1, min(self._count, entries, int(room_bytes / self._bytes_per_entry)) // self._sharing())
        started = time.monotonic()
        try:
            received = await self._reader.read(self._lane, count=count, block_ms=self._block_ms())
        except CLIENT_ERRORS:
            # A reply above the server's output buffer limit closes the connection; asking for the same again would
            # only fill our pending list.
            self._count = max(1, self._count // 2)
            raise
        self.last_read = time.monotonic()
        self._metrics.polled()
        self.found = bool(received)
        if received:
            self._count = min(self._count * 2, self._settings.batch)
            size = sum(one.delivery.size for one in received) / len(received)
            # Up at once and down slowly: a burst of large events after small ones must not be read by the hundred.
            self._bytes_per_entry = max(size, self._bytes_per_entry + 0.2 * (size - self._bytes_per_entry))
            self._consumer.offer(received)
            return 0.0
        returned_early = self.last_read - started < self._settings.block_ms / 4000
        return 0.01 if returned_early else 0.0

    def _block_ms(self) -> int:
        """Drawn anew for each read: Redis serves whoever waits longest, and ends waits in steps. Workers that wait
        equally long would keep their order for ever, and the first of them get all that comes one by one."""
        return max(int(self._settings.block_ms * random.uniform(0.5, 1.0)), 1)

    async def close(self) -> None:
        await self._lane.close()
