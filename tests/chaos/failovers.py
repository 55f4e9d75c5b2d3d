"""Failovers under load, measured: `python -m tests.chaos.failovers [--times 10] [--seed S]`."""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path

from msgspec import Struct

from tests.chaos.spread import SpreadBench
from tests.helpers.sentinel import SentinelTopology
from tests.helpers.servers import RedisProc

FAULTS = ("ordered", "killed", "frozen")
_WORKERS = 2
_PARTITIONS = 3


class Failover(Struct, frozen=True):
    """What one failover cost, in seconds from its start."""

    fault: str
    new_primary_s: float
    """Until the sentinels named another primary."""
    flows_s: float
    """Until events ran that were published after that."""
    gap_s: float
    """The longest time in which no event ran."""


def fail_over(bench: SpreadBench, topology: SentinelTopology, fault: str) -> Failover:
    """One failover under load; at the end all servers are there again."""
    started_s = time.time()
    old = topology.primary_server()
    if fault == "ordered":
        topology.failover()
    elif fault == "killed":
        topology.kill_primary()
    else:
        topology.stop_primary()
    named_s = time.time()
    flows_s = bench.wait_for_flow(named_s)
    if fault == "killed":
        topology.restart(old)
    elif fault == "frozen":
        old.cont()
    topology.wait_until_whole()
    bench.wait_for_flow(time.time())
    gap_s = bench.largest_gap_s(started_s, time.time(), range(bench.partitions))
    return Failover(fault, named_s - started_s, flows_s - started_s, gap_s)


def run(directory: Path, times: int, seed: int, kind: str = "valkey") -> list[Failover]:
    """Fail over again and again under load, then let the oracle look."""
    faults = [FAULTS[number % len(FAULTS)] for number in range(times)]
    random.Random(seed).shuffle(faults)
    topology = SentinelTopology(directory / "servers", kind=kind)
    effects = RedisProc(kind, directory / "effects")
    with effects, topology:
        bench = SpreadBench(topology, effects, directory, partitions=_PARTITIONS, durability="replicas:1")
        workers = [bench.worker() for _ in range(_WORKERS)]
        try:
            for worker in workers:
                worker.start().wait_ready()
            with bench.load():
                bench.wait_for_flow(time.time())
                found = [fail_over(bench, topology, fault) for fault in faults]
            bench.wait_until_done()
            bench.check()
            ended = [worker.log()[-4000:] for worker in workers if not worker.running]
            assert not ended, "a worker has ended:\n" + "\n".join(ended)
        finally:
            for worker in workers:
                worker.__exit__(None, None, None)
        repeated = len(bench.runs()) - len({one.n for one in bench.runs()})
        print(f"{len(bench.confirmed)} events confirmed, {bench.refused} not; {repeated} outside effects repeated")
    return found


def table(failovers: list[Failover], down_after_s: float) -> str:
    """The figures, a line for each failover."""
    lines = [f"{'fault':<10}{'new primary':>12}{'events flow':>12}{'longest gap':>12}"]
    for one in failovers:
        cells = "".join(f"{seconds:>10.1f} s" for seconds in (one.new_primary_s, one.flows_s, one.gap_s))
        lines.append(f"{one.fault:<10}{cells}")
    slowest = max(one.flows_s for one in failovers)
    lines.append(f"down-after {down_after_s:g} s; slowest {slowest:.1f} s from the fault until events flow")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.failovers", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", default="valkey")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="failovers-") as directory:
        failovers = run(Path(directory), given.times, given.seed, given.kind)
    print(table(failovers, 0.8))


if __name__ == "__main__":
    main()
