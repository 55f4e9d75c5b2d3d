"""A server that refuses: it cannot write to its disk, pauses writes, or holds something else under a stream's name."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from streamlib import App, Event
from tests.chaos.conftest import Bench
from tests.chaos.test_server_faults import publishing
from tests.helpers.delivering import GROUP, counted, outcomes, running, settings
from tests.helpers.waiting import eventually, wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]


@pytest.mark.row(38)
def test_a_disk_that_takes_nothing_pauses_the_work_and_nothing_runs_twice(bench: Bench) -> None:
    with bench.worker(work_s=0.02) as one, bench.worker(work_s=0.02) as other:
        one.wait_ready()
        other.wait_ready()
        bench.publish(2_000)
        bench.wait_for_runs(200)
        obstacle = bench.server.directory / "dump.rdb"
        obstacle.mkdir()  # no file can take this name
        bench.client.config_set("save", "3600 1000")
        assert _saved(bench) == "err"
        for worker in (one, other):
            wait_until(lambda: worker.metric("streamlib_redis_errors_total", kind="pause") > 0, 30)  # noqa: B023
        assert len(bench.runs()) < 2_000
        obstacle.rmdir()
        assert _saved(bench) == "ok"
        bench.wait_until_done()
        bench.check()
        assert set(bench.runs().values()) == {1}


def _saved(bench: Bench) -> str:
    """Save to disk; how that ended."""
    bench.client.bgsave()
    wait_until(lambda: not bench.client.info("persistence")["rdb_bgsave_in_progress"])
    return str(bench.client.info("persistence")["rdb_last_bgsave_status"])


@pytest.mark.row(42)
def test_writes_that_are_paused_for_longer_than_a_timeout_double_nothing(bench: Bench) -> None:
    with bench.worker(work_s=0.01) as one, bench.worker(work_s=0.01) as other:
        one.wait_ready()
        other.wait_ready()
        with publishing(bench, 3_000):
            for share in (500, 1_500):
                bench.wait_for_runs(share)
                bench.client.client_pause(3_000, all=False)
                wait_until(
                    lambda: one.metric("streamlib_redis_errors_total", kind="timeout") > 0, 30, what="it has waited"
                )
        bench.wait_until_done()
        bench.check()
        stored = [fields[b"id"] for _, fields in bench.client.xrange("jobs") if fields[b"type"] == b"Job"]
        assert len(stored) == len(set(stored)) == 3_000
        assert set(bench.runs().values()) == {1}


class Placed(Event):
    n: int


@pytest.mark.row(35)
async def test_a_stream_of_another_type_stops_no_other_and_goes_on_when_it_is_back(redis_url: str, client: Any) -> None:
    app = App("shop", settings=settings(redis_url))
    broken, sound = app.topic("broken", Placed), app.topic("sound", Placed)
    runs: list[tuple[str, int]] = []

    @app.handler(broken, group=GROUP)
    async def first(event: Placed) -> None:
        runs.append(("broken", event.n))

    @app.handler(sound, group=GROUP)
    async def second(event: Placed) -> None:
        runs.append(("sound", event.n))

    async with app, running(app):
        await asyncio.gather(broken.publish(Placed(n=1)), sound.publish(Placed(n=1)))
        await eventually(lambda: outcomes(app, GROUP).get("ok") == 2)
        client.rename("broken", "kept")
        client.set("broken", "somebody's")
        await eventually(lambda: counted(app, "redis_errors_total", kind="config") > 0)
        with pytest.raises(Exception, match="broken"):
            await broken.publish(Placed(n=2))
        await sound.publish(Placed(n=2))
        await eventually(lambda: ("sound", 2) in runs)
        client.rename("kept", "broken")
        await broken.publish(Placed(n=3))
        await eventually(lambda: ("broken", 3) in runs)
    assert len(runs) == 4
