"""Workers that are killed, frozen, replaced or crashed by an event: nothing is lost, effects in Redis stay exact."""

from __future__ import annotations

import pytest

from tests.chaos.conftest import LEASE_MS, Bench
from tests.helpers.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]


@pytest.mark.row(1)
def test_kill_9_of_one_of_two_workers_loses_nothing(bench: Bench) -> None:
    with bench.worker(work_s=0.02) as first, bench.worker(work_s=0.02) as second:
        first.wait_ready()
        second.wait_ready()
        bench.publish(5_000)
        wait_until(lambda: len(bench.runs()) > 500, 60)
        first.kill9()
        bench.wait_until_done()
        bench.check()
        assert second.metric("streamlib_events_received_total", group="effects", delivery="reclaimed") > 0
        repeated = sum(times > 1 for times in bench.runs().values())
        print(f"handled {len(bench.runs())}, outside effects repeated after the kill: {repeated}")


@pytest.mark.row(4)
def test_a_frozen_worker_is_fenced_when_it_wakes(bench: Bench) -> None:
    with bench.worker(work_s=0.05) as frozen, bench.worker(work_s=0.05) as other:
        frozen.wait_ready()
        other.wait_ready()
        bench.publish(3_000)
        wait_until(lambda: len(bench.runs()) > 300, 60)
        frozen.stop()
        held = bench.claims_of(frozen.pid)
        assert held, "the frozen worker holds claims"
        wait_until(lambda: not bench.claims_of(frozen.pid), 30, what="the other took over what it held")
        frozen.cont()
        bench.wait_until_done()
        wait_until(lambda: frozen.metric("streamlib_lease_lost_total") > 0, 30, what="the fence is counted")
        bench.check()


@pytest.mark.row(14)
def test_a_rolling_restart_runs_nothing_twice_and_spends_no_attempt(bench: Bench) -> None:
    workers = [bench.worker(work_s=0.05).start() for _ in range(3)]
    try:
        for worker in workers:
            worker.wait_ready()
        for index in range(3):
            bench.publish(2_000)
            wait_until(lambda: len(bench.runs()) > index * 2_000 + 100, 60)  # noqa: B023
            assert len(bench.runs()) < (index + 1) * 2_000, "the restart happens under load"
            workers[index].term()
            assert workers[index].wait(60) == 0
            workers[index] = bench.worker(work_s=0.05).start()
            workers[index].wait_ready()
        bench.wait_until_done()
    finally:
        for worker in workers:
            worker.__exit__(None, None, None)
    bench.check()
    assert set(bench.runs().values()) == {1}
    assert bench.attempts() == {1}


@pytest.mark.row(9, 10)
def test_an_event_that_kills_its_worker_ends_alone_in_the_dead_letters(bench: Bench) -> None:
    with bench.worker("-p", "2", work_s=0.001) as supervisor:
        supervisor.wait_ready()
        bench.publish(1_000, {500: "abort"})
        bench.wait_until_done(120)
        assert supervisor.running
        dead = bench.client.xrange("{jobs}:dead:effects")
        assert [fields[b"dl-reason"] for _, fields in dead] == [b"crash"]
        assert b'"n":500' in dead[0][1][b"data"]
        bench.check(dead=[500])


@pytest.mark.row(5)
def test_a_blocked_event_loop_keeps_its_claims(bench: Bench) -> None:
    block_s = 3 * LEASE_MS / 1000
    with bench.worker(JOB_BLOCK_S=str(block_s)) as blocked, bench.worker(JOB_BLOCK_S=str(block_s)) as other:
        blocked.wait_ready()
        other.wait_ready()
        bench.publish(200, {100: "block"})
        bench.wait_until_done()
        bench.check()
        assert set(bench.runs().values()) == {1}, "a live but slow worker is never robbed"


@pytest.mark.row(5)
def test_a_process_that_hangs_gives_up_and_its_work_runs_elsewhere(bench: Bench) -> None:
    with bench.worker(JOB_BLOCK_S="600", STREAMLIB_WORKER_STALL_S="2") as first:
        first.wait_ready()
        bench.publish(50, {20: "block"})
        assert first.wait(60) == 1
        assert "event_loop_stalled" in first.log()
    with bench.worker(JOB_BLOCK_S="0") as second:
        second.wait_ready()
        bench.wait_until_done()
        bench.check()


@pytest.mark.parametrize(
    ("act", "effects"),
    [
        pytest.param("die before", 1, marks=pytest.mark.row(1, 67)),
        pytest.param("die after", 2, marks=pytest.mark.row(2)),
    ],
)
def test_an_event_whose_worker_is_killed_in_its_handler_runs_elsewhere(bench: Bench, act: str, effects: int) -> None:
    with bench.worker() as one, bench.worker() as other:
        one.wait_ready()
        other.wait_ready()
        bench.publish(200, {100: act})
        wait_until(lambda: one.running is not other.running, 30, what="the handler has killed its worker")
        alive = one if one.running else other
        bench.wait_until_done(30 * LEASE_MS / 1000)
        bench.check()
        assert bench.runs()[100] == effects, "outside it repeats if it was there; inside it is once"
        assert bench.attempts() == {1}, "a crash spends no attempt"
        assert alive.metric("streamlib_events_received_total", group="effects", delivery="reclaimed") > 0
