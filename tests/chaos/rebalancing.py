"""Workers that come and go under steady load, measured: `python -m tests.chaos.rebalancing [--plan 1,4,2]`."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from itertools import chain, combinations, pairwise
from pathlib import Path

import redis
from msgspec import Struct

from streamlib.worker.assignment import assign
from streamlib.worker.ownership import MAX_PERIOD_S
from tests.chaos.ordered_app import GROUP, TOPIC, Moved, Settled
from tests.chaos.ordered_bench import Emitted, Entry, OrderedBench
from tests.chaos.owner_watch import OwnerWatch, Sample, given_up, stayed
from tests.chaos.run_log import Run, overlaps, read_runs
from tests.helpers.servers import RedisProc
from tests.helpers.waiting import wait_until
from tests.helpers.workers import WorkerProc

LEASE_MS = 4_000
PERIOD_S = min(LEASE_MS / 4_000, MAX_PERIOD_S)
PARTITIONS = 8
KEYS = 16
PER_SECOND = 160.0
PLAN = (1, 4, 2)
_WORK_S = 0.002
_FLOW = 20
_CHANGED_S = 60.0


class Change(Struct, frozen=True):
    """Workers that came or went, from before it until all partitions flowed again."""

    before: int
    after: int
    shares: list[int]
    levelled_s: float
    """From the moment at which the last one said that it came, or was asked to go, until shares were even for good."""
    kept: list[int]
    """Partitions that had one owner all along."""
    disturbed: list[int]
    """Those of them that were released meanwhile, or began a new epoch."""
    moved_for_nothing: list[int]
    """Partitions that changed hands though no order of coming or going gives them to anybody else."""
    start_ms: int
    end_ms: int


class Found(Struct, frozen=True):
    """All changes of one plan and what came of the load."""

    changes: list[Change]
    entries: list[list[Entry]]
    runs: list[Run]
    emitted: Emitted
    overlapping: int
    took_s: float

    @property
    def events(self) -> int:
        return sum(isinstance(entry.event, Moved) for of_one in self.entries for entry in of_one)

    def gap_s(self, change: Change, partitions: Iterable[int], cls: type[Moved | Settled]) -> float:
        """The longest time during a change in which no event of this class was added to one of these partitions, by the
        server's clock."""
        gaps = [0.0]
        for number in partitions:
            times = [one.at_ms for one in self.entries[number] if isinstance(one.event, cls)]
            within = [at_ms for at_ms in times if change.start_ms <= at_ms <= change.end_ms]
            gaps += [(after - before) / 1000 for before, after in pairwise([change.start_ms, *within, change.end_ms])]
        return max(gaps)

    @property
    def exact(self) -> bool:
        """Nothing lost, doubled or out of order, nothing run twice, and what did not move was left alone."""
        disturbed = any(change.disturbed or change.moved_for_nothing for change in self.changes)
        once = len(self.runs) == self.events and not self.overlapping
        return self.emitted == Emitted(0, 0, 0) and once and not disturbed

    @property
    def in_time(self) -> bool:
        """Shares were even within two membership periods, and what did not move never paused for a second."""
        return all(
            change.levelled_s <= 2 * PERIOD_S and self.gap_s(change, change.kept, Settled) < 1.0
            for change in self.changes
        )


class Staff:
    """The worker processes, watched from outside as they come and go."""

    def __init__(self, bench: OrderedBench, watch: OwnerWatch, client: redis.Redis, stack: ExitStack) -> None:
        self.workers: list[WorkerProc] = []
        self.left: list[WorkerProc] = []
        self._stack = stack
        self._bench = bench
        self._watch = watch
        self._client = client

    def begin(self, count: int) -> None:
        self._start(count)
        self._wait_for_flow()

    def change_to(self, count: int) -> Change:
        """So many workers from now on: the first ones stay."""
        before, start_ms = self._ids(self.workers), self._watch.now_ms()
        number = len(self.workers)
        if count > number:
            asked_ms = self._start(count - number)
        else:
            asked_ms = start_ms
            leaving, self.workers = self.workers[count:], self.workers[:count]
            self.left += leaving
            for worker in leaving:
                worker.term()
        after = self._ids(self.workers)
        wait_until(lambda: self._watch.samples[-1].levelled(after), _CHANGED_S, what=f"even shares of {count}")
        for worker in self.left:
            assert worker.wait(_CHANGED_S) == 0, worker.log()[-2000:]
        self._wait_for_flow()
        end_ms = self._watch.now_ms()
        samples = self._watch.since(start_ms)
        kept = stayed(samples)
        return Change(
            before=number,
            after=count,
            shares=samples[-1].shares(after),
            levelled_s=(_levelled_at(samples, after) - asked_ms) / 1000,
            kept=kept,
            disturbed=given_up(samples, kept),
            moved_for_nothing=sorted(_at_home(before, after) - set(kept)),
            start_ms=start_ms,
            end_ms=end_ms,
        )

    def end(self) -> None:
        for worker in self.workers:
            worker.term()
        for worker in self.workers:
            assert worker.wait(_CHANGED_S) == 0, worker.log()[-2000:]

    def _start(self, count: int) -> int:
        """Start so many more; when the last of them was a member, by the server's clock."""
        self.workers += [self._bench.worker() for _ in range(count)]
        for worker in self.workers[-count:]:
            self._stack.enter_context(worker)
        pids = {worker.pid for worker in self.workers}

        def all_members() -> bool:
            assert all(worker.running for worker in self.workers), self.workers[-1].log()[-2000:]
            return bool(self._watch.samples) and pids <= set(self._watch.samples[-1].pids.values())

        wait_until(all_members, _CHANGED_S, what=f"{count} more workers are members")
        return next(one.at_ms for one in self._watch.samples if pids <= set(one.pids.values()))

    def _ids(self, workers: Sequence[WorkerProc]) -> list[str]:
        names = {pid: name for name, pid in self._watch.samples[-1].pids.items()}
        return [names[worker.pid] for worker in workers]

    def _wait_for_flow(self) -> None:
        """Until some events of every partition settled that were not there before."""
        before = [self._length(stream) for stream in self._bench.streams]

        def flows() -> bool:
            return all(
                self._length(stream) >= length + 2 * _FLOW
                for stream, length in zip(self._bench.streams, before, strict=True)
            )

        wait_until(flows, _CHANGED_S, every=0.1, what="events of every partition settle")

    def _length(self, stream: str) -> int:
        length: int = self._client.xlen(stream)
        return length


def _levelled_at(samples: Sequence[Sample], workers: Sequence[str]) -> int:
    """When shares became even for good."""
    uneven = [number for number, sample in enumerate(samples) if not sample.levelled(workers)]
    return samples[uneven[-1] + 1 if uneven else 0].at_ms


def _at_home(before: Sequence[str], after: Sequence[str]) -> set[int]:
    """The partitions that are one worker's share in whatever order the others come or go."""
    lasting = sorted(set(before) & set(after))
    changing = sorted(set(before) ^ set(after))
    some = chain.from_iterable(combinations(changing, size) for size in range(len(changing) + 1))
    answers = [assign(PARTITIONS, [*lasting, *more], f"{TOPIC}:{GROUP}") for more in some]
    return {number for number in range(PARTITIONS) if len({shares[number] for shares in answers}) == 1}


def run(directory: Path, plan: Sequence[int] = PLAN, kind: str = "valkey") -> Found:
    """Change the number of workers as planned, under load. Raises AssertionError when something is lost, dead or
    folded wrong, or shares never become even; the rest is in the answer."""
    began_s = time.monotonic()
    with RedisProc(kind, directory / "server") as server, server.client() as client, server.client() as watching:
        bench = OrderedBench(
            server,
            directory,
            keys=KEYS,
            partitions=PARTITIONS,
            lease_ms=LEASE_MS,
            beside=True,
            ORDERED_WORK_S=str(_WORK_S),
        )
        watch = OwnerWatch(watching, bench.streams, GROUP)
        with ExitStack() as stack:
            staff = Staff(bench, watch, client, stack)
            with watch.watching(), bench.load(PER_SECOND):
                staff.begin(plan[0])
                changes = [staff.change_to(count) for count in plan[1:]]
            bench.wait_until_done()
            staff.end()
        runs = read_runs(bench.runs_path, {})
        return Found(
            changes=changes,
            entries=bench.entries(),
            runs=runs,
            emitted=bench.check(),
            overlapping=len(overlaps(runs, []).while_held),
            took_s=time.monotonic() - began_s,
        )


def table(found: Found) -> str:
    """The figures, a line for each change."""
    head = f"{'workers':<9}{'shares':<10}{'even after':>11}{'moved':>7}{'kept':>6}{'disturbed':>11}{'gap kept':>10}"
    lines = [f"{head}{'gap moved':>11}{'gap published':>15}"]
    for one in found.changes:
        moved = [number for number in range(PARTITIONS) if number not in one.kept]
        gaps = [
            found.gap_s(one, one.kept, Settled),
            found.gap_s(one, moved, Settled),
            found.gap_s(one, range(PARTITIONS), Moved),
        ]
        lines.append(
            f"{f'{one.before} -> {one.after}':<9}{' '.join(map(str, sorted(one.shares))):<10}{one.levelled_s:>9.2f} s"
            f"{len(moved):>7}{len(one.kept):>6}{len({*one.disturbed, *one.moved_for_nothing}):>11}"
            f"{gaps[0]:>8.2f} s{gaps[1]:>9.2f} s{gaps[2]:>13.2f} s"
        )
    emitted = found.emitted
    lines.append(
        f"{found.events} events, {len(found.runs)} runs, {found.overlapping} overlapping, {emitted.out_of_order} out of"
        f" order, {emitted.lost} lost, {emitted.doubled} doubled; {PARTITIONS} partitions, lease {LEASE_MS / 1000:g} s,"
        f" membership period {PERIOD_S:g} s; {found.took_s:.0f} s"
    )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.rebalancing", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--plan", default=",".join(map(str, PLAN)), help="numbers of workers, one after the other")
    parser.add_argument("--kind", default="valkey")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rebalancing-") as directory:
        found = run(Path(directory), [int(count) for count in given.plan.split(",")], given.kind)
    print(table(found))
    return 0 if found.exact and found.in_time else 1


if __name__ == "__main__":
    raise SystemExit(main())
