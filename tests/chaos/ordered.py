"""Ordered groups under kills, freezes and failing handlers: `python -m tests.chaos.ordered --seed 3 [--each 2000]`."""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event

from msgspec import Struct

from tests.chaos.ordered_bench import Emitted, OrderedBench
from tests.chaos.run_log import Freeze, Overlaps, Run, overlaps, read_runs
from tests.helpers.servers import RedisProc
from tests.helpers.workers import WorkerProc

LEASE_MS = 1_500
PARTITIONS = 8
KEYS = 16
WORKERS = 4
_RAISES = 0.03
_WORK_S = 0.006


class Found(Struct, frozen=True):
    """What one campaign did and what came of it."""

    seed: int
    events: int
    kills: int
    freezes: int
    runs: list[Run]
    emitted: Emitted
    overlaps: Overlaps
    took_s: float

    @property
    def raised(self) -> int:
        return sum(run.ending == "raised" for run in self.runs)

    @property
    def repeats(self) -> int:
        """Runs beyond what the events and the failed runs account for: what crashes and freezes cost."""
        return len(self.runs) - self.raised - self.events

    @property
    def holds(self) -> bool:
        return self.emitted == Emitted(0, 0, 0) and not self.overlaps.while_held


class Faults:
    """Kills and freezes of worker processes, drawn from one seed. A killed worker is started again at once."""

    def __init__(self, workers: list[WorkerProc], seed: int) -> None:
        self._workers = workers
        self._rng = random.Random(seed)
        self.killed_ns: dict[int, int] = {}
        self.freezes: list[Freeze] = []

    def run_until(self, ended: Event) -> None:
        """One fault after another: first one of each kind, then whatever comes, until the load has ended."""
        first = self._rng.sample(["kill", "freeze"], 2)
        while first or not ended.is_set():
            ended.wait(self._rng.uniform(0.2, 1.5))
            kind = first.pop() if first else self._rng.choice(["kill", "freeze"])
            victim = self._rng.choice(self._workers)
            if kind == "kill":
                self._kill(victim)
            else:
                self._freeze(victim)

    def _kill(self, victim: WorkerProc) -> None:
        pid = victim.pid
        victim.kill9()
        self.killed_ns[pid] = time.monotonic_ns()
        victim.start()

    def _freeze(self, victim: WorkerProc) -> None:
        """Stopped for longer than a lease; now and then another worker is killed meanwhile."""
        still_s = self._rng.uniform(1.1, 2.0) * LEASE_MS / 1000
        start_ns = time.monotonic_ns()
        victim.stop()
        try:
            if self._rng.random() < 0.3:
                self._kill(self._rng.choice([worker for worker in self._workers if worker is not victim]))
            time.sleep(still_s)
        finally:
            victim.cont()
        self.freezes.append(Freeze(victim.pid, start_ns, time.monotonic_ns()))


def run(directory: Path, seed: int, each: int, seconds: float, kind: str = "valkey") -> Found:
    """One campaign: `each` events per key, published over so many seconds, while faults happen. Raises AssertionError
    when something is lost, dead, or folded wrong; what it finds of order and overlaps is in the answer."""
    with RedisProc(kind, directory / "server") as server:
        bench = OrderedBench(
            server,
            directory,
            keys=KEYS,
            partitions=PARTITIONS,
            lease_ms=LEASE_MS,
            ORDERED_SEED=str(seed),
            ORDERED_RAISES=str(_RAISES),
            ORDERED_WORK_S=str(_WORK_S),
        )
        with _running([bench.worker() for _ in range(WORKERS)]) as workers:
            faults = Faults(workers, seed)
            began_s = time.monotonic()
            with bench.load(each * KEYS / seconds, each=each) as ended:
                faults.run_until(ended)
            bench.wait_until_done()
            took_s = time.monotonic() - began_s
            for worker in workers:
                worker.wait_ready().term()
            for worker in workers:
                assert worker.wait(60) == 0, worker.log()[-2000:]
        runs = read_runs(bench.runs_path, faults.killed_ns)
        return Found(
            seed=seed,
            events=len(bench.confirmed),
            kills=len(faults.killed_ns),
            freezes=len(faults.freezes),
            runs=runs,
            emitted=bench.check(),
            overlaps=overlaps(runs, faults.freezes),
            took_s=took_s,
        )


@contextmanager
def _running(workers: list[WorkerProc]) -> Iterator[list[WorkerProc]]:
    """All of them started and ready; at the end nothing of them is left, and an error shows what they logged last."""
    with ExitStack() as stack:
        for worker in workers:
            stack.enter_context(worker)
        for worker in workers:
            worker.wait_ready()
        yield workers


def table(campaigns: list[Found]) -> str:
    """The figures, a line for each campaign."""
    lines: list[str] = []
    for one in campaigns:
        cells = {
            "seed": one.seed,
            "keys": KEYS,
            "events": one.events,
            "partitions": PARTITIONS,
            "workers": WORKERS,
            "kills": one.kills,
            "freezes": one.freezes,
            "raised": one.raised,
            "runs": len(one.runs),
            "repeats": one.repeats,
            "overlaps frozen": len(one.overlaps.of_frozen),
            "overlaps": len(one.overlaps.while_held),
            "out of order": one.emitted.out_of_order,
            "lost": one.emitted.lost,
            "doubled": one.emitted.doubled,
            "seconds": round(one.took_s, 1),
        }
        if not lines:
            lines.append("  ".join(cells))
        lines.append("  ".join(f"{value:>{len(name)}}" for name, value in cells.items()))
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.ordered", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seed", type=int, action="append", help="1 by default; more than one makes a table of them")
    parser.add_argument("--each", type=int, default=2_000, help="events per key")
    parser.add_argument("--seconds", type=float, default=60.0, help="over how long they are published")
    parser.add_argument("--kind", default="valkey")
    given = parser.parse_args()
    campaigns = []
    for seed in given.seed or [1]:
        with tempfile.TemporaryDirectory(prefix="ordered-") as directory:
            campaigns.append(run(Path(directory), seed, given.each, given.seconds, given.kind))
    print(table(campaigns))
    return 0 if all(one.holds for one in campaigns) else 1


if __name__ == "__main__":
    raise SystemExit(main())
