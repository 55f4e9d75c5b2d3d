"""What lies in Redis for all topics and groups, told by one process, also while no worker lives."""

from __future__ import annotations

import asyncio
import logging
import time

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from streamlib.errors import NotFound
from streamlib.keys import Keys
from streamlib.metrics.backlog import MAX_AGE_S, BacklogGauges
from streamlib.metrics.catalogue import METRICS, PREFIX
from streamlib.metrics.exposition import render
from streamlib.ops.inspect import TopicInfo, inspect
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.failures import CLIENT_ERRORS, translate
from streamlib.redisio.registry import topics

_COUNT_BOUND = 10_000
_TOPICS_AT_ONCE = 8
"""Beside one another, so that what a lost node keeps waiting holds up nobody else for long."""
_log = logging.getLogger("streamlib.exporter")


class Exporter:
    """Looks when it is told to, and serves what it saw last; of what it cannot see any more it serves nothing."""

    def __init__(self, redis: RedisDoor, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._backlog = BacklogGauges(self._registry)
        gauges = {
            one.name: Gauge(PREFIX + one.name, one.help, registry=self._registry)
            for one in METRICS
            if one.kind == "exporter"
        }
        self._last_success = gauges["exporter_last_success_timestamp_seconds"]
        self._took = gauges["exporter_look_seconds"]
        self._well_since_s = float("-inf")
        self._why = "has not seen Redis yet"

    async def look(self) -> None:
        """Look at every topic. One that cannot be read does not hide the others; what failed is logged."""
        began_s = time.monotonic()
        try:
            error = await self._look()
        except CLIENT_ERRORS as failed:
            error = failed
        self._took.set(time.monotonic() - began_s)
        if error is None:
            self._last_success.set_to_current_time()
            self._well_since_s, self._why = time.monotonic(), ""
            return
        why = str(translate(error, self._redis.settings.url))
        if why != self._why:
            _log.warning("look_failed", extra={"error": why})
        self._why = why

    async def _look(self) -> Exception | None:
        """An error of a topic. Raises what the client raises when there is nothing to be seen at all."""
        names = await topics(self._redis, self._keys)
        found: list[TopicInfo] = []
        errors: list[Exception] = []
        places = asyncio.Semaphore(_TOPICS_AT_ONCE)

        async def look_at(topic: str) -> None:
            async with places:
                try:
                    found.extend(await inspect(self._redis, self._keys, topic, count_bound=_COUNT_BOUND))
                except NotFound:
                    _log.debug("topic_forgotten", extra={"topic": topic})
                except CLIENT_ERRORS as error:
                    errors.append(error)

        async with asyncio.TaskGroup() as looks:
            for topic in names:
                looks.create_task(look_at(topic))
        self._backlog.update(found)
        return min(errors, key=str, default=None)

    def render(self, accept: str) -> tuple[str, bytes]:
        return render(self._registry, accept)

    def live(self) -> tuple[bool, str]:
        return True, "exporting"

    def ready(self) -> tuple[bool, str]:
        """Well while what is served is not older than a worker's would be."""
        if time.monotonic() - self._well_since_s <= MAX_AGE_S:
            return True, "exporting"
        return False, self._why or f"has not seen Redis for {MAX_AGE_S:.0f} s"
