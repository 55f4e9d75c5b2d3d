"""Runs a projection in a worker: feeds the live generation of its view and the one kept for a rollback."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from streamlib.errors import RedisError
from streamlib.keys import Keys
from streamlib.metrics.worker import GroupMetrics
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.failures import CLIENT_ERRORS
from streamlib.redisio.generations import Standing, declare_view, standing
from streamlib.redisio.indexes import FIRST, group_of
from streamlib.redisio.registry import declare_types
from streamlib.settings import Settings
from streamlib.worker.feed import Feed
from streamlib.worker.loops import Never, first_set, unless
from streamlib.worker.ownership import Ownership
from streamlib.worker.pausing import Gate
from streamlib.worker.projected_partition import TYPES_LIVE_S, ProjectedPartition
from streamlib.worker.projection import Projection

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""How often a worker asks which generations there are."""


class _Running:
    """A generation that this process feeds, until its `stop` is set."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.stop = asyncio.Event()
        self.partitions = [ProjectedPartition(feed, number) for number in range(feed.projection.topic.partitions)]
        self.tasks: list[asyncio.Task[None]] = []

    def start(self, tasks: asyncio.TaskGroup) -> None:
        self.tasks = [tasks.create_task(one.run(self.stop)) for one in self.partitions]
        self.tasks.append(tasks.create_task(self._say_types()))

    @property
    def ended(self) -> bool:
        return all(task.done() for task in self.tasks)

    @property
    def problems(self) -> dict[int, str]:
        return {one.partition: one.halted for one in self.partitions if one.halted}

    async def _say_types(self) -> None:
        """Older workers leave a partition to us whose next event is of a type that only we know."""
        feed, topic = self.feed, self.feed.projection.topic.name
        names = feed.projection.type_names
        while not self.stop.is_set():
            saying = feed.redis.persist(
                lambda: declare_types(feed.redis, feed.keys, topic, feed.group, names), give_up_s=None
            )
            try:
                await unless(asyncio.ensure_future(saying), self.stop)
            except CLIENT_ERRORS as error:
                log.warning("types_not_declared", extra={"projection": feed.group, "error": str(error)})
            await first_set(self.stop, timeout_s=TYPES_LIVE_S / 5)


class Projector:
    """Projects every partition that is this process's share, and stands by for the rest.

    `metrics` and `gate` are asked for each generation's group. The register of views says which generations there are;
    what a worker does not feed any more it releases within a second or so, and tells the others.
    """

    def __init__(
        self,
        projection: Projection[Any],
        redis: RedisDoor,
        keys: Keys,
        settings: Settings,
        ownership: Ownership,
        metrics: Callable[[str], GroupMetrics],
        gate: Callable[[str], Gate] = lambda _: Gate(),
    ) -> None:
        self.projection = projection
        self._redis = redis
        self._keys = keys
        self._settings = settings
        self._ownership = ownership
        self._metrics = metrics
        self._gate = gate
        self._running: dict[int, _Running] = {}
        self._live = 0
        self._problem = ""

    async def run(self, stop: asyncio.Event) -> None:
        """Project until `stop` is set; then finish the commits under way and release what is owned."""
        async with asyncio.TaskGroup() as tasks:
            try:
                while not stop.is_set():
                    await self._follow(tasks, stop)
                    await first_set(stop, timeout_s=LOOK_S)
            finally:
                for one in self._running.values():
                    one.stop.set()

    async def _follow(self, tasks: asyncio.TaskGroup, stop: asyncio.Event) -> None:
        """Feed what the register names, and nothing else."""
        try:
            now = await unless(asyncio.ensure_future(self._redis.persist(self._standing, give_up_s=None)), stop)
        except (*CLIENT_ERRORS, RedisError) as error:
            if self._problem != str(error):
                log.error("generations_unknown", extra={"projection": self.projection.name, "error": str(error)})
            self._problem = str(error)
            return
        if isinstance(now, Never):
            return
        self._live, self._problem = now.live, ""
        for generation, one in list(self._running.items()):
            if generation not in now.fed:
                one.stop.set()
            if one.ended:
                del self._running[generation]
                self._ownership.forget(self.projection.topic.name, one.feed.group)
        for generation in now.fed:
            if generation not in self._running:
                self._start(tasks, generation)

    async def _standing(self) -> Standing:
        topic, name = self.projection.topic.name, self.projection.name
        now = await standing(self._redis, self._keys, topic, name)
        if not now.declared:  # never was, or the register was lost: then what this process knows holds
            await declare_view(self._redis, self._keys, topic, name, self._live or FIRST)
            now = await standing(self._redis, self._keys, topic, name)
        return now

    def _start(self, tasks: asyncio.TaskGroup, generation: int) -> None:
        projection, group = self.projection, group_of(self.projection.name, generation)
        self._running[generation] = started = _Running(
            Feed(
                projection=projection,
                generation=generation,
                redis=self._redis,
                keys=self._keys,
                settings=self._settings,
                shares=self._ownership.shares(projection.topic, group, "projection"),
                metrics=self._metrics(group),
                gate=self._gate(group),
            )
        )
        started.start(tasks)

    @property
    def groups(self) -> frozenset[str]:
        """The groups in which this process has something to do: of every generation but those that stand still.

        While it is not known which there are, the view's own name stands for all of them.
        """
        if not self._live:
            return frozenset() if self._problem else frozenset({self.projection.name})
        return frozenset(one.feed.group for one in self._running.values() if not one.problems)

    @property
    def idle(self) -> bool:
        """Nothing is left to project here: each partition is at its end, halted, or another worker's."""
        running = self._running.values()
        return bool(running) and all(partition.idle for one in running for partition in one.partitions)

    @property
    def owned(self) -> frozenset[int]:
        """The partitions of the live generation that this projector owns."""
        return frozenset(one.partition for one in self._live_partitions if one.lease.held)

    @property
    def problems(self) -> dict[int, str]:
        """Partition -> why the live generation stands still there. Empty is healthy."""
        if self._problem:
            return dict.fromkeys(range(self.projection.topic.partitions), self._problem)
        return {one.partition: one.halted for one in self._live_partitions if one.halted}

    @property
    def _live_partitions(self) -> list[ProjectedPartition]:
        live = self._running.get(self._live)
        return live.partitions if live is not None else []
