"""The house-keeping of a process: retention, consumers that are gone, handled types, backlog gauges."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial

from streamlib.errors import NotFound
from streamlib.keys import Keys
from streamlib.metrics.backlog import BacklogGauges
from streamlib.ops.inspect import TopicInfo, inspect
from streamlib.redisio import consumers, registry, retention
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.failures import CLIENT_ERRORS
from streamlib.settings import Settings
from streamlib.topic import TopicSpec
from streamlib.worker.unit import GroupUnit

logger = logging.getLogger(__name__)
_GAUGES_EVERY_S = 5.0
_COUNT_BOUND = 10_000
_TRIM_EVERY_S = 30.0
_SWEEP_EVERY_S = 60.0
_GONE_MS = 60_000


class Keeper:
    """Every worker keeps house; each act is safe to do twice and by many."""

    def __init__(
        self,
        door: RedisDoor,
        keys: Keys,
        settings: Settings,
        units: Sequence[GroupUnit],
        topics: Sequence[TopicSpec],
        gauges: BacklogGauges,
    ) -> None:
        self._door = door
        self._keys = keys
        self._settings = settings
        self._units = units
        self._topics = topics
        self._gauges = gauges

    async def refresh_gauges(self) -> float:
        found: list[TopicInfo] = []
        for topic in self._topics:
            try:
                found += await inspect(self._door, self._keys, topic.name, count_bound=_COUNT_BOUND)
            except NotFound:
                logger.warning("topic_not_registered", extra={"topic": topic.name})  # until a unit has healed it
        self._gauges.update(found)
        return _GAUGES_EVERY_S

    async def trim(self) -> float:
        """Trim what every group is done with; say again that our types are handled."""
        door, keys, specs = self._door, self._keys, [unit.spec for unit in self._units]
        declare, trim = registry.declare_types, retention.trim_once
        await _each(
            [
                *(partial(declare, door, keys, one.topic.name, one.group, one.type_names) for one in specs),
                *(partial(trim, door, keys, topic, self._settings.retention) for topic in self._topics),
            ]
        )
        return _TRIM_EVERY_S * random.uniform(0.8, 1.2)

    async def sweep(self) -> float:
        """Remove consumers that were not seen for ten leases (a minute at the least)."""
        idle_ms = max(10 * self._settings.worker.lease_ms, _GONE_MS)
        await _each(
            partial(consumers.remove_idle, self._door, stream, unit.spec.group, idle_ms)
            for unit in self._units
            for keys in unit.partitions
            for stream in (keys.stream, keys.again(unit.spec.group))
        )
        return _SWEEP_EVERY_S * random.uniform(0.8, 1.2)


async def _each(acts: Iterable[Callable[[], Awaitable[object]]]) -> None:
    """Do all of them, though Redis does not answer some; then raise the first error there was."""
    errors: list[Exception] = []
    for act in acts:
        try:
            await act()
        except CLIENT_ERRORS as error:
            errors.append(error)
    if errors:
        raise errors[0]


class Beat:
    """The pulse of the event loop, for the liveness probe and the lag metric."""

    every_s = 0.25

    def __init__(self, on_beat: Callable[[], None], on_lag: Callable[[float], None]) -> None:
        self._on_beat = on_beat
        self._on_lag = on_lag
        self._last = time.monotonic()

    async def run_once(self) -> float:
        now = time.monotonic()
        self._on_lag(max(now - self._last - self.every_s, 0.0))
        self._last = now
        self._on_beat()
        return self.every_s

    @property
    def silent_s(self) -> float:
        return time.monotonic() - self._last
