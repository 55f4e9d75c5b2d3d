"""An ordered group on a cluster: slots move and a node goes; keys stay in order, a lost node stops its own alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from redis.crc import key_slot

from streamlib import App, Event, PublishError
from streamlib.errors import RedisError
from streamlib.topic import partition_of_key
from tests.helpers.cluster import ClusterTopology
from tests.helpers.delivering import GROUP, counted, running, settings
from tests.helpers.waiting import eventually

PARTITIONS = 6
KEYS = [f"a{n}" for n in range(24)]

pytestmark = pytest.mark.timeout(180)


class Moved(Event):
    account: str
    n: int


@pytest.fixture
def cluster(server_kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterTopology]:
    directory = tmp_path_factory.mktemp("cluster")
    with ClusterTopology(directory, kind=server_kind, aof=True, full_coverage=False) as started:
        yield started


class Bank:
    """Workers of one ordered group in this process, and what they did."""

    def __init__(self, url: str) -> None:
        self.apps = [self._app(url) for _ in range(2)]
        self.runs: dict[str, list[int]] = {key: [] for key in KEYS}
        self.confirmed: dict[str, list[int]] = {key: [] for key in KEYS}
        self.overlapped: set[str] = set()
        self._running: set[str] = set()

    def _app(self, url: str) -> App:
        app = App("bank", settings=settings(url, lease_ms=3_000, block_ms=200))
        moves = app.topic("moves", Moved, key="account", partitions=PARTITIONS)

        @app.handler(moves, group=GROUP, ordering="key")
        async def move(event: Moved) -> None:
            if event.account in self._running:
                self.overlapped.add(event.account)
            self._running.add(event.account)
            await asyncio.sleep(0.002)
            self._running.discard(event.account)
            self.runs[event.account].append(event.n)

        return app

    async def publish(self, key: str, stop: asyncio.Event) -> None:
        """One after another; an event that is not confirmed is sent again under its id."""
        n = 0
        while not stop.is_set():
            try:
                await self.apps[0].topics["moves"].publish(Moved(account=key, n=n), id=f"{key}-{n}")
            except (PublishError, RedisError):
                continue
            self.confirmed[key].append(n)
            n += 1
            await asyncio.sleep(0.02)

    def flows(self, partitions: set[int]) -> Callable[[], bool]:
        """Whether every key of these partitions had an event run since now."""
        before = {key: len(self.runs[key]) for key in KEYS if partition_of_key(key, PARTITIONS) in partitions}
        return lambda: all(len(self.runs[key]) > count + 2 for key, count in before.items())

    def owned(self) -> list[int]:
        return [int(counted(app, "partitions_owned", group=GROUP)) for app in self.apps]


@pytest.mark.row(56, 57, 71)
async def test_slots_move_and_a_node_is_lost_while_keys_stay_in_order(cluster: ClusterTopology) -> None:
    bank, stop = Bank(cluster.url), asyncio.Event()
    first, second = bank.apps
    every = set(range(PARTITIONS))
    async with first, second, running(first), running(second):
        publishing = [asyncio.create_task(bank.publish(key, stop)) for key in KEYS]
        await eventually(lambda: bank.owned() == [3, 3])
        await eventually(bank.flows(every))
        for number in range(2):
            owner = cluster.node_of(f"moves.{number}")
            to = cluster.nodes[(cluster.nodes.index(owner) + 1) % len(cluster.nodes)]
            await asyncio.to_thread(cluster.move_slot, key_slot(f"moves.{number}".encode()), to)
            await eventually(bank.flows(every), what="every key goes on after the move")
        lost = cluster.node_of("moves.0")
        theirs = {number for number in every if cluster.node_of(f"moves.{number}") is lost}
        assert theirs < every, "partitions lie on several nodes"
        await asyncio.to_thread(cluster.kill, lost)
        await eventually(bank.flows(every - theirs), what="the others go on without it", timeout=30)
        await asyncio.to_thread(cluster.restart, lost)
        await eventually(bank.flows(every), what="its own go on when it is back", timeout=60)
        stop.set()
        await asyncio.gather(*publishing)
        await eventually(lambda: all(bank.confirmed[key] == sorted(set(bank.runs[key])) for key in KEYS), timeout=30)
        await eventually(lambda: not pending(cluster), what="nothing stays pending", timeout=30)
    assert not bank.overlapped
    for key, runs in bank.runs.items():
        assert list(dict.fromkeys(runs)) == bank.confirmed[key], f"the order of {key}"


def pending(cluster: ClusterTopology) -> int:
    with cluster.client() as client:
        found: list[Any] = [client.xpending(f"moves.{number}", GROUP)["pending"] for number in range(PARTITIONS)]
    return sum(found)
