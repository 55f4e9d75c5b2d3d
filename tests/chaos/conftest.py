"""A bench for chaos tests: workers as real processes, a publisher, and the oracle over everything they left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis

from streamlib.blocking import BlockingApp
from streamlib.message import Position
from streamlib.settings import load_settings
from tests.chaos.job_app import Account, Job, Sum, accounts, app, jobs, sums
from tests.helpers.oracle import assert_no_stray_keys, assert_nothing_lost, ledger
from tests.helpers.servers import RedisProc
from tests.helpers.waiting import wait_until
from tests.helpers.workers import WorkerProc

LEASE_MS = 1_000
ACCOUNTS = [f"acc-{n}" for n in range(10)]
Acts = dict[int, str]


class Bench:
    """One server, the app's publisher, and any number of workers."""

    def __init__(self, server: RedisProc, tmp_path: Path, app_: BlockingApp, client: redis.Redis) -> None:  # type: ignore[type-arg]
        self.server = server
        self.app = app_
        self.client: Any = client  # redis-py types a reply as all that it can be under every protocol
        self._tmp_path = tmp_path
        self._published: dict[str, Job] = {}
        self._accounts = ACCOUNTS
        self._first = 0

    def worker(
        self, *args: str, work_s: float = 0.0, url: str = "", app: str = "tests.chaos.job_app:app", **env: str
    ) -> WorkerProc:
        """A worker process; `url` leads it to the server another way (a proxy, another user)."""
        environ = {
            "STREAMLIB_WORKER_LEASE_MS": str(LEASE_MS),
            "STREAMLIB_WORKER_BLOCK_MS": "100",
            "STREAMLIB_REDIS_TIMEOUT_S": "2",
            "JOB_EFFECTS_URL": self.server.url,
            "JOB_WORK_S": str(work_s),
            **env,
        }
        return WorkerProc(app, url or self.server.url, *args, cwd=self._tmp_path, env=environ)

    def publish(self, count: int, acts: Acts | None = None) -> list[str]:
        """Publish jobs numbered from 0 (or on); their event ids, confirmed."""
        start = self._first + len(self._published)
        events = [
            Job(n=n, account=self._accounts[n % len(ACCOUNTS)], act=(acts or {}).get(n, "work"))
            for n in range(start, start + count)
        ]
        answers = self.app.publish_many(jobs, events)
        assert all(isinstance(answer, Position) for answer in answers), answers
        return self.book(events, [answer.entry_id for answer in answers if isinstance(answer, Position)])

    def publish_late(self, count: int, delay_s: float) -> None:
        """Publish more jobs that come only after a while."""
        start = self._first + len(self._published)
        for n in range(start, start + count):
            event = Job(n=n, account=self._accounts[n % len(ACCOUNTS)])
            self.app.publish(jobs, event, id=f"late-{n}", delay=delay_s)
            self._published[f"late-{n}"] = event

    def book(self, events: Sequence[Job], entry_ids: Sequence[str]) -> list[str]:
        """Put confirmed jobs on the books; their event ids."""
        stored = {entry.decode(): fields[b"id"].decode() for entry, fields in self.client.xrange("jobs")}
        ids = [stored[entry_id] for entry_id in entry_ids]
        self._published |= dict(zip(ids, events, strict=True))
        return ids

    def forget(self) -> None:
        """Everything published so far is gone from Redis: nobody expects it any more.

        What workers had read of it may still run, so from here on jobs have other numbers and accounts.
        """
        self._published.clear()
        self._accounts = [f"{name}-later" for name in ACCOUNTS]
        self._first = 1_000_000

    def runs(self) -> Counter[int]:
        """How often the outside effect of each job happened."""
        return Counter(n for n, _, _ in self._effects())

    def wait_for_runs(self, more_than: int) -> None:
        wait_until(lambda: len(self.runs()) > more_than, 60, what=f"more than {more_than} jobs have run")

    def attempts(self) -> set[int]:
        return {attempt for _, attempt, _ in self._effects()}

    def idempotency_keys(self) -> dict[int, set[str]]:
        keys: dict[int, set[str]] = {}
        for n, _, key in self._effects():
            keys.setdefault(n, set()).add(key)
        return keys

    def _effects(self) -> list[tuple[int, int, str]]:
        """Job number, attempt and idempotency key of every outside effect of the jobs on the books."""
        lines = [line.decode().split(" ", 2) for line in self.client.lrange("effect:runs", 0, -1)]
        return [(int(n), int(attempt), key) for n, attempt, key in lines if int(n) >= self._first]

    def claims_of(self, pid: int) -> list[bytes]:
        """The claims that this process holds of events of `effects`."""
        names = [one["name"] for one in self.client.xinfo_consumers("jobs", "effects")]
        workers = {name.rpartition(b"-")[2] for name in names if f"-{pid}-".encode() in name}
        keys = list(self.client.scan_iter("{jobs}:idem:effects:*", count=1000))
        states = self.client.mget(keys) if keys else []
        return [state for state in states if state and state.startswith(b"c") and state.split(b":")[1] in workers]

    def wait_until_done(self, timeout: float = 90.0) -> None:
        """Until no event of any group is under way any more."""

        wait_until(self.is_done, timeout, every=0.1, what="every group is done")

    def is_done(self) -> bool:
        """Is no event of any group under way now?"""
        settled = ledger(self.client, "jobs", "effects", list(self._published)).settled
        return settled and self.is_folded("jobs", "accounts") and self.is_folded("results", "sums")

    def is_folded(self, stream: str, group: str) -> bool:
        """Whether this projection has committed all of the stream."""
        if not self.client.exists(stream):
            return True
        info = self.client.xinfo_stream(stream)
        groups = {found["name"]: found for found in self.client.xinfo_groups(stream)}
        found = groups.get(group.encode(), {})
        return bool(found.get("last-delivered-id") == info["last-generated-id"])

    def check(self, dead: Sequence[int] = ()) -> None:
        """The oracle: nothing lost, effects inside Redis exact, outside effects repeated only under one key."""
        assert_nothing_lost(self.client, "jobs", "effects", list(self._published))
        done = {event.n: event for event in self._published.values() if event.n not in dead}
        assert set(self.runs()) == set(done)
        assert all(len(keys) == 1 for keys in self.idempotency_keys().values())
        echoed = Counter(
            fields[b"data"]
            for _, fields in self.client.xrange("jobs")
            if fields[b"type"] == b"Echoed" and fields[b"key"].decode() in self._accounts
        )
        assert len(echoed) == len(done)
        assert set(echoed.values()) == {1}, "an event emitted with the ack stands in the stream once"
        self._check_views(list(done.values()))
        assert_no_stray_keys(self.client, ["effect:*"])

    def _check_views(self, done: Sequence[Job]) -> None:
        every, per_account = list(self._published.values()), Counter(event.account for event in done)
        for name in self._accounts:
            mine = [event for event in every if event.account == name]
            row = self.app.call(accounts.get(name))
            assert row == Account(
                account=name, jobs=len(mine), echoes=per_account[name], total=sum(event.n for event in mine)
            )
            assert self.app.call(sums.get(name)) == Sum(account=name, results=per_account[name])


@pytest.fixture
def bench(own_server: Callable[..., RedisProc], tmp_path: Path) -> Iterator[Bench]:
    server = own_server(aof=True)
    flags = {"redis.url": server.url, "worker.lease_ms": LEASE_MS, "redis.timeout_s": 2.0}
    app.configure(load_settings(flags, environ={}))
    with server.client() as client, app.blocking() as opened:
        yield Bench(server, tmp_path, opened, client)
