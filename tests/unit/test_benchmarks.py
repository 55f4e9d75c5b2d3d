"""The benchmarks: their arithmetic, and that a wrong result ends them; what lost events is not measured."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from msgspec.structs import replace

from benchmarks import __main__ as command
from benchmarks import cases, chart, checks, figures, harness, loops, peer_cases
from benchmarks.case import Run, Size
from benchmarks.clock import Moment, between, commands
from benchmarks.pacing import quantile
from benchmarks.payload import GROUP, STREAM, fill
from streamlib.bench.figures import Line, Spread

SIZE = Size(events=80, warm=10)


def test_the_table_names_median_spread_and_base() -> None:
    line = Line("worker", "events_per_s", Spread(12_345.6, 9.876, 20_000), "raw", Spread(0.5, 0.4, 0.9))
    words = figures.text([line]).splitlines()[1].split()
    assert words == ["worker", "events_per_s", "12,346", "9.88", "20,000", "0.50", "(0.40", "to", "0.90)", "of", "raw"]


def test_figures_of_a_run_are_per_event_between_its_two_moments() -> None:
    stats = {"cmdstat_evalsha": {"calls": 10}, "cmdstat_xreadgroup": {"calls": 5}, "cmdstat_set": {"calls": 2_000}}
    server = {"used_cpu_user": 1.0, "used_cpu_sys": 0.5, **stats}
    later = {"used_cpu_user": 1.5, "used_cpu_sys": 0.6, **stats, "cmdstat_evalsha": {"calls": 30}}
    found = between(Moment(1_000, 10.0, 2.0, server), Moment(3_000, 10.5, 2.1, later))
    assert found["events_per_s"] == 4_000
    assert found["cpu_us"] == pytest.approx(50)
    assert found["server_us"] == pytest.approx(300)
    assert found["commands"] == 0.01, "what scripts call is not sent by anybody"


def test_scripts_that_only_read_are_sent_too() -> None:
    stats = {"cmdstat_evalsha_ro": {"calls": 2}, "cmdstat_xread": {"calls": 3}, "cmdstat_hmget": {"calls": 500}}
    assert commands(stats) == 5


def test_without_scripts_every_command_counts() -> None:
    assert commands({"cmdstat_xack": {"calls": 3}, "cmdstat_xreadgroup": {"calls": 4}, "used_cpu_sys": 1.0}) == 7


def test_quantiles_are_values_that_occurred() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert [quantile(values, part) for part in (0.5, 0.99, 1)] == [50, 99, 100]
    assert quantile([7.0], 0.99) == 7


def test_a_case_brings_its_base_and_a_word_its_family() -> None:
    assert [case.name for case in cases.chosen(["worker"])] == ["raw_claimed", "worker"]
    assert {"publish_many", "publish_one", "raw_pipeline"} <= {case.name for case in cases.chosen(["publish"])}
    with pytest.raises(LookupError, match="no case 'nonsense'"):
        cases.chosen(["nonsense"])


def test_peers_come_by_name_and_with_the_python_that_has_them() -> None:
    others = peer_cases.peers({"arq": "/old/bin/python"})
    raw, worker, arq = cases.chosen(["worker", "peer_arq"], others)
    assert [raw.name, worker.name, arq.name] == ["raw_claimed", "worker", "peer_arq"]
    words = harness.command(arq, SIZE, "redis://here")
    assert words == ["/old/bin/python", "-m", "benchmarks.peers.arq", "redis://here", "80", "10"]
    with pytest.raises(LookupError, match="no peer 'nonsense'"):
        peer_cases.peers({"nonsense": "/old/bin/python"})


def test_only_what_is_ours_has_a_twin_in_another_checkout() -> None:
    there = cases.beside(cases.chosen(["worker"]), Path("/elsewhere"))
    assert [(case.name, case.base, case.checkout) for case in there[1:]] == [
        ("worker", "raw_claimed", ""),
        ("worker@there", "worker", "/elsewhere"),
    ]


def _unmark(client: redis.Redis) -> None:
    client.delete(next(iter(client.scan_iter("*:idem:*"))))


def _leave_pending(client: redis.Redis) -> None:
    fill(client, 1)
    client.xreadgroup(GROUP, "c", {STREAM: ">"})


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (_unmark, "1 events of orders carry no done mark"),
        (_leave_pending, "pending in orders: 1, expected 0"),
        (lambda client: fill(client, 1), "unread in orders: 1, expected 0"),
    ],
    ids=["mark", "pending", "unread"],
)
async def test_what_is_wrong_with_a_result_is_named(
    redis_url: str, client: redis.Redis, spoil: Callable[[redis.Redis], Any], problem: str
) -> None:
    fill(client, SIZE.total)
    run = await loops.raw_claimed(redis_url, SIZE)
    assert checks.settled(client, run, SIZE.total) == []
    assert checks.settled(client, replace(run, handled=99), SIZE.total) == ["handled: 99, expected 100"]
    spoil(client)
    assert problem in checks.settled(client, run, SIZE.total)


def test_two_entries_of_one_event_are_no_two_published_events(client: redis.Redis) -> None:
    for _ in range(SIZE.events):
        client.xadd(STREAM, {"id": "the-same"})
    assert checks.published(client, SIZE, Run({}, SIZE.events)) == ["different event ids: 1, expected 80"]


def test_a_wrong_result_ends_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    unmarked = replace(cases.CASES["raw_batch"], check=loops.all_settled, base="")
    monkeypatch.setitem(cases.CASES, "raw_batch", unmarked)
    assert command.main(["raw_batch", "--rounds", "1", "--events", "100"]) == 1
    told = capsys.readouterr()
    assert "raw_batch: 120 events of orders carry no done mark" in told.err
    assert "events_per_s" not in told.out


def test_a_right_one_prints_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["raw_batch", "--rounds", "1", "--events", "100"]) == 0
    table = capsys.readouterr().out
    assert "raw_claimed" in table
    assert "of raw_claimed" in table


def test_the_chart_has_a_bar_for_each_case_that_ran_and_all_begin_at_zero() -> None:
    rounds = [
        {"worker": {"events_per_s": 100.0}, "peer_rq": {"events_per_s": 2.0}},
        {"worker": {"events_per_s": 50.0}, "peer_rq": {"events_per_s": 1.0}},
    ]
    rows = chart.bars(rounds)
    assert rows == [("streamlib: async handler", 1.0, True), ("RQ: a fork per job", 0.02, False)]
    drawn = chart.svg(rows, "a <title>")
    widths = [int(width) for width in re.findall(r'width="(\d+)" height="16"', drawn)]
    assert "a &lt;title&gt;" in drawn
    assert widths[0] == pytest.approx(50 * widths[1], rel=0.06), "lengths are as the rates"
