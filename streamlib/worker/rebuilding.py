"""Folds one generation of a view in this process alone: all partitions, owned, renewed and fenced as by a worker."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from streamlib.errors import Refused, StreamlibError
from streamlib.keys import Keys
from streamlib.message import entry_order
from streamlib.metrics.worker import WorkerMetrics
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.indexes import group_of
from streamlib.redisio.ownership import owner_of, release, take
from streamlib.settings import Settings
from streamlib.worker.feed import Feed
from streamlib.worker.history import History
from streamlib.worker.inflight import InFlight
from streamlib.worker.loops import end
from streamlib.worker.ownership import Shares
from streamlib.worker.partition_lease import PartitionLease
from streamlib.worker.projected_partition import ProjectedPartition
from streamlib.worker.projection import Projection
from streamlib.worker.renewer import Renewal, Renewer

log = logging.getLogger(__name__)
_LOOK_S = 0.25
_BEAT_S = 0.1


class Builder:
    """The one process that folds a generation; the owner of its first partition keeps everybody else out."""

    def __init__(
        self,
        projection: Projection[Any],
        generation: int,
        redis: RedisDoor,
        keys: Keys,
        settings: Settings,
        history: History | None = None,
    ) -> None:
        self.name = f"rebuild-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._redis = redis
        self._settings = settings.worker
        self._window_ms = int(settings.idempotency.window_s * 1000)
        topic, group = projection.topic, group_of(projection.name, generation)
        metrics = WorkerMetrics().group(topic.name, group)
        loop = asyncio.get_running_loop()
        self._epoch = 0
        self._leases = [
            PartitionLease(
                redis,
                keys.stream(topic.name, number, topic.partitions).owner(group),
                worker_id=self.name,
                lease_ms=settings.worker.lease_ms,
                loop=loop,
                metrics=metrics,
                log_fields={"topic": topic.name, "group": group, "kind": "rebuild", "partition": number},
            )
            for number in range(topic.partitions)
        ]
        self._shares = Shares(f"{topic.name}:{group}", self._leases, self.name, _nobody_to_tell)
        self._feed = Feed(
            projection=projection,
            generation=generation,
            redis=redis,
            keys=keys,
            settings=settings,
            shares=self._shares,
            metrics=metrics,
            rebuilding=True,
            history=history,
        )
        self._partitions = [ProjectedPartition(self._feed, number) for number in range(topic.partitions)]

    async def take_turn(self) -> None:
        """Become the one that builds this generation. Raises Refused when another process does.

        One that was killed leaves its lease to run out, one that lives renews it: it is watched until that is clear.
        """
        key, lease_ms, left_ms = self._leases[0].owner_key, self._settings.lease_ms, self._settings.lease_ms + 1
        while True:
            answer = await take(self._redis, key, self.name, lease_ms)
            if answer.ours:
                self._epoch = answer.epoch
                return
            if answer.ms_left > left_ms:
                owner = await owner_of(self._redis, key, 0)
                view = self._feed.projection.name
                raise Refused(f"view {view!r} is being rebuilt by {owner}; wait, or stop that process")
            left_ms = answer.ms_left
            await asyncio.sleep(min(_LOOK_S, (left_ms + 1) / 1000))

    async def give_turn(self) -> None:
        """Let another process go on at once."""
        await release(self._redis, self._leases[0].owner_key, self.name, self._epoch)

    @asynccontextmanager
    async def folding(self) -> AsyncIterator[None]:
        """Fold inside this block; what is owned is released at its end."""
        renewer = Renewer(
            self._redis,
            InFlight(),
            self._settings,
            consumer=self.name,
            worker_id=self.name,
            window_ms=self._window_ms,
            loop=asyncio.get_running_loop(),
            on_error=_is_logged,
            owned=self._renewals,
        )
        stop = asyncio.Event()
        renewer.start()
        beating = asyncio.create_task(_beat(renewer))
        for lease in self._leases:
            lease.want(True)
        running = [asyncio.create_task(partition.run(stop)) for partition in self._partitions]
        try:
            yield
        finally:
            stop.set()
            await end(running, grace_s=self._redis.settings.timeout_s * 2)
            await end([beating])
            await asyncio.to_thread(renewer.close)

    def check(self) -> None:
        """Raise StreamlibError where folding stands still: what was built stays, and is gone on with next time."""
        for number, partition in enumerate(self._partitions):
            if partition.halted:
                raise StreamlibError(f"partition {number} stands still: {partition.halted}")
            if number in self._shares.refused_now(draining=False):
                raise StreamlibError(
                    f"partition {number}: the next event is of a type or version that workers know and this code does "
                    "not; rebuild with the newer code"
                )
            if partition.lease.lost.is_set():
                raise StreamlibError(
                    f"partition {number} was lost: another rebuild took over, or this one was abandoned"
                )

    def reached(self, ends: list[str]) -> bool:
        """Whether each partition is at that entry, or behind it."""
        return all(
            entry_order(partition.checkpoint) >= entry_order(last)
            for partition, last in zip(self._partitions, ends, strict=True)
        )

    def _renewals(self) -> list[Renewal]:
        return [(lease.owner_key, lease.renew) for lease in self._leases if lease.held]


async def _beat(renewer: Renewer) -> None:
    while True:
        renewer.beat()
        await asyncio.sleep(_BEAT_S)


def _nobody_to_tell() -> None:
    """A rebuild is no member among workers: nobody shares with it."""


def _is_logged(kind: str, error: Exception) -> None:
    """The renewer logs what fails; there are no metrics to count it in."""
