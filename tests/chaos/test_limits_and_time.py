"""Workers of limited groups, of handlers that must not run twice and of delayed events, killed and blocked."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from streamlib import Settings
from streamlib.settings import RedisSettings
from tests.chaos.timed_app import Job, app, jobs
from tests.helpers.delivering import dead_letters
from tests.helpers.oracle import assert_nothing_lost
from tests.helpers.publishing import stored_ids
from tests.helpers.waiting import wait_until
from tests.helpers.workers import WorkerProc

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(180),
    pytest.mark.allow_keys("starts", "running", "most", "never"),
]
LEASE_MS = 2_000
STREAMS = [f"jobs.{number}" for number in range(4)]

Start = Callable[..., WorkerProc]


@pytest.fixture
def start(redis_url: str, tmp_path: Path) -> Iterator[Start]:
    """`start("one")`: a ready worker process of this group alone."""
    env = {"BOOK_URL": redis_url, "STREAMLIB_WORKER_LEASE_MS": str(LEASE_MS), "STREAMLIB_WORKER_BLOCK_MS": "100"}
    with ExitStack() as stack:

        def begin(group: str) -> WorkerProc:
            worker = WorkerProc("tests.chaos.timed_app:app", redis_url, "--group", group, cwd=tmp_path, env=env)
            return stack.enter_context(worker).wait_ready()

        yield begin


def publish(redis_url: str, events: list[Job], **options: Any) -> list[str]:
    """The event ids."""
    app.configure(Settings(redis=RedisSettings(url=redis_url)))
    ids = [f"e-{event.n}" for event in events]
    with app.blocking() as shop:
        for event_id, event in zip(ids, events, strict=True):
            shop.publish(jobs, event, id=event_id, **options)
    return ids


def settled(client: Any, group: str, ids: list[str]) -> bool:
    return assert_nothing_lost(client, STREAMS, group, ids).settled


def test_a_killed_worker_frees_its_share_within_the_lease(redis_url: str, client: Any, start: Start) -> None:
    workers = {worker.pid: worker for worker in (start("one"), start("one"))}
    ids = publish(redis_url, [Job(n=0, seconds=10)])  # it may be the first to run again, alone as it must
    (run,) = wait_until(lambda: client.smembers("running"))
    ids += publish(redis_url, [Job(n=n) for n in range(1, 30)])
    workers.pop(int(run.split()[0])).kill9()
    client.srem("running", run)
    killed_at = time.monotonic()
    wait_until(lambda: client.llen("starts") > 1, 30)
    print(f"its share was free again after {time.monotonic() - killed_at:.2f} s of a lease of {LEASE_MS / 1000:g} s")
    wait_until(lambda: len(set(client.lrange("starts", 0, -1))) == 30, 60)
    wait_until(lambda: client.lrange("starts", 0, -1).count(b"0") == 2, 60, what="what the dead one ran runs again")
    assert int(client.get("most")) == 1
    assert_nothing_lost(client, STREAMS, "one", ids)


@pytest.mark.row(5)
def test_a_handler_that_blocks_its_loop_for_leases_keeps_its_share(redis_url: str, client: Any, start: Start) -> None:
    start("one")
    start("one")
    ids = publish(
        redis_url, [Job(n=n, seconds=2.2 * LEASE_MS / 1000 if n < 2 else 0.02, blocks=True) for n in range(12)]
    )
    wait_until(lambda: settled(client, "one", ids), 60)
    assert int(client.get("most")) == 1
    assert Counter(client.lrange("starts", 0, -1)).most_common(1)[0][1] == 1


def test_rerun_never_runs_nothing_twice_on_any_partition(redis_url: str, client: Any, start: Start) -> None:
    killed, other = start("never"), start("never")
    ids = publish(redis_url, [Job(n=n, seconds=0.2) for n in range(80)])
    wait_until(lambda: client.llen("never") >= 16, 30)
    killed.kill9()
    wait_until(lambda: settled(client, "never", ids), 60)
    assert other.running
    runs = Counter(client.lrange("never", 0, -1))
    assert set(runs.values()) == {1}
    letters = [letter for stream in STREAMS for letter in dead_letters(client, stream, "never")]
    assert {letter["dl-reason"] for letter in letters} == {"outcome_unknown"}
    assert len({letter["id"] for letter in letters}) == len(letters)
    done = assert_nothing_lost(client, STREAMS, "never", ids).done
    assert len(done) + len(letters) == 80
    print(f"{len(done)} done, {len(letters)} of unknown outcome")


@pytest.mark.row(65)
def test_delayed_events_come_though_workers_are_killed(redis_url: str, client: Any, start: Start) -> None:
    first, _ = start("one"), start("one")
    ids = publish(redis_url, [Job(n=n, seconds=0.001) for n in range(60)], delay=1.5)
    assert client.llen("starts") == 0
    wait_until(lambda: client.llen("starts") > 3, 30)
    first.kill9()
    client.delete("running")
    wait_until(lambda: settled(client, "one", ids), 60)
    stored = stored_ids(client, *STREAMS)
    assert sorted(stored) == sorted(ids)
