"""What one worker process counts: its registry, and label children bound once so that counting is cheap."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from streamlib.metrics.backlog import BacklogGauges
from streamlib.metrics.batches import BatchHistogram, BatchSeries
from streamlib.metrics.catalogue import DELIVERIES, METRICS, OUTCOMES, OWNERSHIP_CHANGES, PREFIX, Metric

MAX_ERROR_TYPES = 50
MAX_WORDS = 16
OTHER = "other"
COMMANDS = frozenset({"claim", "settle", "xautoclaim", "deliver", "own", "commit"})
"""Commands with a series of their own; all others share one. Publishing has a metric of its own."""
_BY_THE_BATCH = {
    "event_size_bytes", "handler_duration_seconds", "queue_wait_seconds", "end_to_end_latency_seconds",
    "delivery_attempts",
}  # fmt: skip
"""Histograms with a value for every event."""


class Bounded:
    """Keeps a label finite: the first `most` different values pass, any further one becomes "other"."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._seen: set[str] = set()

    def __call__(self, value: str) -> str:
        if value in self._seen:
            return value
        if len(self._seen) >= self._most:
            return OTHER
        self._seen.add(value)
        return value


class _Instruments:
    """The instruments of the catalogue in one registry, by name."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.counters: dict[str, Counter] = {}
        self.histograms: dict[str, Histogram] = {}
        self.gauges: dict[str, Gauge] = {}
        self.batches: dict[str, BatchHistogram] = {}
        for metric in METRICS:
            self._make(metric, registry)

    def _make(self, metric: Metric, registry: CollectorRegistry) -> None:
        name = PREFIX + metric.name
        if metric.kind == "counter":
            self.counters[metric.name] = Counter(name, metric.help, metric.labels, registry=registry)
        elif metric.kind == "gauge":
            self.gauges[metric.name] = Gauge(name, metric.help, metric.labels, registry=registry)
        elif metric.name in _BY_THE_BATCH:
            self.batches[metric.name] = BatchHistogram(metric, registry)
        elif metric.kind == "histogram":
            self.histograms[metric.name] = Histogram(
                name, metric.help, metric.labels, registry=registry, buckets=metric.buckets
            )


class WorkerMetrics:
    """The metrics of one process, in a registry of its own. Safe to use from any thread."""

    def __init__(self, *, server: str = "") -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._made = _Instruments(self.registry)
        self._groups: dict[tuple[str, str], GroupMetrics] = {}
        self._topics: dict[str, TopicMetrics] = {}
        self._error_kinds = Bounded(MAX_WORDS)
        self._commands: dict[str, Histogram] = {}
        self._error_types: dict[str, Bounded] = {}
        self.connected_to(server)

    def connected_to(self, server: str) -> None:
        """Name the server in build_info ("redis 8.2.3")."""
        info = self._made.gauges["build_info"]
        info.clear()
        info.labels(
            version=_version("streamlib"),
            python=platform.python_version(),
            redis_py=_version("redis"),
            server=server,
        ).set(1)

    def group(self, topic: str, group: str) -> GroupMetrics:
        """The metrics of one group; the same object for the same names."""
        found = self._groups.get((topic, group))
        if found is None:
            found = GroupMetrics(self._made, topic, group, self._error_types)
            found = self._groups.setdefault((topic, group), found)
        return found

    def topic(self, topic: str) -> TopicMetrics:
        """The metrics of publishing into one topic; the same object for the same name."""
        found = self._topics.get(topic)
        if found is None:
            found = self._topics.setdefault(topic, TopicMetrics(self._made, topic))
        return found

    @cached_property
    def backlog(self) -> BacklogGauges:
        """The gauges of what lies in Redis; all workers of this process share them."""
        return BacklogGauges(self.registry)

    def redis_error(self, kind: str) -> None:
        self._made.counters["redis_errors"].labels(self._error_kinds(kind)).inc()

    def redis_command(self, command: str, seconds: float) -> None:
        """A command (in lower case; of a script its name) was answered after so long."""
        label = command if command in COMMANDS else OTHER
        series = self._commands.get(label)
        if series is None:
            series = self._commands[label] = self._made.histograms["redis_command_duration_seconds"].labels(label)
        series.observe(seconds)

    def loop_lag(self, seconds: float) -> None:
        self._made.histograms["event_loop_lag_seconds"].observe(seconds)

    def ready(self, is_ready: bool) -> None:
        self._made.gauges["worker_ready"].set(is_ready)

    def concurrency_limit(self, n: int) -> None:
        self._made.gauges["concurrency_limit"].set(n)


class TopicMetrics:
    """What publishing into one topic counts."""

    def __init__(self, made: _Instruments, topic: str) -> None:
        self._topic = topic
        self._published = made.counters["published_events"]
        self._outcomes = Bounded(MAX_WORDS)
        self._by_outcome: dict[str, Counter] = {}
        self._duration = made.histograms["publish_duration_seconds"].labels(topic)

    def published(self, outcome: str, n: int, seconds: float) -> None:
        """`n` events of one batch ended with `outcome`; the batch took `seconds`."""
        word = self._outcomes(outcome)
        series = self._by_outcome.get(word)
        if series is None:
            series = self._by_outcome[word] = self._published.labels(self._topic, word)
        series.inc(n)
        self._duration.observe(seconds)


class GroupMetrics:
    """What one group of one topic counts.

    Children of fixed labels exist from the start, those of a handler from its first event: rate() and
    increase() see the step from 0 to 1 only in series that were there before.
    """

    def __init__(self, made: _Instruments, topic: str, group: str, error_types: dict[str, Bounded]) -> None:
        self._made = made
        self._labels = (topic, group)
        self._error_types = error_types
        received = made.counters["events_received"]
        self._received = {name: received.labels(topic, group, name) for name in DELIVERIES}
        self._sizes = made.batches["event_size_bytes"].labels(topic)
        self._processed: dict[str, dict[str, Counter]] = {}
        self._durations: dict[str, BatchSeries] = {}
        self._retries = made.counters["retries_scheduled"].labels(topic, group)
        self._duplicates = made.counters["duplicates_suppressed"].labels(topic, group)
        self._lease_lost = made.counters["lease_lost"].labels(topic, group)
        self._throttled = made.counters["throttled_seconds"].labels(topic, group)
        self._stream_lost = made.counters["stream_lost"].labels(topic, group)
        self._ack_errors = made.counters["ack_errors"].labels(topic, group)
        self._queue_wait = made.batches["queue_wait_seconds"].labels(topic, group)
        self._end_to_end = made.batches["end_to_end_latency_seconds"].labels(topic, group)
        self._attempts = made.batches["delivery_attempts"].labels(topic, group)
        changes = made.counters["ownership_changes"]
        self._ownership = {name: changes.labels(topic, group, name) for name in OWNERSHIP_CHANGES}
        self._owned = made.gauges["partitions_owned"].labels(topic, group)
        self._inflight = made.gauges["inflight_events"].labels(topic, group)
        self._parked = made.gauges["parked_events"].labels(topic, group)
        self._full = made.gauges["full_partitions"].labels(topic, group)
        self._last_poll = made.gauges["last_poll_timestamp_seconds"].labels(topic, group)

    def received(self, delivery: str, n: int) -> None:
        """`n` events were delivered; `delivery` is new, reclaimed or retry, else KeyError."""
        self._received[delivery].inc(n)

    def sizes(self, sizes: Sequence[int]) -> None:
        """New events of a batch have so many bytes, as they lie in their stream."""
        self._sizes.observe(sizes)

    def processed(self, handler: str, outcome: str, *seconds: float, n: int | None = None) -> None:
        """As many deliveries ended as there are `seconds`, the run times of their handlers; or `n`, if none ran.

        `outcome` is ok, retry, dead, skipped, duplicate or released. Raises KeyError for another word.
        """
        outcomes = self._processed.get(handler)
        if outcomes is None:
            outcomes = self._bind(handler)
        outcomes[outcome].inc(len(seconds) if n is None else n)
        self._durations[handler].observe(seconds)

    def handler_error(self, handler: str, error_type: str) -> None:
        """A handler raised; `error_type` is the exception's class name."""
        bounded = self._error_types.setdefault(handler, Bounded(MAX_ERROR_TYPES))
        self._made.counters["handler_errors"].labels(handler, bounded(error_type)).inc()

    def dead_letter(self, handler: str, reason: str) -> None:
        self._made.counters["dead_letters"].labels(*self._labels, handler, reason).inc()

    def retry_scheduled(self) -> None:
        self._retries.inc()

    def duplicate(self, n: int) -> None:
        self._duplicates.inc(n)

    def throttled(self, seconds: float) -> None:
        """Events were ready to start for so long, and the group's limit let none."""
        self._throttled.inc(seconds)

    def lease_lost(self, n: int) -> None:
        self._lease_lost.inc(n)

    def stream_lost(self) -> None:
        self._stream_lost.inc()

    def ack_error(self) -> None:
        self._ack_errors.inc()

    def queue_wait(self, *seconds: float) -> None:
        """From stored to started, for each event; clocks of two machines may make it negative, which counts as 0."""
        self._queue_wait.observe([max(one, 0.0) for one in seconds])

    def end_to_end(self, *seconds: float) -> None:
        """From stored to acknowledged, for each event; negative counts as 0."""
        self._end_to_end.observe([max(one, 0.0) for one in seconds])

    def attempts(self, *n: int) -> None:
        """Events reached their final outcomes in their n-th runs."""
        self._attempts.observe(n)

    def inflight(self, n: int) -> None:
        self._inflight.set(n)

    def ownership_changed(self, change: str, by: int) -> None:
        """One partition was taken (`by` 1), released or lost (-1), else KeyError."""
        self._ownership[change].inc()
        self._owned.inc(by)

    def parked(self, events: int, full: int) -> None:
        """So many events wait behind failing ones of their key, and so many partitions are not read for that."""
        self._parked.set(events)
        self._full.set(full)

    def breaker(self, is_open: bool) -> None:
        """The group's circuit breaker has opened, or is closed; told once at the start, by groups that have one."""
        self._made.gauges["breaker_open"].labels(*self._labels).set(is_open)
        self._made.counters["breaker_openings"].labels(*self._labels).inc(is_open)

    def polled(self) -> None:
        """Redis answered a read of this group just now."""
        self._last_poll.set(time.time())

    def _bind(self, handler: str) -> dict[str, Counter]:
        processed = self._made.counters["events_processed"]
        durations = self._made.batches["handler_duration_seconds"]
        self._durations[handler] = durations.labels(self._labels[0], handler)
        return self._processed.setdefault(
            handler, {outcome: processed.labels(*self._labels, handler, outcome) for outcome in OUTCOMES}
        )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a source tree
        return "unknown"
