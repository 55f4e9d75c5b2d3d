"""An ordered group behind sentinels: failovers under load keep the order of each key, and leave nothing pending."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from streamlib import App, Event, PublishError
from streamlib.errors import RedisError
from tests.helpers.delivering import GROUP, running, settings
from tests.helpers.sentinel import SentinelTopology
from tests.helpers.waiting import eventually

KEYS, PARTITIONS = 8, 3

pytestmark = pytest.mark.timeout(150)


class Moved(Event):
    account: str
    n: int


@pytest.fixture
def topology(server_kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelTopology]:
    with SentinelTopology(tmp_path_factory.mktemp("sentinel"), kind=server_kind) as started:
        yield started


@pytest.mark.row(46, 71)
async def test_failovers_keep_the_order_of_each_key(topology: SentinelTopology) -> None:
    app = App("bank", settings=settings(topology.url, lease_ms=3_000))
    moves = app.topic("moves", Moved, key="account", partitions=PARTITIONS, durability="replicas:1")
    first_runs: dict[str, list[int]] = {}
    confirmed: set[int] = set()
    numbers = iter(range(1_000_000))

    @app.handler(moves, group=GROUP, ordering="key")
    async def move(event: Moved) -> None:
        runs = first_runs.setdefault(event.account, [])
        if event.n not in runs:
            runs.append(event.n)
        await asyncio.sleep(0.002)

    async def publish(account: str, stop: asyncio.Event) -> None:
        """One after another; what is not confirmed is nobody's promise."""
        while not stop.is_set():
            n = next(numbers)
            try:
                await moves.publish(Moved(account=account, n=n))
            except (PublishError, RedisError):
                continue
            confirmed.add(n)
            await asyncio.sleep(0.01)

    def pending() -> list[int]:
        with topology.primary() as client:
            found: Any = [client.xpending(f"moves.{number}", GROUP)["pending"] for number in range(PARTITIONS)]
        return [count for count in found if count]

    def missing() -> set[int]:
        return confirmed - {n for runs in first_runs.values() for n in runs}

    async with app, running(app) as one:
        for fail in (topology.failover, topology.kill_primary):
            stop, before = asyncio.Event(), len(confirmed)
            publishing = [asyncio.create_task(publish(f"a{number}", stop)) for number in range(KEYS)]
            old = topology.primary_server()
            await eventually(lambda before=before: len(confirmed) > before + 100)  # type: ignore[misc]
            await asyncio.to_thread(fail)
            since = len(confirmed)
            await eventually(lambda since=since: len(confirmed) > since + 100, timeout=60)  # type: ignore[misc]
            stop.set()
            await asyncio.gather(*publishing)
            if fail == topology.kill_primary:
                await asyncio.to_thread(topology.restart, old)
            await asyncio.to_thread(topology.wait_until_whole)
            await eventually(lambda: not missing(), what="all that was confirmed has run", timeout=30)
            await eventually(lambda: not pending(), what="nothing stays pending with the owner", timeout=30)
            await eventually(lambda: one.worker.readiness()[0])
    assert all(runs == sorted(runs) for runs in first_runs.values())
