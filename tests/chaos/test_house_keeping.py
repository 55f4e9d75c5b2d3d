"""What goes on beside the work: loops that must not die unseen, consumers that are gone, entries that were deleted."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from streamlib import App, Event
from streamlib.settings import RedisSettings
from streamlib.worker import keeper
from streamlib.worker.fetcher import Fetcher
from streamlib.worker.keeper import Keeper
from streamlib.worker.ownership import Ownership
from streamlib.worker.promoter import Promoter
from streamlib.worker.reclaimer import Reclaimer
from tests.helpers.delivering import GROUP, counted, running, settings
from tests.helpers.servers import RedisProc
from tests.helpers.waiting import eventually
from tests.helpers.workers import WorkerProc

pytestmark = [pytest.mark.chaos]


class Placed(Event):
    n: int


def shop(url: str, runs: list[int], **worker: Any) -> App:
    app = App("shop", settings=settings(url, **worker))
    orders = app.topic("orders", Placed)

    @app.handler(orders, group=GROUP)
    async def handle(event: Placed) -> None:
        runs.append(event.n)

    return app


@pytest.mark.row(15)
@pytest.mark.parametrize(
    ("loop", "step"),
    [
        (Fetcher, "run_once"),
        (Reclaimer, "run_once"),
        (Promoter, "run_once"),
        (Keeper, "refresh_gauges"),
        (Keeper, "trim"),
        (Keeper, "sweep"),
        (Ownership, "run_once"),
    ],
)
async def test_a_loop_that_dies_takes_its_worker_along(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, loop: type, step: str
) -> None:
    async def broken(self: object, *args: object) -> float:
        raise LookupError("a bug of ours")

    app = shop(redis_url, [])
    monkeypatch.setattr(loop, step, broken)
    async with app:
        with pytest.raises(LookupError, match="a bug of ours"):
            await asyncio.wait_for(app.worker().run(asyncio.Event()), 20)


WITHOUT_RENEWER = """
from streamlib.cli import main
from streamlib.worker.renewer import Renewer

def broken(self, client):
    raise LookupError("a bug of ours")

Renewer.run_once = broken
main()
"""


@pytest.mark.row(15)
def test_a_renewal_thread_that_dies_takes_its_process_along(redis_url: str, tmp_path: Path) -> None:
    run = ["run", "tests.chaos.job_app:app", "--redis", redis_url, "--http", "127.0.0.1:0"]
    env = {"JOB_EFFECTS_URL": redis_url, "STREAMLIB_WORKER_LEASE_MS": "1000"}
    command = [sys.executable, "-c", WITHOUT_RENEWER, *run]
    with WorkerProc("job_app", redis_url, cwd=tmp_path, env=env, command=command) as worker:
        assert worker.wait(60) == 1
        assert "renewer_died" in worker.log()


@pytest.mark.row(12)
async def test_consumers_of_workers_that_are_gone_are_removed(
    redis_url: str, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "_SWEEP_EVERY_S", 0.1)
    monkeypatch.setattr(keeper, "_GONE_MS", 0)
    monkeypatch.setattr(keeper, "_GAUGES_EVERY_S", 0.1)
    runs: list[int] = []
    app = shop(redis_url, runs, lease_ms=200)
    async with app:
        for n in range(200):
            client.xgroup_createconsumer("orders", GROUP, f"gone-{n}")
        await app.topics["orders"].publish(Placed(n=1))
        client.xreadgroup(GROUP, "gone-7", {"orders": ">"})
        async with running(app):
            await eventually(lambda: counted(app, "group_consumers", group=GROUP) > 200, what="the gauge tells of them")
            await eventually(lambda: runs == [1], what="what one of them held has run")
            await eventually(lambda: len(client.xinfo_consumers("orders", GROUP)) == 1, 30)
            await eventually(lambda: counted(app, "group_consumers", group=GROUP) <= 2, what="the gauge came down")


@pytest.mark.row(58)
async def test_pending_entries_that_somebody_deleted_are_told_and_forgotten(
    redis_url: str, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    runs: list[int] = []
    app = shop(redis_url, runs, lease_ms=300)
    async with app:
        positions = await app.topics["orders"].publish_many([Placed(n=n) for n in range(5)])
        client.xreadgroup(GROUP, "gone", {"orders": ">"})
        deleted = [one.entry_id for one in positions[:2] if not isinstance(one, Exception)]
        assert client.xdel("orders", *deleted) == 2
        async with running(app):
            await eventually(lambda: sorted(runs) == [2, 3, 4])
            await eventually(lambda: client.xpending("orders", GROUP)["pending"] == 0)
            assert counted(app, "stream_lost_total", group=GROUP) > 0
    [told] = [record for record in caplog.records if record.message == "pending_entry_missing"]
    assert told.__dict__["ids"] == deleted


@pytest.mark.row(18)
async def test_an_idle_reader_waits_on_one_connection_without_an_error(own_server: Any) -> None:
    server: RedisProc = own_server()
    app = shop(server.url, [])
    hasty = RedisSettings(url=server.url, timeout_s=0.3)
    app.configure(settings(server.url, block_ms=1_500, sections={"redis": hasty}))
    with server.client() as client:
        async with app, running(app):
            await eventually(lambda: _readers(client), what="a read waits")
            reader = _readers(client)
            before = _reads(client)
            await eventually(lambda: _reads(client) >= before + 3, 30, what="three more reads brought nothing")
            await eventually(lambda: _readers(client) == reader, what="the same connection waits")
            assert counted(app, "redis_errors_total") == 0


def _readers(client: Any) -> set[str]:
    return {one["id"] for one in client.client_list() if "b" in one["flags"] and one["cmd"] == "xreadgroup"}


def _reads(client: Any) -> int:
    return int(client.info("commandstats").get("cmdstat_xreadgroup", {}).get("calls", 0))
