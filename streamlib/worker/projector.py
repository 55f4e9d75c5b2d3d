"""Runs a projection: owns partitions, reads their entries in order, folds them and commits what changed."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from streamlib.keys import Keys
from streamlib.metrics.worker import GroupMetrics
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.failures import CLIENT_ERRORS
from streamlib.redisio.registry import declare_types
from streamlib.settings import Settings
from streamlib.worker.ownership import Ownership
from streamlib.worker.pausing import Gate
from streamlib.worker.projected_partition import TYPES_LIVE_S, ProjectedPartition
from streamlib.worker.projection import Projection

log = logging.getLogger(__name__)


class Projector:
    """Projects every partition that is this process's share, and stands by for the rest."""

    def __init__(
        self,
        projection: Projection[Any],
        redis: RedisDoor,
        keys: Keys,
        settings: Settings,
        ownership: Ownership,
        metrics: GroupMetrics,
        gate: Gate | None = None,
    ) -> None:
        shares = ownership.shares(projection.topic, projection.name, "projection")
        self.projection = projection
        self._redis = redis
        self._keys = keys
        self.partitions = [
            ProjectedPartition(projection, partition, redis, keys, settings, shares, metrics, gate)
            for partition in range(projection.topic.partitions)
        ]

    async def run(self, stop: asyncio.Event) -> None:
        """Project until `stop` is set; then finish the commit under way and release what is owned."""
        saying = asyncio.create_task(self._say_types())
        try:
            async with asyncio.TaskGroup() as tasks:
                for partition in self.partitions:
                    tasks.create_task(partition.run(stop))
        finally:
            saying.cancel()
            await asyncio.wait({saying})

    async def _say_types(self) -> None:
        """Older workers leave a partition to us whose next event is of a type that only we know."""
        projection = self.projection
        while True:
            try:
                await self._redis.persist(
                    lambda: declare_types(
                        self._redis, self._keys, projection.topic.name, projection.name, projection.type_names
                    ),
                    give_up_s=None,
                )
            except CLIENT_ERRORS as error:
                log.warning("types_not_declared", extra={"projection": projection.name, "error": str(error)})
            await asyncio.sleep(TYPES_LIVE_S / 5)

    @property
    def idle(self) -> bool:
        """Nothing is left to project here: each partition is at its end, halted, or another worker's."""
        return all(partition.idle for partition in self.partitions)

    @property
    def owned(self) -> frozenset[int]:
        """The partitions that this projector owns."""
        return frozenset(one.partition for one in self.partitions if one.lease.held)

    @property
    def problems(self) -> dict[int, str]:
        """Partition -> why it stands still. Empty is healthy."""
        return {one.partition: one.halted for one in self.partitions if one.halted}
