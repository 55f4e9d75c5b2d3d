"""What handlers call is down while thousands of events wait: with a circuit breaker they keep their attempts."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from streamlib import Settings
from streamlib.settings import RedisSettings
from tests.chaos.outage_app import ATTEMPTS, CONCURRENCY, FAILURES, Job, app, jobs
from tests.helpers.delivering import dead_letters
from tests.helpers.oracle import assert_nothing_lost
from tests.helpers.publishing import stored_ids
from tests.helpers.servers import free_port
from tests.helpers.waiting import wait_until
from tests.helpers.workers import WorkerProc

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]

Start = Callable[[str], WorkerProc]


class Service:
    """Answers "ok" to lines "<job> <attempt>", on one port, while it is up."""

    def __init__(self) -> None:
        self.port = free_port()
        self.calls: list[tuple[int, int]] = []

    @contextmanager
    def up(self) -> Iterator[None]:
        calls = self.calls

        class Answers(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                job, attempt = self.rfile.readline().split()
                calls.append((int(job), int(attempt)))
                self.wfile.write(b"ok\n")

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address, daemon_threads, request_queue_size = True, True, 128

        with Server(("127.0.0.1", self.port), Answers) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.05,))
            thread.start()
            try:
                yield
            finally:
                server.shutdown()
                thread.join()


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def start(redis_url: str, tmp_path: Path, service: Service) -> Iterator[Start]:
    """`start("on")`: a ready worker process, with the breaker on or off."""
    with ExitStack() as stack:

        def begin(breaker: str) -> WorkerProc:
            env = {
                "OUTAGE_PORT": str(service.port),
                "OUTAGE_BREAKER": breaker,
                "STREAMLIB_WORKER_BLOCK_MS": "100",
                "STREAMLIB_LOG_FORMAT": "json",
            }
            worker = WorkerProc("tests.chaos.outage_app:app", redis_url, cwd=tmp_path, env=env)
            return stack.enter_context(worker).wait_ready()

        yield begin


def publish(redis_url: str, count: int) -> None:
    app.configure(Settings(redis=RedisSettings(url=redis_url)))
    with app.blocking() as opened:
        results = opened.publish_many(jobs, [Job(n=n) for n in range(count)])
    assert not [result for result in results if isinstance(result, Exception)]


def settled(client: redis.Redis) -> bool:
    return assert_nothing_lost(client, "jobs", "mail", stored_ids(client, "jobs")).settled


def openings(worker: WorkerProc) -> list[dict[str, Any]]:
    """What the worker logged each time its breaker opened, failed probes included."""
    lines = [line for line in worker.log().splitlines() if '"breaker_opened"' in line]
    return [json.loads(line) for line in lines]


@pytest.mark.row(66)
@pytest.mark.parametrize(
    ("events", "probes"), [pytest.param(2_000, 3), pytest.param(10_000, 10, marks=pytest.mark.slow)]
)
def test_an_outage_leaves_no_dead_letters_behind_and_probes_are_all_that_it_costs(
    redis_url: str, client: redis.Redis, service: Service, start: Start, events: int, probes: int
) -> None:
    workers = [start("on"), start("on")]
    publish(redis_url, events)
    wait_until(lambda: all(len(openings(one)) > probes for one in workers), 60, what="both have probed in vain")
    for worker in workers:
        assert worker.get("/readyz")[0] == 200, "an outage of others is none of the worker's"
        assert worker.metric("streamlib_breaker_open", group="mail") == 1
        failed_probes = len(openings(worker)) - 1
        failures = worker.metric("streamlib_handler_errors_total", handler="mail")
        most = FAILURES + CONCURRENCY + failed_probes + 2  # those that open it, those that run meanwhile, probes
        assert FAILURES + probes <= failures <= most
    pauses = [one["pause_ms"] for worker in workers for one in openings(worker)]
    assert len(set(pauses)) > len(pauses) // 2, "workers do not probe together"
    with service.up():
        wait_until(lambda: settled(client), 60)
        assert all(worker.metric("streamlib_breaker_open", group="mail") == 0 for worker in workers)
    assert sorted(job for job, _ in service.calls) == list(range(events)), "each was done once"
    spent = sum(attempt - 1 for _, attempt in service.calls)
    assert spent <= FAILURES * len(workers)
    assert dead_letters(client, "jobs", "mail") == []
    print(f"{events} events, {len(pauses) - 2} failed probes, {spent} attempts spent, no dead letters")


@pytest.mark.row(66)
def test_without_a_breaker_an_outage_that_outlasts_the_retries_floods_the_dead_letters(
    redis_url: str, client: redis.Redis, start: Start
) -> None:
    """What the breaker is for; retries with jitter alone spread the runs, and spend them."""
    worker = start("off")
    publish(redis_url, 300)
    wait_until(lambda: len(dead_letters(client, "jobs", "mail")) == 300, 30)
    assert worker.metric("streamlib_handler_errors_total", handler="mail") == ATTEMPTS * 300
    assert settled(client)
