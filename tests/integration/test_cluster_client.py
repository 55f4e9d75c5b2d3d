"""Commands on a cluster: each reaches the node of its key, also while its slot moves; a wrong setup is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest
from redis.crc import key_slot

from streamlib import App, Event
from streamlib.errors import ConfigError, RedisUnfit
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.failures import CLIENT_ERRORS
from streamlib.settings import RedisSettings, Settings
from tests.helpers.cluster import ClusterTopology
from tests.helpers.publishing import open_door
from tests.helpers.servers import RedisProc
from tests.helpers.waiting import eventually, wait_until

KEYS = [f"key-{n}" for n in range(60)]
SET_BOTH = "redis.call('SET', KEYS[1], ARGV[1]) redis.call('SET', KEYS[2], ARGV[1]) return 1"


class Placed(Event):
    n: int


@pytest.fixture(scope="module")
def cluster(server_kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterTopology]:
    with ClusterTopology(tmp_path_factory.mktemp("cluster"), kind=server_kind) as running:
        yield running


@pytest.fixture(autouse=True)
def _empty(cluster: ClusterTopology) -> None:
    cluster.flush()


def an_app(url: str, durability: str = "primary") -> App:
    app = App("orders", settings=Settings(redis=RedisSettings(url=url, retry_s=0.2)))
    app.topic("orders", Placed, partitions=3, durability=durability)
    return app


async def on_every_way(door: RedisDoor, *command: str) -> list[object]:
    """The replies to a command on the shared pool, on a connection of its own, and in a thread."""
    lane, sync = door.lane(), door.sync_client()
    try:
        found = [await door.execute(*command), await lane.execute(*command)]
        return [*found, await asyncio.to_thread(sync.execute, *command)]
    finally:
        await lane.close()
        sync.close()


async def test_each_command_goes_to_the_node_of_its_key(cluster: ClusterTopology) -> None:
    async with open_door(cluster.url) as door:
        assert not door.one_node
        for key in KEYS:
            await door.execute("SET", key, key)
            assert await on_every_way(door, "GET", key) == [key.encode()] * 3
    sizes = []
    for node in cluster.nodes:
        with node.client() as client:
            sizes.append(client.dbsize())
    assert sum(sizes) == len(KEYS)
    assert all(sizes), "every node has some"


@pytest.mark.row(54)
async def test_a_slot_that_is_half_moved_answers_for_all_its_keys(cluster: ClusterTopology) -> None:
    gone, stays = "{moving}:gone", "{moving}:stays"
    slot = key_slot(gone.encode())
    to = next(node for node in cluster.nodes if node is not cluster.node_of(gone))
    async with open_door(cluster.url) as door:
        for key in (gone, stays):
            await door.execute("SET", key, key)
        move = cluster.half_moved(slot, to)
        half = await asyncio.to_thread(move.__enter__)
        await asyncio.to_thread(half.named, gone)
        for key in (gone, stays):
            assert await on_every_way(door, "GET", key) == [key.encode()] * 3
        both = asyncio.create_task(
            door.persist(lambda: door.execute("EVAL", SET_BOTH, "2", gone, stays, "new"), give_up_s=30)
        )
        await eventually(lambda: not both.done(), what="a script over both keys waits while the slot is torn")
        await asyncio.to_thread(move.__exit__, None, None, None)
        assert await both == 1
        for key in (gone, stays):
            assert await on_every_way(door, "GET", key) == [b"new"] * 3
    with to.client() as client:
        assert client.get(gone) == b"new", "it lies on the new node now"


async def test_what_has_no_key_goes_where_the_lane_leads(cluster: ClusterTopology) -> None:
    async with open_door(cluster.url) as door:
        for key in KEYS[:6]:
            lane = door.lane(key)
            before = await lane.execute("CLIENT", "ID")
            await lane.execute("SET", key, "x")
            assert await lane.execute("CLIENT", "ID") == before, "a write and its WAIT share one connection"
            info = await lane.execute("INFO", "server")
            assert f"tcp_port:{cluster.node_of(key).port}".encode() in info
            await lane.close()


async def test_events_are_published_and_stored_where_their_partition_lies(cluster: ClusterTopology) -> None:
    app = an_app(cluster.url)
    async with app:
        results = await app.topics["orders"].publish_many([Placed(n=n) for n in range(300)])
    lengths = {}
    with cluster.client() as client:
        for n in range(3):
            lengths[n] = client.xlen(f"orders.{n}")
    assert sum(lengths.values()) == len(results) == 300
    assert all(lengths.values())


async def test_a_slot_that_nobody_served_for_a_while_is_found_when_it_is_served_again(
    own_server: Callable[..., RedisProc],
) -> None:
    """As after a lost shard was given up and its slots were assigned to the nodes that are left."""
    node = own_server(conf={"cluster-enabled": "yes", "cluster-require-full-coverage": "no"})
    key = next(f"key-{n}" for n in range(10_000) if key_slot(f"key-{n}".encode()) > 16_000)
    with node.client() as client:
        client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16_000)
        async with open_door(node.url.replace("redis://", "cluster://")) as door:
            lane, sync = door.lane(key), door.sync_client()
            for _ in range(2):
                with pytest.raises(CLIENT_ERRORS, match="CLUSTERDOWN"):
                    await door.execute("GET", key)
                with pytest.raises(CLIENT_ERRORS, match="CLUSTERDOWN"):
                    await lane.execute("TIME")
                with pytest.raises(CLIENT_ERRORS, match="CLUSTERDOWN"):
                    await asyncio.to_thread(sync.execute, "GET", key)
            client.execute_command("CLUSTER ADDSLOTSRANGE", 16_001, 16_383)
            assert await door.persist(lambda: door.execute("SET", key, "1"), give_up_s=10) == b"OK"
            assert await door.persist(lambda: lane.execute("GET", key), give_up_s=10) == b"1"
            assert await asyncio.to_thread(sync.execute, "GET", key) == b"1"
            await lane.close()
            sync.close()


async def test_a_thread_finds_a_slot_that_is_served_again_by_itself(own_server: Callable[..., RedisProc]) -> None:
    """The loop may be blocked meanwhile."""
    node = own_server(conf={"cluster-enabled": "yes", "cluster-require-full-coverage": "no"})
    key = next(f"key-{n}" for n in range(10_000) if key_slot(f"key-{n}".encode()) > 16_000)
    with node.client() as client:
        client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16_000)
        async with open_door(node.url.replace("redis://", "cluster://")) as door:
            sync = door.sync_client()
            with pytest.raises(CLIENT_ERRORS, match="CLUSTERDOWN"):
                sync.execute("GET", key)
            client.execute_command("CLUSTER ADDSLOTSRANGE", 16_001, 16_383)
            wait_until(lambda: sync.execute("SET", key, "1") == b"OK", ignore=CLIENT_ERRORS)
            sync.close()


# --- set up wrongly


async def refused(url: str, kind: type[Exception], durability: str = "primary") -> str:
    app = an_app(url, durability)
    with pytest.raises(kind) as raised:
        await app.open()
    return str(raised.value)


async def test_one_server_is_no_cluster(own_server: Callable[..., RedisProc]) -> None:
    url = own_server().url.replace("redis://", "cluster://")
    assert "is no node of a cluster; for one server use redis://" in await refused(url, ConfigError)


async def test_a_node_of_a_cluster_is_not_one_server(cluster: ClusterTopology) -> None:
    assert "use cluster://host:port" in await refused(cluster.nodes[0].url, RedisUnfit)


async def test_a_cluster_with_slots_that_nobody_serves(own_server: Callable[..., RedisProc]) -> None:
    node = own_server(conf={"cluster-enabled": "yes", "cluster-require-full-coverage": "no"})
    url = node.url.replace("redis://", "cluster://")
    assert "serves no slot" in await refused(url, ConfigError)
    with node.client() as client:
        client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16_000)
    assert "383 of the cluster's 16384 slots are served by no node" in await refused(url, ConfigError)


async def test_one_node_that_cannot_fsync_is_enough_to_refuse_it(cluster: ClusterTopology) -> None:
    assert "cannot confirm it" in await refused(cluster.url, RedisUnfit, durability="fsync")


async def test_one_node_that_evicts_is_named(cluster: ClusterTopology) -> None:
    node = cluster.nodes[1]
    with node.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            said = await refused(cluster.url, RedisUnfit)
        finally:
            client.config_set("maxmemory-policy", "noeviction")
    assert f":{node.port}: maxmemory-policy is allkeys-lru" in said


async def test_a_node_that_is_silent_for_its_own_keys_moves_nobody_else(cluster: ClusterTopology) -> None:
    _, second, _ = sorted(cluster.nodes, key=lambda node: node.port)
    key = next(key for key in KEYS if cluster.node_of(key) is second)
    async with open_door(cluster.url, timeout_s=0.3) as door:
        assert await door.execute("PING") == b"PONG"  # of the first node
        second.stop()
        try:
            with pytest.raises(CLIENT_ERRORS):
                await door.execute("GET", key)
            assert await door.execute("PING") == b"PONG"
        finally:
            second.cont()
            cluster.wait_until_ok()
