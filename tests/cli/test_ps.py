"""`streamlib ps`: workers that live, and what they own."""

import socket
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.cli.conftest import Cli
from tests.helpers.waiting import wait_until
from tests.helpers.workers import WorkerProc

Move = Callable[..., None]
LEASE = {"STREAMLIB_WORKER_LEASE_MS": "4000"}


def ps(cli: Cli, redis_url: str) -> list[dict[str, Any]]:
    done = cli("ps", "--json", "--redis", redis_url, env=LEASE)
    assert done.code == 0, done.err
    found: list[dict[str, Any]] = done.json
    return found


def owned(workers: list[dict[str, Any]], group: str) -> list[list[int]]:
    """What each worker owns of the group."""
    return [work["partitions"] for one in workers for work in one["groups"] if work["group"] == group]


def test_without_workers_there_are_none(cli: Cli, redis_url: str) -> None:
    assert ps(cli, redis_url) == []
    done = cli("ps", "--redis", redis_url)
    assert (done.code, done.out) == (0, "")
    assert "no worker lives here" in done.err


def test_a_worker_is_shown_with_what_it_owns(cli: Cli, bank: Path, redis_url: str) -> None:
    began = datetime.now(UTC)
    with WorkerProc("bank:app", redis_url, cwd=bank, env=LEASE) as worker:
        worker.wait_ready()
        wait_until(lambda: owned(ps(cli, redis_url), "ledger") == [[0, 1]])
        wait_until(lambda: owned(ps(cli, redis_url), "balances") == [[0, 1]])
        (shown,) = ps(cli, redis_url)
        assert shown.keys() == {"worker", "host", "pid", "since", "last_beat_seconds", "groups"}
        assert (shown["host"], shown["pid"]) == (socket.gethostname(), worker.pid)
        assert abs((datetime.fromisoformat(shown["since"]) - began).total_seconds()) < 3_600
        assert 0 <= shown["last_beat_seconds"] <= 3
        assert shown["groups"] == [
            {"topic": "moves", "group": "audit", "kind": "handler", "partitions": None, "refused": None},
            {"topic": "moves", "group": "balances", "kind": "projection", "partitions": [0, 1], "refused": []},
            {"topic": "moves", "group": "ledger", "kind": "ordered", "partitions": [0, 1], "refused": []},
        ]
        table = cli("ps", "--redis", redis_url, env=LEASE).out
        assert shown["worker"] in table
        assert "moves:audit moves:balances[0,1] moves:ledger[0,1]" in table
        worker.term()
        worker.wait()
    assert ps(cli, redis_url) == [], "who ends says so"


def test_workers_share_partitions_and_a_killed_one_goes(cli: Cli, bank: Path, redis_url: str) -> None:
    with ExitStack() as stack:
        workers = [stack.enter_context(WorkerProc("bank:app", redis_url, cwd=bank, env=LEASE)) for _ in range(2)]
        for worker in workers:
            worker.wait_ready()
        wait_until(lambda: sorted(owned(ps(cli, redis_url), "ledger")) == [[0], [1]], timeout=30)
        assert {one["pid"] for one in ps(cli, redis_url)} == {worker.pid for worker in workers}
        workers[0].kill9()
        (left,) = wait_until(lambda: found if len(found := ps(cli, redis_url)) == 1 else None, timeout=30) or [{}]
        assert left["pid"] == workers[1].pid
        wait_until(lambda: owned(ps(cli, redis_url), "ledger") == [[0, 1]], timeout=30)
