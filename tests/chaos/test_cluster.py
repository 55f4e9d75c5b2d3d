"""Slots that move and nodes that go: nothing is lost or doubled, and a lost node stops its own partitions only."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.crc import key_slot

from tests.chaos.spread import SpreadBench
from tests.chaos.spread_app import ACCOUNTS
from tests.helpers.cluster import ClusterTopology
from tests.helpers.servers import RedisProc
from tests.helpers.waiting import wait_until
from tests.helpers.workers import WorkerProc

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(240)]

PARTITIONS = 6


@pytest.fixture
def cluster(tmp_path: Path, server_kind: str) -> Iterator[ClusterTopology]:
    with ClusterTopology(tmp_path / "cluster", kind=server_kind, aof=True, full_coverage=False) as running:
        yield running


@pytest.fixture
def effects(tmp_path: Path, server_kind: str) -> Iterator[RedisProc]:
    with RedisProc(server_kind, tmp_path / "effects") as running:
        yield running


@contextmanager
def at_work(bench: SpreadBench, count: int = 2) -> Iterator[list[WorkerProc]]:
    """Workers that must all be there at the end."""
    workers = [bench.worker() for _ in range(count)]
    try:
        for worker in workers:
            worker.start().wait_ready()
        yield workers
        assert all(worker.running for worker in workers)
    finally:
        for worker in workers:
            worker.__exit__(None, None, None)


@pytest.mark.row(53, 54)
def test_slots_move_under_load(cluster: ClusterTopology, effects: RedisProc, tmp_path: Path) -> None:
    bench = SpreadBench(cluster, effects, tmp_path, partitions=PARTITIONS)
    with at_work(bench):
        with bench.load(every_s=0.01):
            wait_until(lambda: len(bench.confirmed) > 1_500, 60, what="there is something to move")
            for stream in bench.streams[:4]:
                owner = cluster.node_of(stream)
                to = cluster.nodes[(cluster.nodes.index(owner) + 1) % len(cluster.nodes)]
                started_s = time.time()
                keys = cluster.move_slot(key_slot(stream.encode()), to, pause_s=0.005)
                flows_s = bench.wait_for_flow(time.time())
                assert cluster.node_of(stream) is to
                print(f"{stream}: {keys} keys moved, every partition flows {flows_s - started_s:.1f} s after the start")
        bench.wait_until_done()
        bench.check()


@pytest.mark.row(56)
def test_a_lost_node_stops_its_own_partitions_only(
    cluster: ClusterTopology, effects: RedisProc, tmp_path: Path
) -> None:
    bench = SpreadBench(cluster, effects, tmp_path, partitions=PARTITIONS, emits=False)
    with at_work(bench):
        with bench.load():
            bench.wait_for_flow(time.time())
            lost = cluster.node_of(bench.streams[0])
            theirs = [n for n, stream in enumerate(bench.streams) if cluster.node_of(stream) is lost]
            others = [n for n in range(PARTITIONS) if n not in theirs]
            assert others, "partitions lie on several nodes"
            killed_s = time.time()
            cluster.kill(lost)
            wait_until(lambda: time.time() - killed_s > 8, 20, what="the node is away for a while")
            bench.wait_for_flow(time.time(), others)
            back_s = time.time()
            gap_s = bench.largest_gap_s(killed_s, back_s, others)
            cluster.restart(lost)
            flows_s = bench.wait_for_flow(time.time(), theirs)
            print(
                f"node with partitions {theirs} away for {back_s - killed_s:.1f} s: longest gap of the others "
                f"{gap_s:.1f} s; its own flow {flows_s - back_s:.1f} s after its restart"
            )
            assert gap_s < (back_s - killed_s) / 2, "the others went on meanwhile"
        bench.wait_until_done()
        bench.check()


@pytest.mark.row(57)
def test_a_killed_worker_loses_nothing_on_a_cluster(
    cluster: ClusterTopology, effects: RedisProc, tmp_path: Path
) -> None:
    bench = SpreadBench(cluster, effects, tmp_path, partitions=PARTITIONS)
    with at_work(bench, 1) as [survivor], bench.worker() as killed:
        killed.wait_ready()
        with bench.load(every_s=0.01):
            wait_until(lambda: killed.metric("streamlib_events_received_total", group="effects") > 200, 60)
            wait_until(lambda: _frozen_with_work(bench, killed), 30, what="it holds something")
            killed.kill9()
            bench.wait_for_flow(time.time())
        bench.wait_until_done()
        bench.check()
        assert survivor.metric("streamlib_events_received_total", group="effects", delivery="reclaimed") > 0


@pytest.mark.row(53)
def test_a_read_that_waits_while_its_slot_moves(cluster: ClusterTopology, effects: RedisProc, tmp_path: Path) -> None:
    block_ms = 60_000
    bench = SpreadBench(cluster, effects, tmp_path, partitions=PARTITIONS)
    stream = bench.streams[0]
    account = next(name for name in ACCOUNTS if bench.partition_of(name) == 0)
    with bench.worker(STREAMLIB_WORKER_BLOCK_MS=str(block_ms), STREAMLIB_WORKER_STALL_S="300"):
        owner = cluster.node_of(stream)
        theirs = sum(cluster.node_of(name) is owner for name in bench.streams)
        # It is ready only once a read was answered, which takes its time here.
        wait_until(lambda: _waiting_reads(owner) == theirs, 30, what="all reads wait on the node")
        to = next(node for node in cluster.nodes if node is not owner)
        cluster.move_slot(key_slot(stream.encode()), to)
        moved_s = time.time()
        with bench.spread.app.blocking() as bench.published_by:
            bench.publish(0, account)
        run_s = bench.wait_for_flow(0.0, [0])
        print(f"a waiting read found its moved slot: the event ran {run_s - moved_s:.2f} s after the move")
        assert run_s - moved_s < block_ms / 1000 / 2, "it did not wait for its own time to run out"
        bench.wait_until_done()
        bench.check()


def _frozen_with_work(bench: SpreadBench, worker: WorkerProc) -> int:
    """How many entries are pending with a worker that is frozen for the look, and stays so where there are some."""
    worker.stop()
    with bench.client() as client:
        consumers = [one for stream in bench.streams for one in client.xinfo_consumers(stream, "effects")]
    held = sum(one["pending"] for one in consumers if f"-{worker.pid}-".encode() in one["name"])
    if not held:
        worker.cont()
    return int(held)


def _waiting_reads(node: RedisProc) -> int:
    with node.client() as client:
        clients: Any = client.client_list()
    return sum("b" in one["flags"] and one["cmd"] == "xreadgroup" for one in clients)
