"""The list of every metric: name, kind, help, labels and buckets. Everything else is built from it."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

PREFIX = "streamlib_"

Kind = Literal["counter", "histogram", "gauge", "backlog", "exporter"]
"""`backlog` is a gauge that tells what lies in Redis, not what this process does; `exporter` one that only
`streamlib exporter` has."""


class Metric(Struct, frozen=True):
    """One metric. `name` stands without prefix and without the `_total` of counters."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def exposed(self) -> str:
        """The name as Prometheus knows it; a histogram's series add `_bucket`, `_count` and `_sum`."""
        return f"{PREFIX}{self.name}_total" if self.kind == "counter" else f"{PREFIX}{self.name}"


DELIVERIES = ("new", "reclaimed", "retry")
OWNERSHIP_CHANGES = ("taken", "released", "lost")
OUTCOMES = ("ok", "retry", "dead", "halted", "skipped", "duplicate", "released")

_GROUP = ("topic", "group")
_HANDLER_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
)  # fmt: skip
_WAIT_S = (*_HANDLER_S, 900.0, 3600.0)
_COMMAND_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_LAG_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_ATTEMPTS = (1.0, 2.0, 3.0, 4.0, 5.0, 8.0, 12.0, 20.0)
_BYTES = tuple(float(2**power) for power in range(6, 23, 2))

METRICS: tuple[Metric, ...] = (
    Metric("events_received", "counter", "Events delivered to this process.", (*_GROUP, "delivery")),
    Metric(
        "events_processed",
        "counter",
        "Deliveries by how they ended; each ends once.",
        (*_GROUP, "handler", "outcome"),
    ),
    Metric("handler_errors", "counter", "Exceptions that left a handler, by class.", ("handler", "error_type")),
    Metric("dead_letters", "counter", "Events given up.", (*_GROUP, "handler", "reason")),
    Metric("retries_scheduled", "counter", "Events that will run again later.", _GROUP),
    Metric("duplicates_suppressed", "counter", "Copies acknowledged without a run.", _GROUP),
    Metric(
        "throttled_seconds",
        "counter",
        "Time in which this process could have started events and the group's limit gave it no permit.",
        _GROUP,
    ),
    Metric("lease_lost", "counter", "Events taken over while this process still had them.", _GROUP),
    Metric("stream_lost", "counter", "Times the stream or its group had vanished from Redis.", _GROUP),
    Metric("ack_errors", "counter", "Settlements that Redis did not take.", _GROUP),
    Metric("redis_errors", "counter", "Redis commands that failed, by kind.", ("kind",)),
    Metric("published_events", "counter", "Events published by this process.", ("topic", "outcome")),
    Metric("handler_duration_seconds", "histogram", "Run time of handlers.", ("topic", "handler"), _HANDLER_S),
    Metric("queue_wait_seconds", "histogram", "From stored to started, first delivery only.", _GROUP, _WAIT_S),
    Metric("end_to_end_latency_seconds", "histogram", "From stored to acknowledged.", _GROUP, _WAIT_S),
    Metric("delivery_attempts", "histogram", "Runs an event took to its final outcome.", _GROUP, _ATTEMPTS),
    Metric("event_size_bytes", "histogram", "Encoded size of events.", ("topic",), _BYTES),
    Metric("publish_duration_seconds", "histogram", "Time until a publish is confirmed.", ("topic",), _COMMAND_S),
    Metric(
        "redis_command_duration_seconds",
        "histogram",
        "Round trips to Redis, without intended blocking.",
        ("command",),
        _COMMAND_S,
    ),
    Metric("event_loop_lag_seconds", "histogram", "How late the event loop ran a due timer.", (), _LAG_S),
    Metric(
        "ownership_changes",
        "counter",
        "Partitions of ordered groups and projections that this process took, released or lost to another.",
        (*_GROUP, "change"),
    ),
    Metric("partitions_owned", "gauge", "Partitions that this process owns.", _GROUP),
    Metric(
        "parked_events",
        "gauge",
        "Events of an ordered group that wait in this process behind a failing one of their key, it included.",
        _GROUP,
    ),
    Metric(
        "full_partitions",
        "gauge",
        "Owned partitions that are not read, for worker.parked events wait there.",
        _GROUP,
    ),
    Metric("breaker_open", "gauge", "1 while a circuit breaker lets at most probes of this group start here.", _GROUP),
    Metric("breaker_openings", "counter", "Times a circuit breaker opened, without failed probes.", _GROUP),
    Metric("inflight_events", "gauge", "Events claimed by this process and not settled.", _GROUP),
    Metric("concurrency_limit", "gauge", "Events this process may run at once."),
    Metric("worker_ready", "gauge", "1 while this process can claim work."),
    Metric("last_poll_timestamp_seconds", "gauge", "When Redis last answered a read of this group.", _GROUP),
    Metric("build_info", "gauge", "Always 1.", ("version", "python", "redis_py", "server")),
    Metric("topic_length", "backlog", "Entries in the topic's streams.", ("topic",)),
    Metric("delayed_events", "backlog", "Events that are not due yet.", ("topic",)),
    Metric("group_lag", "backlog", "Entries not yet delivered; absent when unknown.", _GROUP),
    Metric("group_lag_known", "backlog", "1 when group_lag could be told.", _GROUP),
    Metric("group_pending", "backlog", "Entries delivered and not acknowledged.", _GROUP),
    Metric("group_retrying", "backlog", "Events waiting for, or in, another run.", _GROUP),
    Metric("group_dead", "backlog", "Dead letters.", _GROUP),
    Metric("group_consumers", "backlog", "Consumers known to Redis.", _GROUP),
    Metric("group_oldest_pending_age_seconds", "backlog", "Age of the oldest pending entry, 0 without.", _GROUP),
    Metric(
        "group_oldest_undelivered_age_seconds",
        "backlog",
        "Age of the oldest entry not yet delivered, 0 without.",
        _GROUP,
    ),
    Metric("group_paused", "backlog", "1 while an operator keeps the group from taking work.", _GROUP),
    Metric("halted_keys", "backlog", "Keys of an ordered group that stand still until an operator acts.", _GROUP),
    Metric("group_backlog", "backlog", "lag + pending + retrying; at least so many if lag is unknown.", _GROUP),
    Metric("exporter_last_success_timestamp_seconds", "exporter", "When the exporter last saw every topic."),
    Metric("exporter_look_seconds", "exporter", "How long the exporter's last look at Redis took."),
)

METRIC_NAMES: frozenset[str] = frozenset(metric.exposed for metric in METRICS)
"""Every metric as Prometheus knows it: counters with `_total`, histograms without their suffixes."""
