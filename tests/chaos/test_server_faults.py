"""A server that forgets, drops, restarts or stalls: the workers heal by themselves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from streamlib.message import Position
from tests.chaos.conftest import ACCOUNTS, Bench
from tests.chaos.job_app import Job, jobs
from tests.helpers.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]


@pytest.mark.row(25, 28)
def test_script_flush_and_client_kill_under_load(bench: Bench) -> None:
    with bench.worker(work_s=0.01) as first, bench.worker(work_s=0.01) as second:
        first.wait_ready()
        second.wait_ready()
        bench.publish(3_000)
        rounds = 0
        while len(bench.runs()) < 2_500:
            bench.client.script_flush()
            bench.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            rounds += 1
            bench.wait_for_runs(min(len(bench.runs()) + 150, 2_999))
        bench.wait_until_done()
        bench.check()
        print(f"{rounds} rounds of SCRIPT FLUSH and CLIENT KILL")
        assert rounds >= 3
        assert first.running
        assert second.running


@pytest.mark.row(33)
def test_flushall_is_healed_and_reported(bench: Bench) -> None:
    with bench.worker(work_s=0.001) as worker:
        worker.wait_ready()
        bench.publish(500)
        wait_until(lambda: len(bench.runs()) > 50)
        bench.client.flushall()
        bench.forget()
        wait_until(lambda: worker.metric("streamlib_stream_lost_total", group="effects") > 0, 60)
        wait_until(lambda: bench.client.exists("streamlib:topics"), 30, what="the registry is there again")
        bench.publish(500)
        bench.wait_until_done()
        bench.check()
        assert worker.running


@pytest.mark.row(33, 34)
def test_a_lost_group_goes_on_where_it_was(bench: Bench) -> None:
    with bench.worker() as worker:
        worker.wait_ready()
        bench.publish(500)
        bench.wait_until_done()
        bench.client.xgroup_destroy("jobs", "effects")
        wait_until(lambda: worker.metric("streamlib_stream_lost_total", group="effects") > 0, 60)
        bench.publish(100)
        bench.wait_until_done()
        bench.check()
        assert set(bench.runs().values()) == {1}, "what was done is not run again"


@pytest.mark.row(32)
def test_restarts_with_append_only_file_under_load(bench: Bench) -> None:
    with bench.worker(work_s=0.005) as first, bench.worker(work_s=0.005) as second:
        first.wait_ready()
        second.wait_ready()
        with publishing(bench, 3_000):
            for share in (800, 1_600):
                bench.wait_for_runs(share)
                bench.server.kill9()
                bench.server.start()
        bench.wait_until_done()
        bench.check()
        assert first.running
        assert second.running


@pytest.mark.row(41)
def test_a_stalled_server_causes_no_duplicate_runs(bench: Bench) -> None:
    with bench.worker(work_s=0.02) as first, bench.worker(work_s=0.02) as second:
        first.wait_ready()
        second.wait_ready()
        bench.publish(2_000)
        wait_until(lambda: len(bench.runs()) > 200, 60)
        bench.server.stop()
        stalled = threading.Timer(2.0, bench.server.cont)
        stalled.start()
        stalled.join()
        bench.wait_until_done()
        bench.check()
        assert set(bench.runs().values()) == {1}


@pytest.mark.row(36)
def test_a_full_server_pauses_the_work_and_loses_nothing(bench: Bench) -> None:
    with bench.worker(work_s=0.02) as first, bench.worker(work_s=0.02) as second:
        first.wait_ready()
        second.wait_ready()
        bench.publish(2_000)
        bench.wait_for_runs(200)
        bench.client.config_set("maxmemory", "1mb")
        wait_until(lambda: first.metric("streamlib_redis_errors_total", kind="oom") > 0, 30)
        wait_until(lambda: second.metric("streamlib_redis_errors_total", kind="oom") > 0, 30)
        assert len(bench.runs()) < 2_000
        bench.client.config_set("maxmemory", "0")
        bench.wait_until_done()
        bench.check()
        assert set(bench.runs().values()) == {1}


def test_a_worker_starts_before_its_server(bench: Bench) -> None:
    bench.publish(100)
    bench.server.kill9()
    with bench.worker() as worker:
        wait_until(lambda: worker.http_url() != "", 30)
        assert worker.get("/readyz")[0] == 503
        assert worker.get("/livez")[0] == 200
        bench.server.start()
        worker.wait_ready(60)
        bench.wait_until_done()
        bench.check()


@contextmanager
def publishing(bench: Bench, count: int) -> Iterator[None]:
    """Publish in the background; at the end every publish has returned and is on the books."""
    events = [Job(n=n, account=ACCOUNTS[n % len(ACCOUNTS)]) for n in range(count)]
    answers: list[Position] = []

    def publish() -> None:
        for start in range(0, count, 100):
            for answer in bench.app.publish_many(jobs, events[start : start + 100]):
                assert isinstance(answer, Position), answer
                answers.append(answer)

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield
    finally:
        thread.join(120)
    assert len(answers) == count
    bench.book(events, [answer.entry_id for answer in answers])
