"""Metrics: names, bounds, budget, the two text formats, and adding up processes."""

import importlib.metadata
from collections.abc import Callable, Iterable

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import Metric as Family
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families as parse_text

from streamlib.metrics import backlog
from streamlib.metrics.backlog import BacklogGauges
from streamlib.metrics.catalogue import METRIC_NAMES, METRICS, OUTCOMES
from streamlib.metrics.exposition import merge, render, render_nothing
from streamlib.metrics.worker import COMMANDS, WorkerMetrics
from streamlib.ops.inspect import GroupInfo, TopicInfo

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
DEAD_REASONS = (
    "max_attempts", "rejected", "decode", "schema", "unknown_type", "crash", "outcome_unknown",
)  # fmt: skip

parse_openmetrics: Callable[[str], Iterable[Family]] = openmetrics_parser.text_string_to_metric_families

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(text: bytes, *, openmetrics: bool = False) -> Samples:
    parse = parse_openmetrics if openmetrics else parse_text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse(text.decode())
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def group_info(group: str = "g", *, lag: int | None = 3, pending: int = 2) -> GroupInfo:
    return GroupInfo(
        group=group, kind="ordered", lag=lag, lag_known=lag is not None, pending=pending, retrying=1, dead=4,
        consumers=2, oldest_seconds=9.0, oldest_pending_seconds=9.0, oldest_undelivered_seconds=5.0,
        backlog=(lag or 0) + pending + 1,
    )  # fmt: skip


def topic_info(name: str, *groups: GroupInfo) -> TopicInfo:
    return TopicInfo(topic=name, partitions=1, length=10, groups=list(groups))


def light_everything(metrics: WorkerMetrics, topic: str, group: str, handlers: int) -> None:
    """Touch every series that one group may ever have; one with a circuit breaker has two more."""
    counts = metrics.group(topic, group)
    for number in range(handlers):
        handler = f"{group}_{number}"
        for outcome in OUTCOMES:
            counts.processed(handler, outcome, 0.1)
        for kind in range(200):
            counts.handler_error(handler, f"Error{kind}")
        for reason in DEAD_REASONS:
            counts.dead_letter(handler, reason)
    counts.queue_wait(1)
    counts.end_to_end(1)
    counts.attempts(1)


def test_every_metric_of_the_catalogue_is_exposed_under_its_name() -> None:
    metrics = WorkerMetrics(server="redis 8.2.0")
    BacklogGauges(metrics.registry).update([topic_info("t", group_info())])
    light_everything(metrics, "t", "g", 1)
    metrics.group("t", "g").breaker(True)
    metrics.topic("t").published("ok", 1, 0.1)
    metrics.redis_error("timeout")
    metrics.redis_command("settle", 0.1)
    exposed = {name for name, _ in samples(render(metrics.registry)[1]) if name.startswith("streamlib_")}
    plain = {name for name in exposed if name in METRIC_NAMES}
    of_histograms = {
        f"streamlib_{metric.name}{suffix}"
        for metric in METRICS
        if metric.kind == "histogram"
        for suffix in ("_bucket", "_count", "_sum")
    }
    histograms = {f"streamlib_{metric.name}" for metric in METRICS if metric.kind == "histogram"}
    of_the_exporter = {metric.exposed for metric in METRICS if metric.kind == "exporter"}
    assert plain | histograms == METRIC_NAMES - of_the_exporter
    assert exposed - plain == of_histograms


def test_counts_arrive_where_they_belong() -> None:
    metrics = WorkerMetrics()
    counts = metrics.group("orders", "email")
    counts.received("new", 5)
    counts.processed("send", "ok", 0.2)
    counts.processed("send", "skipped", n=1)
    counts.duplicate(2)
    counts.queue_wait(-3)
    metrics.topic("orders").published("ok", 7, 0.01)
    found = samples(render(metrics.registry)[1])
    group = {"topic": "orders", "group": "email"}
    assert value(found, "streamlib_events_received_total", **group, delivery="new") == 5
    assert value(found, "streamlib_events_received_total", **group, delivery="reclaimed") == 0
    assert value(found, "streamlib_events_processed_total", **group, handler="send", outcome="ok") == 1
    assert value(found, "streamlib_events_processed_total", **group, handler="send", outcome="dead") == 0
    assert value(found, "streamlib_handler_duration_seconds_count", topic="orders", handler="send") == 1
    assert value(found, "streamlib_duplicates_suppressed_total", **group) == 2
    assert value(found, "streamlib_queue_wait_seconds_sum", **group) == 0
    assert value(found, "streamlib_published_events_total", topic="orders", outcome="ok") == 7
    assert metrics.group("orders", "email") is counts


def test_build_info_names_versions_and_follows_the_server() -> None:
    metrics = WorkerMetrics()
    metrics.connected_to("valkey 9.1.0")
    info = [labels for name, labels in samples(render(metrics.registry)[1]) if name == "streamlib_build_info"]
    assert [dict(labels)["server"] for labels in info] == ["valkey 9.1.0"]
    assert dict(info[0])["redis_py"] == importlib.metadata.version("redis")


@pytest.mark.row(77)
def test_error_types_become_other_after_fifty() -> None:
    metrics = WorkerMetrics()
    counts = metrics.group("t", "g")
    for number in range(60):
        counts.handler_error("h", f"Error{number}")
    counts.handler_error("h", "Error0")
    found = samples(render(metrics.registry)[1])
    series = {key: count for key, count in found.items() if key[0] == "streamlib_handler_errors_total"}
    assert len(series) == 51
    assert value(found, "streamlib_handler_errors_total", handler="h", error_type="other") == 10
    assert value(found, "streamlib_handler_errors_total", handler="h", error_type="Error0") == 2


def test_words_that_come_from_elsewhere_stay_finite() -> None:
    metrics = WorkerMetrics()
    for number in range(1_000):
        metrics.redis_error(f"kind{number}")
        metrics.topic("t").published(f"outcome{number}", 1, 0.1)
    found = samples(render(metrics.registry)[1])
    for name in ("redis_errors_total", "published_events_total"):
        assert sum(1 for key in found if key[0] == f"streamlib_{name}") == 17


def test_commands_of_the_hot_path_are_told_apart_and_all_others_are_one() -> None:
    metrics = WorkerMetrics()
    for command in ("settle", "xadd", "commit", "settle", "get", "hset"):
        metrics.redis_command(command, 0.25)
    found = samples(render(metrics.registry)[1])
    name = "streamlib_redis_command_duration_seconds_count"
    counts = {dict(labels)["command"]: count for (metric, labels), count in found.items() if metric == name}
    assert counts == {"settle": 2, "commit": 1, "other": 3}


def test_sizes_of_a_batch_are_told_as_one_by_one() -> None:
    """The histogram of our own says what the library's would."""
    bounds = next(metric.buckets for metric in METRICS if metric.name == "event_size_bytes")
    sizes = [0, 1, 63, 64, 65, 256, 5_000, 4_194_304, 4_194_305]
    metrics, registry = WorkerMetrics(), CollectorRegistry()
    expected = Histogram("streamlib_event_size_bytes", "", ["topic"], registry=registry, buckets=bounds).labels("t")
    for group in ("email", "ledger"):
        metrics.group("t", group).sizes(sizes[:4])
    metrics.group("t", "email").sizes([])
    for size in sizes[:4] * 2:
        expected.observe(size)
    for size in sizes[4:]:
        metrics.group("t", "email").sizes([size])
        expected.observe(size)
    for accept in ("", OPENMETRICS):
        ours = samples(render(metrics.registry, accept)[1], openmetrics=bool(accept))
        theirs = samples(render(registry, accept)[1], openmetrics=bool(accept))
        assert {key: n for key, n in ours.items() if key[0].startswith("streamlib_event_size_bytes")} == theirs


@pytest.mark.row(77)
@pytest.mark.parametrize(("topics", "groups", "handlers"), [(1, 1, 1), (1, 10, 1), (4, 2, 3), (10, 1, 1), (2, 20, 5)])
def test_series_stay_within_the_budget(topics: int, groups: int, handlers: int) -> None:
    """200 + 150 for each handler + 40 for each group, with every label value lit."""
    metrics = WorkerMetrics()
    inspected = []
    for topic in range(topics):
        names = [f"group{topic}_{group}" for group in range(groups)]
        for name in names:
            light_everything(metrics, f"topic{topic}", name, handlers)
        inspected.append(topic_info(f"topic{topic}", *map(group_info, names)))
        for outcome in ("ok", "duplicate", "error"):
            metrics.topic(f"topic{topic}").published(outcome, 1, 0.1)
    BacklogGauges(metrics.registry).update(inspected)
    for kind in ("network", "failover", "migrate", "pause", "lost_state", "config", "bug"):
        metrics.redis_error(kind)
    for command in (*COMMANDS, "xadd"):
        metrics.redis_command(command, 0.1)
    groups_in_all = topics * groups
    series = len(samples(render(metrics.registry)[1]))
    assert series <= 200 + 150 * groups_in_all * handlers + 40 * groups_in_all


# --- formats


def test_a_scraper_gets_the_format_it_asks_for() -> None:
    metrics = WorkerMetrics()
    metrics.group("t", "g").received("new", 1)
    plain_type, plain = render(metrics.registry)
    open_type, text = render(metrics.registry, OPENMETRICS)
    assert plain_type.startswith("text/plain")
    assert open_type.startswith("application/openmetrics-text")
    labels = {"topic": "t", "group": "g", "delivery": "new"}
    assert value(samples(plain), "streamlib_events_received_total", **labels) == 1
    assert value(samples(text, openmetrics=True), "streamlib_events_received_total", **labels) == 1


@pytest.mark.parametrize("accept", ["", "nonsense", "application/openmetrics-text;version=abc", "*/*"])
def test_an_odd_accept_header_gets_plain_text(accept: str) -> None:
    content_type, text = render(WorkerMetrics().registry, accept)
    assert content_type.startswith("text/plain")
    assert samples(text)


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_there_are_no_created_series(accept: str) -> None:
    metrics = WorkerMetrics()
    light_everything(metrics, "t", "g", 1)
    assert b"_created" not in render(metrics.registry, accept)[1]


# --- several processes


def slot_registry(amount: float) -> CollectorRegistry:
    registry = CollectorRegistry()
    events = Counter("streamlib_x", 'help with \n break and "quotes" # {', ["name"], registry=registry)
    events.labels('a "b" \\ } {slot} # \n').inc(amount, {"trace_id": f"t{amount:g}"})
    Gauge("streamlib_plain", "no labels", registry=registry).set(amount)
    return registry


def test_merged_samples_carry_their_slot_and_keep_exemplars() -> None:
    texts = [(slot, render(slot_registry(slot + 1), OPENMETRICS)[1]) for slot in range(3)]
    families = {family.name: family for family in parse_openmetrics(merge(texts).decode())}
    counted = {sample.labels["slot"]: sample for sample in families["streamlib_x"].samples}
    assert {slot: sample.value for slot, sample in counted.items()} == {"0": 1, "1": 2, "2": 3}
    assert {sample.labels["name"] for sample in counted.values()} == {'a "b" \\ } {slot} # \n'}
    exemplars = [sample.exemplar for sample in counted.values()]
    assert [exemplar.labels["trace_id"] for exemplar in exemplars if exemplar] == ["t1", "t2", "t3"]
    plain = families["streamlib_plain"].samples
    assert [(sample.labels, sample.value) for sample in plain] == [({"slot": str(slot)}, slot + 1) for slot in range(3)]


def test_merging_changes_nothing_but_the_slot() -> None:
    metrics = WorkerMetrics(server="x")
    light_everything(metrics, "t", "g", 2)
    for accept in ("", OPENMETRICS):
        text = render(metrics.registry, accept)[1]
        before = samples(text, openmetrics=bool(accept))
        after = samples(merge([(0, text), (7, text)]), openmetrics=bool(accept))
        expected = {(name, labels | {("slot", slot)}): told for (name, labels), told in before.items() for slot in "07"}
        assert after == expected


def test_nothing_merged_is_still_an_exposition() -> None:
    content_type, text = render_nothing(OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text")
    assert samples(text, openmetrics=True) == {}


# --- backlog gauges


def backlog_samples(registry: CollectorRegistry) -> Samples:
    return samples(render(registry)[1])


def test_backlog_gauges_tell_the_latest_inspection() -> None:
    registry = CollectorRegistry()
    gauges = BacklogGauges(registry)
    gauges.update([topic_info("t", group_info("a"), group_info("b", lag=None))])
    found = backlog_samples(registry)
    assert value(found, "streamlib_topic_length", topic="t") == 10
    assert value(found, "streamlib_group_lag", topic="t", group="a") == 3
    assert value(found, "streamlib_group_backlog", topic="t", group="a") == 6
    assert ("streamlib_group_lag", frozenset({("topic", "t"), ("group", "b")})) not in found
    assert value(found, "streamlib_group_lag_known", topic="t", group="b") == 0
    gauges.update([topic_info("t", group_info("a", lag=1))])
    found = backlog_samples(registry)
    assert value(found, "streamlib_group_lag", topic="t", group="a") == 1
    assert ("streamlib_group_dead", frozenset({("topic", "t"), ("group", "b")})) not in found


def test_a_topic_that_three_updates_lack_is_dropped() -> None:
    registry = CollectorRegistry()
    gauges = BacklogGauges(registry)
    gauges.update([topic_info("old", group_info()), topic_info("kept", group_info())])
    for _ in range(2):
        gauges.update([topic_info("kept", group_info())])
    assert value(backlog_samples(registry), "streamlib_topic_length", topic="old") == 10
    gauges.update([topic_info("kept", group_info())])
    found = backlog_samples(registry)
    assert ("streamlib_topic_length", frozenset({("topic", "old")})) not in found
    assert value(found, "streamlib_topic_length", topic="kept") == 10


def test_nothing_stale_is_served_when_updates_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis is down: the last numbers must not look like those of now."""
    registry = CollectorRegistry()
    gauges = BacklogGauges(registry)
    gauges.update([topic_info("t", group_info())])
    assert backlog_samples(registry)
    monkeypatch.setattr(backlog, "MAX_AGE_S", -1.0)
    assert backlog_samples(registry) == {}


def test_labels_are_names_of_things_declared_and_words_of_ours() -> None:
    """No payload, key, id or address: they tell what nobody may read there, and each makes a series."""
    declared, build = {"topic", "group", "handler", "type"}, {"version", "python", "redis_py", "server"}
    words = {"delivery", "outcome", "reason", "kind", "command", "change", "error_type"}
    assert {label for metric in METRICS for label in metric.labels} <= declared | words | build
