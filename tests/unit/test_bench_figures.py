"""The figures of `streamlib bench`: ratios within a round, per event between two marks, quantiles that occurred."""

import pytest

from streamlib.bench.clock import Clock, Latencies, Size
from streamlib.bench.figures import Line, Spread, lines, quantile
from streamlib.keys import SCRATCH, Keys
from streamlib.redisio.counting import Counter


def test_ratios_are_taken_within_a_round() -> None:
    rounds = [
        {"raw": {"per_s": 100.0}, "worker": {"per_s": 50.0}},
        {"raw": {"per_s": 10.0}, "worker": {"per_s": 9.0}},  # a slow moment for both
        {"raw": {"per_s": 200.0}, "worker": {"per_s": 80.0}},
    ]
    raw, worker = lines(rounds, {"raw": "", "worker": "raw"})
    assert raw == Line("raw", "per_s", Spread(100, 10, 200))
    assert worker == Line("worker", "per_s", Spread(50, 9, 80), "raw", Spread(0.5, 0.4, 0.9))


def test_a_figure_that_the_base_lacks_or_measured_as_zero_has_no_ratio() -> None:
    rounds = [{"raw": {"waits": 0.0}, "worker": {"waits": 3.0, "rows": 2.0}}]
    _, waits, rows = lines(rounds, {"raw": "", "worker": "raw"})
    assert (waits.ratio, rows.ratio) == (None, None)


def test_quantiles_are_values_that_occurred() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert [quantile(values, part) for part in (0.5, 0.99, 1)] == [50, 99, 100]
    assert quantile([7.0], 0.99) == 7


async def test_the_clock_runs_over_the_middle_of_the_backlog(monkeypatch: pytest.MonkeyPatch) -> None:
    size, counter = Size.of(1_000), Counter()
    assert (size.warm, size.backlog, size.total) == (100, 1_200, 1_500)
    clock = Clock(size, counter)
    now_s = 0.0
    monkeypatch.setattr("streamlib.bench.clock.time.perf_counter", lambda: now_s)
    monkeypatch.setattr("streamlib.bench.clock.time.process_time", lambda: now_s / 2)
    for _ in range(size.backlog):
        assert not clock.finished.is_set()
        now_s += 0.001 if size.warm <= clock.handled < size.warm + size.events else 5.0
        counter.commands += 2
        clock.tick()
    assert clock.finished.is_set()
    assert clock.figures() == {
        "events_per_second": pytest.approx(1_000),
        "client_us": pytest.approx(500),
        "commands_per_1000": 2_000,
    }


async def test_latencies_are_complete_with_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamlib.bench.clock.time.monotonic_ns", lambda: 5_000_000)
    latencies = Latencies(2)
    latencies.started(4_000_000)
    assert not latencies.complete.is_set()
    latencies.started(2_000_000)
    assert latencies.complete.is_set()
    assert latencies.ms == [1.0, 3.0]


def test_scratch_keys_are_new_each_time_and_nobody_elses_pass_for_them() -> None:
    one, other = Keys.scratch(), Keys.scratch()
    assert one != other
    assert one.are_scratch
    assert one.stream("orders", 0, 1).stream.startswith(SCRATCH)
    assert not any(Keys(name).are_scratch for name in ("", "shop", SCRATCH + "mine", f"{one.namespace}-2"))
