"""A primary whose replica is cut off, lags or takes over: what was confirmed, what may be lost, what comes after."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from streamlib.errors import NotConfirmed, RedisUnavailable
from streamlib.message import Position
from tests.chaos.counting_shop import Row, Shop
from tests.helpers.cluster import ClusterTopology
from tests.helpers.delivering import outcomes, running
from tests.helpers.proxy import ChaosProxy
from tests.helpers.sentinel import SentinelTopology
from tests.helpers.servers import RedisProc
from tests.helpers.waiting import eventually, wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]

MAX_LAG_S = 1


class Pair:
    """A primary and its replica: `link` is the network between them, `address` the one that clients come by."""

    def __init__(self, primary: RedisProc, replica: RedisProc, link: ChaosProxy, address: ChaosProxy) -> None:
        self.primary = primary
        self.replica = replica
        self.link = link
        self.address = address

    def replicate(self) -> None:
        """The replica has all that there is."""
        with self.primary.client() as old:
            old.set("mark", 1)
            wait_until(lambda: old.wait(1, 1_000) == 1, what="the replica is in sync")
            old.delete("mark")
            old.wait(1, 1_000)

    def promote(self) -> None:
        """The replica leads from here on, and clients are led to it."""
        with self.replica.client() as new:
            new.replicaof("NO", "ONE")
        self.address.upstream = ("127.0.0.1", self.replica.port)
        self.address.reset_all()


@pytest.fixture
def pair(own_server: Callable[..., RedisProc]) -> Iterator[Pair]:
    guarded = {"min-replicas-max-lag": str(MAX_LAG_S), "repl-diskless-sync-delay": "0", "repl-ping-replica-period": "1"}
    primary = own_server(conf=guarded)
    with ChaosProxy(primary.url) as link, ChaosProxy(primary.url) as address:
        replica = own_server(conf={"replicaof": f"127.0.0.1 {link.port}"})
        found = Pair(primary, replica, link, address)
        found.replicate()
        yield found


def stored(server: RedisProc) -> set[str]:
    with server.client() as client:
        entries: Any = client.xrange("orders")
    return {fields[b"id"].decode() for _, fields in entries}


@pytest.mark.row(48)
@pytest.mark.parametrize("durability", ["primary", "replicas:1"])
async def test_what_a_replica_confirmed_outlives_its_primary_and_nothing_else_is_called_confirmed(
    pair: Pair, durability: str
) -> None:
    shop = Shop(pair.address.url, durability)
    async with shop.app:
        assert all(isinstance(one, Position) for one in await shop.publish(*range(10)))
        await asyncio.to_thread(pair.replicate)
        pair.link.blackhole()
        late = await shop.publish(*range(10, 15))
        expected = Position if durability == "primary" else (NotConfirmed, RedisUnavailable)
        assert all(isinstance(one, expected) for one in late), late
        pair.primary.kill9()
        await asyncio.to_thread(pair.promote)
        assert stored(pair.replica) == {f"e-{n}" for n in range(10)}


@pytest.mark.row(50)
async def test_an_isolated_primary_stops_taking_writes_and_what_it_took_alone_is_bounded(pair: Pair) -> None:
    with pair.primary.client() as client:
        client.config_set("min-replicas-to-write", "1")
    shop = Shop(pair.address.url)
    async with shop.app, running(shop.app) as worker:
        assert all(isinstance(one, Position) for one in await shop.publish(*range(20)))
        await eventually(lambda: len(shop.runs) == 20)
        await asyncio.to_thread(pair.replicate)
        pair.link.blackhole()
        alone: list[str] = []
        for n in range(20, 100_000):
            [answer] = await shop.publish(n)
            if not isinstance(answer, Position):
                break
            alone.append(f"e-{n}")
            await asyncio.sleep(0.02)
        refused = await shop.publish(*range(200_000, 200_003))
        assert all("NOREPLICAS" in repr(one.__cause__) or "takes no writes now" in str(one) for one in refused), refused  # type: ignore[union-attr]
        assert _noreplicas(pair.primary) > 0
        assert not worker.ended, "the worker waits"
        await asyncio.to_thread(pair.promote)
        pair.link.heal()
        with pair.primary.client() as old:  # what the sentinels do when they can reach it again
            old.replicaof("127.0.0.1", str(pair.replica.port))
            await eventually(lambda: old.info("replication")["master_link_status"] == "up")
        after = await _published(shop, range(300_000, 300_020))
        await eventually(lambda: set(shop.runs) >= after, what="events flow at the new primary")
    kept = stored(pair.replica)
    await eventually(lambda: stored(pair.primary) == kept, what="the old primary has what the new one has")
    assert {f"e-{n}" for n in range(20)} | after <= kept
    print(f"taken alone within max-lag and lost: {len(set(alone) - kept)} of {len(alone)}")
    assert not kept & {f"e-{n}" for n in range(200_000, 200_003)}, "what was refused is nowhere"


async def _published(shop: Shop, numbers: range) -> set[str]:
    """Publish until all of them are confirmed."""

    async def all_confirmed() -> bool:
        return all(isinstance(one, Position) for one in await shop.publish(*numbers))

    await eventually(all_confirmed, 30)
    return {f"e-{n}" for n in numbers}


def _noreplicas(server: RedisProc) -> int:
    with server.client() as client:
        errors: Any = client.info("errorstats")
    return int(errors.get("errorstat_NOREPLICAS", {}).get("count", 0))


READS = ("get", "mget", "hget", "hmget", "hgetall", "xrange", "xread", "xpending", "lrange", "zrange", "smembers",
         "evalsha", "eval", "xreadgroup", "xautoclaim")  # fmt: skip
"""None of these is replicated: who has counted one was asked by a client."""


@contextmanager
def with_copies(place: str, directory: Path, kind: str) -> Iterator[tuple[str, list[RedisProc]]]:
    """An address, and the replicas behind it."""
    if place == "sentinel":
        with SentinelTopology(directory, kind=kind, sentinels=1, down_after_ms=60_000) as one:
            yield one.url, one.replicas()
    else:
        with ClusterTopology(directory, kind=kind, primaries=3, replicas=1, node_timeout_ms=60_000) as many:
            yield many.url, many.nodes[3:]


@pytest.mark.row(51)
@pytest.mark.parametrize("place", ["sentinel", "cluster"])
async def test_no_replica_is_asked_and_none_that_stands_still_holds_anybody_up(
    place: str, tmp_path: Path, server_kind: str
) -> None:
    with with_copies(place, tmp_path / "servers", server_kind) as (url, replicas):
        shop = Shop(url, partitions=3)
        async with shop.app, running(shop.app):
            await shop.publish(*range(30))
            await eventually(lambda: len(shop.runs) == 30)
            for replica in replicas:
                replica.stop()
            for n in range(100, 160):
                [position] = await shop.publish(n)
                assert isinstance(position, Position), position
                await shop.view.wait_for(position, timeout=30)
                row = await shop.view.get(str(n))
                assert row == Row(n=n, times=1), "the own write is read"
            await eventually(lambda: len(shop.runs) == 90)
        for replica in replicas:
            replica.cont()
        asked = {command: n for one in replicas for command, n in _asked(one).items()}
    assert set(shop.runs.values()) == {1}
    assert asked == {}


def _asked(server: RedisProc) -> dict[str, int]:
    with server.client() as client:
        stats: Any = client.info("commandstats")
    return {name: stats[f"cmdstat_{name}"]["calls"] for name in READS if f"cmdstat_{name}" in stats}


@pytest.mark.row(52)
async def test_an_entry_id_that_is_given_again_after_a_failover_is_another_event(pair: Pair) -> None:
    shop = Shop(pair.address.url)
    async with shop.app, running(shop.app):
        await shop.publish(*range(10))
        await eventually(lambda: outcomes(shop.app, "g").get("ok") == 10)
        await asyncio.to_thread(pair.replicate)
        pair.link.blackhole()
        [given] = await shop.publish(10)
        assert isinstance(given, Position)
        await eventually(lambda: outcomes(shop.app, "g").get("ok") == 11)
        await shop.view.wait_for(given, timeout=10)
        with pair.primary.client() as old:
            [(_, fields)] = old.xrange("orders", given.entry_id, given.entry_id)
        pair.primary.kill9()
        await asyncio.to_thread(pair.promote)
        with pair.replica.client() as new:
            again = {**fields, b"id": b"another", b"key": b"11", b"data": b'{"n":11}'}
            assert new.xadd("orders", again, id=given.entry_id).decode() == given.entry_id
        await eventually(lambda: shop.runs["another"] == 1, 30, what="the second event of that id runs")
        [last] = [one for one in await shop.publish(12) if isinstance(one, Position)]
        await shop.view.wait_for(last, timeout=30)
        rows = {n: await shop.view.get(str(n)) for n in range(13)}
    assert rows == {n: Row(n=n, times=1) if n != 10 else None for n in range(13)}
    assert shop.runs == Counter([*(f"e-{n}" for n in range(11)), "another", "e-12"])
