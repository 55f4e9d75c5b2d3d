"""Random faults under load for as long as you like: `python -m tests.chaos.soak --minutes 30 --seed 7`.

Every one to five seconds something happens to a worker, to a server or to the network between them, drawn from the
seed (tests/chaos/soak_faults.py). At the end everything heals, and the oracle of tests/chaos/spread.py looks at what is
left: nothing that was confirmed is lost or doubled, effects and read models in Redis equal a recomputation, an outside
effect was repeated only under the same idempotency key. Ends with an AssertionError when that does not hold.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from msgspec import Struct

from tests.chaos.soak_faults import ClusterFaults, Fault, Kinds, Nemesis, OneServerFaults, SentinelFaults, WorkerFaults
from tests.chaos.spread import SpreadBench
from tests.helpers.cluster import ClusterTopology
from tests.helpers.proxy import ChaosProxy
from tests.helpers.sentinel import SentinelTopology
from tests.helpers.servers import SERVER_KINDS, RedisProc
from tests.helpers.workers import WorkerProc

WORKERS, PARTITIONS = 3, 3


class Asked(Struct, frozen=True, kw_only=True):
    """What a soak is to do; `every_s` is the pause of each of the publishers, one for a partition."""

    minutes: float
    seed: int = 1
    server: str = "valkey"
    place: str = "standalone"
    every_s: float = 0.005


class Result(Struct, frozen=True):
    """What a soak came to. `recovered_s` is how long it took after the last fault until nothing was under way."""

    asked: Asked
    faults: list[Fault]
    confirmed: int
    refused: int
    events: int
    runs: int
    repeated: int
    recovered_s: float

    def __str__(self) -> str:
        kinds = Counter(fault.kind for fault in self.faults)
        asked = self.asked
        lines = [
            f"seed {asked.seed}, {asked.minutes:g} minutes on {asked.server}, {asked.place}: {len(self.faults)} faults",
            *(f"  {kind:<28}{count:>6}" for kind, count in sorted(kinds.items())),
            f"{self.confirmed:,} events confirmed, {self.refused:,} publishes refused, {self.events:,} events in all",
            "lost 0, wrong rows 0",
            f"{self.runs:,} outside effects, {self.repeated:,} of them repeats under the same idempotency key",
            f"nothing under way {self.recovered_s:.1f} s after the last fault",
        ]
        return "\n".join(lines)


class Stage(Struct):
    """Where a soak takes place: the bench, the way of each worker to its servers, what may happen there, and how it
    heals."""

    bench: SpreadBench
    urls: list[str]
    kinds: Kinds
    heal: Callable[[], None] = lambda: None


def _standalone(asked: Asked, directory: Path, effects: RedisProc, rng: random.Random, stack: ExitStack) -> Stage:
    server = stack.enter_context(RedisProc(asked.server, directory / "server", aof=True))
    roads = [stack.enter_context(ChaosProxy(server.url)) for _ in range(WORKERS + 1)]
    bench = SpreadBench(server, effects, directory, partitions=PARTITIONS, url=roads[-1].url)

    def heal() -> None:
        for road in roads:
            road.heal()

    faults = OneServerFaults(server, roads, bench.streams, "effects", rng)
    return Stage(bench, [road.url for road in roads[:WORKERS]], faults.kinds, heal)


def _sentinel(asked: Asked, directory: Path, effects: RedisProc, rng: random.Random, stack: ExitStack) -> Stage:
    topology = stack.enter_context(SentinelTopology(directory / "servers", kind=asked.server))
    bench = SpreadBench(topology, effects, directory, partitions=PARTITIONS, durability="replicas:1")
    return Stage(bench, [topology.url] * WORKERS, SentinelFaults(topology, rng).kinds)


def _cluster(asked: Asked, directory: Path, effects: RedisProc, rng: random.Random, stack: ExitStack) -> Stage:
    nodes = ClusterTopology(directory / "cluster", kind=asked.server, aof=True, full_coverage=False)
    topology = stack.enter_context(nodes)
    bench = SpreadBench(topology, effects, directory, partitions=PARTITIONS)
    return Stage(bench, [topology.url] * WORKERS, ClusterFaults(topology, bench.streams, rng).kinds)


PLACES = {"standalone": _standalone, "sentinel": _sentinel, "cluster": _cluster}


def soak(asked: Asked, directory: Path, history: Path) -> Result:
    """One soak, on servers of its own; each fault is a line of JSON in `history`. Raises AssertionError when a promise
    did not hold."""
    rng = random.Random(asked.seed)
    with ExitStack() as stack:
        effects = stack.enter_context(RedisProc(asked.server, directory / "effects"))
        stage = PLACES[asked.place](asked, directory, effects, rng, stack)
        bench = stage.bench
        workers = [stack.enter_context(bench.worker(url)) for url in stage.urls]
        for worker in workers:
            worker.wait_ready()
        nemesis = Nemesis(WorkerFaults(workers, rng).kinds | stage.kinds, rng, history)
        with bench.load(asked.every_s):
            bench.wait_for_flow(time.time())
            nemesis.run(asked.minutes * 60)
            stage.heal()
        healed_s = time.monotonic()
        bench.wait_until_done()
        recovered_s = time.monotonic() - healed_s
        bench.check()
        _end(workers)
        runs = bench.runs()
        with bench.client() as client:
            names = [f"{topic}.{number}" for topic in ("jobs", "results") for number in range(PARTITIONS)]
            events = sum(client.xlen(name) for name in names)
        return Result(
            asked=asked,
            faults=nemesis.happened,
            confirmed=len(bench.confirmed),
            refused=bench.refused,
            events=events,
            runs=len(runs),
            repeated=len(runs) - len({run.n for run in runs}),
            recovered_s=recovered_s,
        )


def _end(workers: list[WorkerProc]) -> None:
    for worker in workers:
        worker.wait_ready().term()
    for worker in workers:
        assert worker.wait(60) == 0, worker.log()[-4000:]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--server", choices=SERVER_KINDS, default="valkey")
    parser.add_argument("--place", choices=sorted(PLACES), default="standalone")
    parser.add_argument("--every-s", type=float, default=0.005, help="pause of each of three publishers")
    parser.add_argument("--history", type=Path, default=Path("soak.jsonl"), help="where the faults go, as JSON lines")
    given = vars(parser.parse_args())
    history = given.pop("history")
    history.write_bytes(b"")
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        print(soak(Asked(**given), Path(directory), history))


if __name__ == "__main__":
    main()
