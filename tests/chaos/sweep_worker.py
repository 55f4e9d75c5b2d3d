"""What a worker sends, struck: it is killed, frozen past its lease or robbed of a reply, and another carries on."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from signal import SIGKILL
from threading import Event

import msgspec
from msgspec import Struct

from streamlib.settings import load_settings
from tests.chaos.conftest import LEASE_MS, Bench
from tests.chaos.job_app import app
from tests.chaos.sweep_case import DRAIN, EFFECT, RECOVERS_S, TAKEN, Case, strike
from tests.helpers.oracle import assert_nothing_lost, ledger
from tests.helpers.proxy import ChaosProxy
from tests.helpers.servers import RedisProc
from tests.helpers.waiting import wait_until
from tests.helpers.workers import WorkerProc

APP = "tests.chaos.sweep_app:app"
SENT = (
    "admit", "beat", "claim", "commit", "deliver", "halted_keys", "leave", "load_rows", "own", "promote",
    "promote_later", "prune_producers", "publish", "remove_consumer", "renew", "settle", "trim",
)  # fmt: skip
"""The scripts that a worker sends from its start to its end."""
HOLDING = ("claim", "renew", "settle", EFFECT)
"""When these are sent, events have been read and are not acknowledged."""

JOBS, LATE = 20, 4
PAST, PASSED = range(1, 8), 5
"""Numbers of the entries of long ago, and how many of them their groups are done with: `pasts`, and one that no worker
here runs."""
GROUPS = {"limited": "jobs", "never": "jobs", "ledger": "results"}
"""The groups that tests/chaos/sweep_app.py adds, and their streams; and `pasts` of `pasts`."""


class Line(Struct, frozen=True):
    """What one run of a group's handler left outside."""

    n: int
    key: str
    attempt: int
    idempotency_key: str


class WorkerBench(Bench):
    """The bench of the other chaos tests, and what its app has beside."""

    def begin(self) -> None:
        """Work of every kind: jobs, some of which fail at first or come later, and entries of long ago."""
        for n in PAST:
            fields = {"id": f"past-{n}", "type": "Past", "v": "1", "key": "", "data": f'{{"n":{n}}}'}
            self.client.xadd("pasts", fields, id=f"{n}-1")
        self.client.xgroup_create("pasts", "pasts", f"{PASSED}-1", entries_read=PASSED)
        self.client.xgroup_create("pasts", "elsewhere", f"{PASSED}-1", entries_read=PASSED)
        self.client.hset("{pasts}:producers", "gone", f"1 {PASSED} ")
        self.publish(JOBS, dict.fromkeys(range(0, JOBS, 8), "fail once"))
        self.publish_late(LATE, delay_s=0.3)

    def is_done(self) -> bool:
        if not super().is_done():
            return False
        accounts = [ledger(self.client, stream, group, self._ids(group)) for group, stream in GROUPS.items()]
        passed = ledger(self.client, "pasts", "pasts", [f"past-{n}" for n in PAST[PASSED:]])
        return all(account.settled for account in accounts) and passed.settled

    def check_all(self, case: Case) -> None:
        self.check()
        for group, stream in GROUPS.items():
            assert assert_nothing_lost(self.client, stream, group, self._ids(group)).settled
        lines = {group: self._lines(group) for group in (*GROUPS, "pasts")}
        for group, of_group in lines.items():
            keys = defaultdict(set)
            for line in of_group:
                keys[line.n].add(line.idempotency_key)
            assert all(len(of_one) == 1 for of_one in keys.values()), f"{group}: one event, one idempotency key"
        numbers = {event.n for event in self._published.values()}
        assert {line.n for line in lines["limited"]} == numbers
        self._check_never(lines["never"], numbers)
        self._check_order(lines["ledger"], is_frozen=case.is_frozen)
        assert {line.n for line in lines["pasts"]} == {*PAST[PASSED:]}
        left = [entry_id for entry_id, _ in self.client.xrange("pasts")]
        assert left == [f"{n}-1".encode() for n in PAST[PASSED:]], "trimmed is what no group needs, not more"
        assert not self.client.hexists("{pasts}:producers", "gone")

    def _check_never(self, lines: list[Line], numbers: set[int]) -> None:
        """No second run; what may have run or not is told as such."""
        assert len({line.n for line in lines}) == len(lines), "what must not run again did"
        letters = [fields for _, fields in self.client.xrange("{jobs}:dead:never")]
        assert {fields[b"dl-reason"] for fields in letters} <= {b"outcome_unknown"}
        told = {self._published[fields[b"id"].decode()].n for fields in letters}
        assert told | {line.n for line in lines} == numbers

    def _check_order(self, lines: list[Line], *, is_frozen: bool) -> None:
        """Each key's runs follow its stream. A run that was frozen past its lease may come after its successors'."""
        entries = [fields for _, fields in self.client.xrange("results")]
        first = {fields[b"id"]: fields for fields in reversed(entries)}  # what was emitted again is a copy
        expected: dict[str, list[int]] = defaultdict(list)
        for fields in entries:
            if first[fields[b"id"]] is fields:
                expected[fields[b"key"].decode()].append(_number(fields[b"data"]))
        ran: dict[str, list[int]] = defaultdict(list)
        for line in lines:
            if not ran[line.key] or (line.n not in ran[line.key] if is_frozen else line.n != ran[line.key][-1]):
                ran[line.key].append(line.n)
        assert ran == expected, {key: (ran[key], expected[key]) for key in expected if ran[key] != expected[key]}

    def _ids(self, group: str) -> list[str]:
        if GROUPS[group] == "jobs":
            return list(self._published)
        return [fields[b"id"].decode() for _, fields in self.client.xrange("results")]

    def _lines(self, group: str) -> list[Line]:
        parts = [line.decode().split(" ", 3) for line in self.client.lrange(f"effect:{group}", 0, -1)]
        return [Line(int(n), key, int(attempt), idempotency_key) for n, key, attempt, idempotency_key in parts]


@contextmanager
def opened(server: RedisProc, directory: Path) -> Iterator[WorkerBench]:
    """A bench on an empty server."""
    app.configure(load_settings({"redis.url": server.url, "worker.lease_ms": LEASE_MS}, environ={}))
    with server.client() as client:
        client.flushall()
        with app.blocking() as publisher:
            yield WorkerBench(server, directory, publisher, client)


def run(case: Case, server: RedisProc, directory: Path) -> float:
    """Seconds from the fault until nothing was under way. Raises AssertionError when a promise did not hold."""
    with opened(server, directory) as bench, ChaosProxy(server.url) as road, ExitStack() as stack:
        bench.begin()
        caught = road.catch(case.words, case.caught_at, case.nth)
        work_s = 0.5 if case.point == "renew" else 0.02
        struck = stack.enter_context(bench.worker(work_s=work_s, url=road.url, app=APP, JOB_EFFECTS_URL=road.url))
        other = bench.worker(work_s=0.1 if case.fault == TAKEN else 0.0, app=APP)
        drains = _lead_to(case, bench, struck, caught)
        began_s = time.monotonic()
        stack.enter_context(other)
        strike(case, road, struck, lambda: _until_it_wakes(case, bench, other))
        bench.wait_until_done(RECOVERS_S)
        took_s = time.monotonic() - began_s
        other.wait_ready()
        if struck.running and not drains:
            struck.wait_ready()
        _check_metrics(case, struck, other, drains=drains)
        if struck.running and not drains:
            struck.term()
        assert struck.wait() == (-SIGKILL if case.fault == "kill" else 0)
        bench.wait_until_done(RECOVERS_S)  # what a frozen one emitted once more when it woke, are copies
        other.term()
        assert other.wait() == 0
        bench.check_all(case)
    return took_s


def _until_it_wakes(case: Case, bench: WorkerBench, other: WorkerProc) -> None:
    if case.fault == TAKEN:
        wait_until(lambda: bench.claims_of(other.pid) or bench.is_done(), RECOVERS_S, what=f"{case}: taken over")
    else:
        bench.wait_until_done(RECOVERS_S)


def _lead_to(case: Case, bench: WorkerBench, struck: WorkerProc, caught: Event) -> bool:
    """Until the message is held, with the process told to end where it is only sent then; whether it was told."""
    wait_until(lambda: caught.wait(0.2) or bench.is_done(), RECOVERS_S, what=f"{case}: it is sent, or all is done")
    drains = not caught.is_set()
    if drains or case.moment == DRAIN:
        struck.term()
    if drains:
        wait_until(lambda: caught.is_set() or not struck.running, RECOVERS_S, what=f"{case}: it is sent, or it ends")
    elif case.moment == DRAIN:
        drains = True
        wait_until(lambda: struck.get("/readyz")[0] == 503, what="it drains")
    assert caught.is_set(), f"{case}: it was never sent"
    return drains


def _check_metrics(case: Case, struck: WorkerProc, other: WorkerProc, *, drains: bool) -> None:
    """Where the struck one held work, another says that it took that over, and the frozen one that it lost it."""
    if case.point in HOLDING and case.fault != "lost":
        assert other.metric("streamlib_events_received_total", delivery="reclaimed") > 0
        if case.is_frozen and not drains:
            wait_until(lambda: _lost(struck) > 0, what="it tells what it lost")


def _lost(worker: WorkerProc) -> float:
    """Events that another took over while it had them, and those that were done when it came to claim them."""
    names = ("streamlib_lease_lost_total", "streamlib_duplicates_suppressed_total")
    return sum(map(worker.metric, names))


def _number(data: bytes) -> int:
    return int(msgspec.json.decode(data)["n"])
