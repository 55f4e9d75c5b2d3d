"""Random faults under load for as long as you like: `python -m tests.chaos.soak --minutes 30 --seed 7`.

Every one to five seconds something happens to a worker, to the server or to the network between them, drawn from the
seed. At the end everything heals, and the oracle of tests/chaos/spread.py looks at what is left: nothing that was
confirmed is lost or doubled, effects and read models in Redis equal a recomputation, an outside effect was repeated
only under the same idempotency key. Ends with an AssertionError when that does not hold.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec
from msgspec import Struct

from tests.chaos.spread import LEASE_MS, SpreadBench
from tests.helpers.proxy import ChaosProxy
from tests.helpers.servers import RedisProc
from tests.helpers.workers import WorkerProc

WORKERS, PARTITIONS = 3, 3
LEAST_S, MOST_S = 1.0, 5.0
"""From the begin of one fault to that of the next, unless it takes longer."""
STILL_S = (0.3, 2.5)
"""How long a server or a network stands still, seconds."""


class Fault(Struct, frozen=True):
    """One fault: when it began, seconds from the start, what it was, whom it struck, how long it took."""

    at_s: float
    kind: str
    target: str
    took_s: float


class Result(Struct, frozen=True):
    """What a soak came to. `recovered_s` is how long it took after the last fault until nothing was under way."""

    seed: int
    server: str
    minutes: float
    faults: list[Fault]
    confirmed: int
    refused: int
    events: int
    runs: int
    repeated: int
    recovered_s: float

    def __str__(self) -> str:
        kinds = Counter(fault.kind for fault in self.faults)
        told = "\n".join(f"  {kind:<28}{count:>6}" for kind, count in sorted(kinds.items()))
        return (
            f"seed {self.seed}, {self.minutes:g} minutes on {self.server}: {len(self.faults)} faults\n{told}\n"
            f"{self.confirmed:,} events confirmed, {self.refused:,} publishes refused, {self.events:,} events in all; "
            f"lost 0, wrong rows 0\n{self.runs:,} outside effects, {self.repeated:,} of them repeats under the same "
            f"idempotency key\nnothing under way {self.recovered_s:.1f} s after the last fault"
        )


class Faults:
    """What can happen, each once or for a while; all of it is over when its method returns."""

    def __init__(
        self,
        server: RedisProc,
        workers: Sequence[WorkerProc],
        roads: Sequence[ChaosProxy],
        rng: random.Random,
        history: Path,
    ) -> None:
        self._server = server
        self._workers = workers
        self._roads = roads
        self._rng = rng
        self._history = history
        self.happened: list[Fault] = []
        self.kinds: dict[str, Callable[[], str]] = {
            "worker killed": self._kill_worker,
            "worker frozen past its lease": self._freeze_worker,
            "worker stopped and started": self._restart_worker,
            "server killed": self._kill_server,
            "server frozen": self._freeze_server,
            "server out of memory": self._fill_memory,
            "scripts forgotten": self._forget_scripts,
            "connections killed": self._kill_connections,
            "group destroyed": self._destroy_group,
            "reply cut": self._cut_reply,
            "reply lost": self._lose_reply,
            "connections reset": self._reset,
            "network slow": self._slow,
            "network silent": self._silence,
        }

    def run(self, seconds: float) -> None:
        """One after another, each kind once before any comes again."""
        started_s = time.monotonic()
        coming: list[str] = []
        while (at_s := time.monotonic() - started_s) < seconds:
            if not coming:
                coming = self._rng.sample(sorted(self.kinds), len(self.kinds))
            kind = coming.pop()
            target = self.kinds[kind]()
            self.happened.append(Fault(at_s, kind, target, time.monotonic() - started_s - at_s))
            with self._history.open("ab") as history:
                history.write(msgspec.json.encode(self.happened[-1]) + b"\n")
            next_s = started_s + at_s + self._rng.uniform(LEAST_S, MOST_S)
            time.sleep(max(next_s - time.monotonic(), 0.0))

    # -- workers --------------------------------------------------------------------------------------------------

    def _worker(self) -> tuple[int, WorkerProc]:
        number = self._rng.randrange(len(self._workers))
        worker = self._workers[number]
        assert worker.running, f"a worker has ended by itself:\n{worker.log()[-4000:]}"
        return number, worker

    def _kill_worker(self) -> str:
        number, worker = self._worker()
        worker.kill9()
        worker.start()
        return f"worker {number}"

    def _freeze_worker(self) -> str:
        number, worker = self._worker()
        worker.stop()
        time.sleep(self._rng.uniform(1.1, 2.0) * LEASE_MS / 1000)
        worker.cont()
        return f"worker {number}"

    def _restart_worker(self) -> str:
        number, worker = self._worker()
        worker.wait_ready().term()
        assert worker.wait(60) == 0, worker.log()[-4000:]
        worker.start()
        return f"worker {number}"

    # -- the server -----------------------------------------------------------------------------------------------

    def _kill_server(self) -> str:
        self._server.kill9()
        self._server.start()
        return "server"

    def _freeze_server(self) -> str:
        self._server.stop()
        time.sleep(self._rng.uniform(*STILL_S))
        self._server.cont()
        return "server"

    def _fill_memory(self) -> str:
        with self._server.client() as client:
            client.config_set("maxmemory", "1")
            time.sleep(self._rng.uniform(*STILL_S))
            client.config_set("maxmemory", "0")
        return "server"

    def _forget_scripts(self) -> str:
        with self._server.client() as client:
            client.script_flush()
        return "server"

    def _kill_connections(self) -> str:
        with self._server.client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        return "server"

    def _destroy_group(self) -> str:
        stream = f"jobs.{self._rng.randrange(PARTITIONS)}"
        with self._server.client() as client:
            client.xgroup_destroy(stream, "effects")
        return stream

    # -- the network ----------------------------------------------------------------------------------------------

    def _road(self) -> tuple[str, ChaosProxy]:
        number = self._rng.randrange(len(self._roads))
        return (f"worker {number}" if number < len(self._workers) else "publisher"), self._roads[number]

    def _cut_reply(self) -> str:
        name, road = self._road()
        road.cut_replies_after(self._rng.randrange(2_000))
        return name

    def _lose_reply(self) -> str:
        name, road = self._road()
        road.drop_next_reply(b"EVALSHA")
        return name

    def _reset(self) -> str:
        name, road = self._road()
        road.reset_all()
        return name

    def _slow(self) -> str:
        name, road = self._road()
        road.delay(self._rng.uniform(20, 300), jitter_ms=20)
        time.sleep(self._rng.uniform(*STILL_S))
        road.heal()
        return name

    def _silence(self) -> str:
        name, road = self._road()
        road.blackhole()
        time.sleep(self._rng.uniform(*STILL_S))
        road.heal()
        return name


def soak(directory: Path, minutes: float, seed: int, kind: str, every_s: float, history: Path) -> Result:
    """One soak, on servers of its own; each fault is a line of JSON in `history`. Raises AssertionError when a promise
    did not hold."""
    with ExitStack() as stack:
        server = stack.enter_context(RedisProc(kind, directory / "server", aof=True))
        effects = stack.enter_context(RedisProc(kind, directory / "effects"))
        roads = [stack.enter_context(ChaosProxy(server.url)) for _ in range(WORKERS + 1)]
        bench = SpreadBench(server, effects, directory, partitions=PARTITIONS, url=roads[-1].url)
        workers = [stack.enter_context(bench.worker(road.url)) for road in roads[:WORKERS]]
        for worker in workers:
            worker.wait_ready()
        faults = Faults(server, workers, roads, random.Random(seed), history)
        with bench.load(every_s):
            bench.wait_for_flow(time.time())
            faults.run(minutes * 60)
            for road in roads:
                road.heal()
        healed_s = time.monotonic()
        bench.wait_until_done()
        recovered_s = time.monotonic() - healed_s
        bench.check()
        for worker in workers:
            worker.wait_ready().term()
        for worker in workers:
            assert worker.wait(60) == 0, worker.log()[-4000:]
        runs = bench.runs()
        with server.client() as client:
            names = [f"{topic}.{number}" for topic in ("jobs", "results") for number in range(PARTITIONS)]
            events = sum(client.xlen(name) for name in names)
        return Result(
            seed=seed,
            server=kind,
            minutes=minutes,
            faults=faults.happened,
            confirmed=len(bench.confirmed),
            refused=bench.refused,
            events=events,
            runs=len(runs),
            repeated=len(runs) - len({run.n for run in runs}),
            recovered_s=recovered_s,
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--server", default="valkey")
    parser.add_argument("--every-s", type=float, default=0.02, help="pause of each of three publishers")
    parser.add_argument("--history", type=Path, default=Path("soak.jsonl"), help="where the faults go, as JSON lines")
    given = parser.parse_args()
    given.history.write_bytes(b"")
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        result = soak(Path(directory), given.minutes, given.seed, given.server, given.every_s, given.history)
    print(result)


if __name__ == "__main__":
    main()
