"""Workers behind a network that is silent, slow or full, and at a server that lets them in no more: nothing is lost."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from tests.chaos.conftest import Bench
from tests.helpers.proxy import ChaosProxy
from tests.helpers.waiting import wait_until
from tests.helpers.workers import WorkerProc

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]


@pytest.fixture
def network(bench: Bench) -> Iterator[ChaosProxy]:
    """A bad network in front of the bench's server."""
    with ChaosProxy(bench.server.url) as running:
        yield running


def is_ready(worker: WorkerProc) -> bool:
    return worker.get("/readyz")[0] == 200


@pytest.mark.row(6, 22)
def test_a_worker_that_is_cut_off_says_so_and_is_fenced_when_it_is_back(bench: Bench, network: ChaosProxy) -> None:
    with bench.worker(work_s=0.05, url=network.url) as cut_off, bench.worker(work_s=0.05) as other:
        cut_off.wait_ready()
        other.wait_ready()
        bench.publish(3_000)
        bench.wait_for_runs(300)
        network.blackhole()
        assert bench.claims_of(cut_off.pid), "it holds claims"
        read_at = cut_off.metric("streamlib_last_poll_timestamp_seconds", group="effects")
        wait_until(lambda: not bench.claims_of(cut_off.pid), 30, what="the other took over what it held")
        wait_until(lambda: not is_ready(cut_off), 30, what="it says that it is not ready")
        assert cut_off.metric("streamlib_redis_errors_total", kind="timeout") > 0
        assert cut_off.metric("streamlib_last_poll_timestamp_seconds", group="effects") - read_at < 1
        network.heal()
        wait_until(lambda: is_ready(cut_off), 30, what="it is ready again")
        bench.wait_until_done()
        bench.check()
        assert cut_off.metric("streamlib_lease_lost_total") > 0


@pytest.mark.row(23)
def test_a_slow_and_lossy_network_costs_nothing_but_time(bench: Bench, network: ChaosProxy) -> None:
    rng = random.Random(5)
    network.delay(100, jitter_ms=80)
    network.throttle(200_000)
    with bench.worker(url=network.url) as one, bench.worker(url=network.url) as other:
        one.wait_ready()
        other.wait_ready()
        for round_ in range(20):
            bench.publish(50)
            if round_ % 2:
                network.reset_all()
            else:
                network.cut_replies_after(rng.randrange(5_000))
            bench.wait_for_runs(round_ * 50)
        bench.wait_until_done()
        bench.check()
        assert one.running
        assert other.running


@pytest.mark.row(26)
def test_what_does_not_fit_into_the_output_buffer_comes_in_pieces(bench: Bench) -> None:
    with bench.worker() as worker:
        worker.wait_ready()
        worker.stop()
        bench.publish(40, dict.fromkeys(range(40), "x" * 200_000))
        bench.client.config_set("client-output-buffer-limit", "normal 1mb 0 0")
        worker.cont()
        wait_until(lambda: len(bench.runs()) == 40, 60, what="all of them have run")
        wait_until(lambda: bench.is_folded("jobs", "accounts"), 60, what="all of them are folded")
        assert worker.metric("streamlib_redis_errors_total", kind="connection") > 0, "replies were cut"
        bench.client.config_set("client-output-buffer-limit", "normal 0 0 0")
        bench.wait_until_done()
        bench.check()


@pytest.mark.row(29)
@pytest.mark.parametrize("how", ["rights", "password"])
def test_a_worker_that_may_no_more_waits_until_it_may_again(bench: Bench, how: str) -> None:
    allow(bench, ">first", "+@all")
    url = bench.server.url.replace("redis://", "redis://app:first@")
    with bench.worker(work_s=0.01, url=url) as worker:
        worker.wait_ready()
        bench.publish(1_500)
        bench.wait_for_runs(200)
        if how == "rights":
            allow(bench, "-evalsha", "-eval", "-xreadgroup")
        else:
            allow(bench, "resetpass", ">second")
            bench.client.execute_command("CLIENT", "KILL", "USER", "app")
        wait_until(lambda: not is_ready(worker), 30, what="it says that it is not ready")
        assert worker.get("/livez")[0] == 200
        assert len(bench.runs()) < 1_500
        before = calls(bench.client)
        ran = len(bench.runs())
        wait_until(lambda: calls(bench.client) > before, 30, what="it tries on")
        assert len(bench.runs()) == ran, "it takes no work"
        allow(bench, ">first", "+@all")
        bench.wait_until_done()
        bench.check()
        assert bench.attempts() == {1}, "what could not be emitted spent no attempt"
        wait_until(lambda: is_ready(worker), 30)


def allow(bench: Bench, *rules: str) -> None:
    bench.client.execute_command("ACL", "SETUSER", "app", "on", "~*", "&*", *rules)


def calls(client: Any) -> int:
    """How often somebody was refused."""
    return sum(int(entry["count"]) for entry in client.acl_log())
