"""The rig of several servers: a failover is over when it says so, and slots move whole or in halves."""

from pathlib import Path

import pytest
import redis
from redis.crc import key_slot

from tests.helpers.cluster import ClusterTopology
from tests.helpers.sentinel import SentinelTopology


def test_sentinels_name_a_new_primary_after_each_kind_of_failover(tmp_path: Path, server_kind: str) -> None:
    with SentinelTopology(tmp_path, kind=server_kind) as topology:
        with topology.primary() as client:
            client.set("kept", b"1")
            assert client.wait(2, 5_000) == 2
        first = topology.primary_server()
        second = topology.failover()
        topology.wait_until_whole()
        killed = topology.kill_primary()
        topology.restart(killed)
        topology.wait_until_whole()
        frozen = topology.stop_primary()
        frozen.cont()
        topology.wait_until_whole()
        assert first is not second
        assert second is killed
        assert frozen is not topology.primary_server()
        with topology.primary() as client:
            assert client.get("kept") == b"1"
        topology.flush()
        for server in topology.servers:
            with server.client() as client:
                assert client.dbsize() == 0


def test_a_slot_moves_with_its_keys(tmp_path: Path, server_kind: str) -> None:
    with ClusterTopology(tmp_path, kind=server_kind) as cluster, cluster.client() as client:
        for n in range(25):
            client.set(f"{{a}}:{n}", n)
        old = cluster.node_of("{a}")
        new = next(node for node in cluster.nodes if node is not old)
        assert cluster.move_slot(key_slot(b"a"), new) == 25
        assert cluster.node_of("{a}:1") is new
        with cluster.half_moved(key_slot(b"a"), old) as move, new.client() as direct:
            move.named("{a}:1")
            with pytest.raises(redis.exceptions.AskError):
                direct.get("{a}:1")
            with pytest.raises(redis.exceptions.TryAgainError):
                direct.mget("{a}:1", "{a}:2")
        assert cluster.node_of("{a}:1") is old
        assert client.mget("{a}:1", "{a}:24") == [b"1", b"24"]
        cluster.flush()
        assert client.get("{a}:1") is None


def test_a_cluster_goes_on_without_a_node_and_takes_it_back(tmp_path: Path, server_kind: str) -> None:
    with ClusterTopology(tmp_path, kind=server_kind, full_coverage=False, aof=True) as cluster:
        with cluster.client() as client:
            for name in "abcdef":
                client.set(name, name)
        lost = cluster.node_of("a")
        kept = next(name for name in "bcdef" if cluster.node_of(name) is not lost)
        cluster.kill(lost)
        with cluster.client() as client:
            assert client.get(kept) == kept.encode()
            with pytest.raises(redis.exceptions.RedisError):
                client.get("a")
        cluster.restart(lost)
        with cluster.client() as client:
            assert client.get("a") == b"a"
