"""Gauges of what lies in Redis for each group; series that nobody could confirm any more go away."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence

from msgspec import Struct
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from streamlib.metrics.catalogue import METRICS, PREFIX
from streamlib.ops.inspect import GroupInfo, TopicInfo

MAX_MISSED = 3
MAX_AGE_S = 30.0


class _Seen(Struct):
    """A topic as last seen, when, and how many updates have passed since."""

    length: int
    delayed: int
    groups: dict[str, GroupInfo]
    at_s: float
    missed: int = 0


class BacklogGauges(Collector):
    """Serves the latest inspection. Old numbers look like fresh ones, so what nobody confirms goes away.

    A topic is dropped when three updates in a row lack it, or when none arrived for half a minute.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._lock = threading.Lock()
        self._topics: dict[str, _Seen] = {}
        registry.register(self)

    def update(self, topics: Sequence[TopicInfo]) -> None:
        """Take over a new inspection; a group missing in its topic is gone at once."""
        with self._lock:
            for name, seen in list(self._topics.items()):
                seen.missed += 1
                if seen.missed >= MAX_MISSED:
                    del self._topics[name]
            now_s = time.monotonic()
            for topic in topics:
                groups = {group.group: group for group in topic.groups}
                self._topics[topic.topic] = _Seen(topic.length, topic.delayed, groups, now_s)

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return self._families().values()

    def collect(self) -> Iterable[GaugeMetricFamily]:
        families = self._families()
        oldest_s = time.monotonic() - MAX_AGE_S
        with self._lock:
            fresh = {topic: seen for topic, seen in self._topics.items() if seen.at_s >= oldest_s}
            for topic, seen in fresh.items():
                families["topic_length"].add_metric([topic], seen.length)
                families["delayed_events"].add_metric([topic], seen.delayed)
                for name, group in seen.groups.items():
                    for metric, value in _values(group).items():
                        if value is not None:
                            families[metric].add_metric([topic, name], value)
        return families.values()

    @staticmethod
    def _families() -> dict[str, GaugeMetricFamily]:
        return {
            metric.name: GaugeMetricFamily(PREFIX + metric.name, metric.help, labels=metric.labels)
            for metric in METRICS
            if metric.kind == "backlog"
        }


def _values(group: GroupInfo) -> dict[str, float | None]:
    return {
        "group_lag": group.lag,
        "group_lag_known": group.lag_known,
        "group_pending": group.pending,
        "group_retrying": group.retrying,
        "group_dead": group.dead,
        "group_consumers": group.consumers,
        "group_oldest_pending_age_seconds": group.oldest_pending_seconds,
        "group_oldest_undelivered_age_seconds": group.oldest_undelivered_seconds,
        "group_paused": group.paused,
        "halted_keys": group.halted_keys if group.kind == "ordered" else None,
        "group_backlog": group.backlog,
    }
