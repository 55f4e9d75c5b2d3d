"""A bench over several servers: workers as processes, publishers that never rest, and the oracle over all of it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import redis
from msgspec import Struct

from streamlib import App
from streamlib.blocking import BlockingApp
from streamlib.errors import PublishError, RedisError
from streamlib.settings import load_settings
from tests.chaos.job_app import Account, Job, Sum
from tests.chaos.spread_app import ACCOUNTS, RUNS, Spread
from tests.helpers.cluster import ClusterTopology
from tests.helpers.oracle import assert_no_stray_keys, assert_nothing_lost, ledger
from tests.helpers.sentinel import SentinelTopology
from tests.helpers.servers import RedisProc
from tests.helpers.waiting import wait_until
from tests.helpers.workers import WorkerProc

LEASE_MS = 2_000
DONE_S = 300.0
FLOWS_S = 60.0
NOT_NOW = (redis.exceptions.RedisError, OSError)


class Run(Struct, frozen=True):
    """One run of a job, as its outside effect tells."""

    n: int
    partition: int
    at_s: float
    idempotency_key: str


class Published(Struct, frozen=True):
    """A job that was confirmed, and when its publishing began."""

    event_id: str
    partition: int
    began_s: float


class SpreadBench:
    """Servers, the app's publisher, and any number of workers."""

    def __init__(
        self,
        servers: SentinelTopology | ClusterTopology | RedisProc,
        effects: RedisProc,
        tmp_path: Path,
        *,
        partitions: int,
        durability: str = "primary",
        emits: bool = True,
        url: str = "",
    ) -> None:
        """`url` leads publishers to the servers another way, through a proxy."""
        self.servers = servers
        self.partitions = partitions
        self.spread = Spread(partitions=partitions, durability=durability, emits=emits)
        self.confirmed: dict[int, Published] = {}
        self.refused = 0
        """Publishes that raised: such an event may be stored or not."""
        self.published_by: BlockingApp[App]
        self._effects = effects
        self._tmp_path = tmp_path
        self._numbers = iter(range(10_000_000))
        self._lock = threading.Lock()
        self._env = {
            "STREAMLIB_WORKER_LEASE_MS": str(LEASE_MS),
            "STREAMLIB_WORKER_BLOCK_MS": "200",
            "STREAMLIB_REDIS_TIMEOUT_S": "2",
            "JOB_EFFECTS_URL": effects.url,
            "JOB_PARTITIONS": str(partitions),
            "JOB_DURABILITY": durability,
            "JOB_EMITS": "1" if emits else "0",
        }
        flags = {"redis.url": url or servers.url, "worker.lease_ms": LEASE_MS, "redis.timeout_s": 2.0}
        self.spread.app.configure(load_settings(flags, environ={}))

    @property
    def streams(self) -> list[str]:
        return [f"jobs.{number}" for number in range(self.partitions)] if self.partitions > 1 else ["jobs"]

    def worker(self, url: str = "", **env: str) -> WorkerProc:
        """A worker process, not started yet; `url` leads it to the servers another way."""
        environ = {**self._env, **env}
        return WorkerProc("tests.chaos.spread_app:app", url or self.servers.url, cwd=self._tmp_path, env=environ)

    @contextmanager
    def client(self) -> Iterator[Any]:
        """A client for whatever key."""
        topology = self.servers
        with topology.primary() if isinstance(topology, SentinelTopology) else topology.client() as client:
            yield client

    # -- load -----------------------------------------------------------------------------------------------------

    @contextmanager
    def load(self, every_s: float = 0.05) -> Iterator[None]:
        """Meanwhile a thread for each partition publishes one job after another."""
        stop = threading.Event()
        threads = [
            threading.Thread(target=self._publish_until, args=(stop, partition, every_s))
            for partition in range(self.partitions)
        ]
        with self.spread.app.blocking() as self.published_by:
            for thread in threads:
                thread.start()
            try:
                yield
            finally:
                stop.set()
                for thread in threads:
                    thread.join(60)
        assert not any(thread.is_alive() for thread in threads)

    def _publish_until(self, stop: threading.Event, partition: int, every_s: float) -> None:
        mine = [account for account in ACCOUNTS if self.partition_of(account) == partition]
        while not stop.wait(every_s):
            with self._lock:
                n = next(self._numbers)
            self.publish(n, mine[n % len(mine)])

    def publish(self, n: int, account: str) -> None:
        """Publish a job once. One that is not confirmed is nobody's promise."""
        began_s = time.time()
        try:
            position = self.published_by.publish(self.spread.jobs, Job(n=n, account=account), id=f"job-{n}")
        except (PublishError, RedisError):
            self.refused += 1
            return
        with self._lock:
            self.confirmed[n] = Published(f"job-{n}", position.partition, began_s)

    def partition_of(self, account: str) -> int:
        spec = self.spread.jobs.spec
        return spec.partition_of(spec.message(Job(n=0, account=account)))

    # -- what happened --------------------------------------------------------------------------------------------

    def runs(self, start: int = 0) -> list[Run]:
        """Every run so far, from the `start`-th on, in the order in which they happened."""
        with self._effects.client() as client:
            lines: Any = client.lrange(RUNS, start, -1)
        return [_run(line.decode()) for line in lines]

    def wait_for_flow(self, after_s: float, partitions: Sequence[int] | None = None) -> float:
        """Wait until jobs run whose publishing began after this time, in each of these partitions; when the last of
        them had its first."""
        wanted = set(range(self.partitions) if partitions is None else partitions)
        first: dict[int, float] = {}
        seen = 0

        def flows() -> bool:
            nonlocal seen
            fresh = self.runs(seen)
            seen += len(fresh)
            for run in fresh:
                published = self.confirmed.get(run.n)
                if published is not None and published.began_s > after_s:
                    first.setdefault(run.partition, run.at_s)
            return wanted <= first.keys()

        wait_until(flows, FLOWS_S, every=0.05, what=f"jobs published after {after_s:.1f} run in partitions {wanted}")
        return max(first[partition] for partition in wanted)

    def largest_gap_s(self, start_s: float, end_s: float, partitions: Sequence[int]) -> float:
        """The longest time between these in which none of the partitions' jobs ran, over each partition by itself."""
        gaps = [0.0]
        for partition in partitions:
            times = [run.at_s for run in self.runs() if run.partition == partition and start_s <= run.at_s <= end_s]
            marks = [start_s, *sorted(times), end_s]
            gaps += [after - before for before, after in pairwise(marks)]
        return max(gaps)

    # -- the end --------------------------------------------------------------------------------------------------

    def wait_until_done(self) -> None:
        """Until no event of any group is under way any more."""

        def nothing_left() -> bool:
            with self.client() as client:
                settled = ledger(client, self.streams, "effects", self._stored(client)).settled
                return settled and all(self._caught_up(client, name) for name in ("jobs", "results"))

        wait_until(nothing_left, DONE_S, every=0.2, what="every group is done", ignore=NOT_NOW)

    def _stored(self, client: Any) -> list[str]:
        return [fields[b"id"].decode() for fields in self._entries(client, "jobs") if fields[b"type"] == b"Job"]

    def _entries(self, client: Any, topic: str) -> list[dict[bytes, bytes]]:
        names = [stream.replace("jobs", topic) for stream in self.streams]
        return [fields for name in names for _, fields in client.xrange(name)]

    def _caught_up(self, client: Any, topic: str) -> bool:
        view = {"jobs": b"accounts", "results": b"sums"}[topic]
        for stream in (name.replace("jobs", topic) for name in self.streams):
            last = client.xinfo_stream(stream)["last-generated-id"]
            groups = {group["name"]: group for group in client.xinfo_groups(stream)}
            if groups[view]["last-delivered-id"] != last and last != b"0-0":
                return False
        return True

    def check(self) -> None:
        """The oracle: what was confirmed is there, once, and done; effects inside Redis are exact."""
        with self.client() as client:
            stored = Counter(self._stored(client))
            confirmed = {one.event_id for one in self.confirmed.values()}
            assert confirmed <= set(stored), f"confirmed and lost: {sorted(confirmed - set(stored))[:10]}"
            assert set(stored.values()) == {1}, "a resend never doubles"
            assert assert_nothing_lost(client, self.streams, "effects", stored).settled
            entries = self._entries(client, "jobs")
            echoed = Counter(fields[b"data"] for fields in entries if fields[b"type"] == b"Echoed")
            results = {fields[b"id"]: fields[b"key"] for fields in self._entries(client, "results")}
            assert_no_stray_keys(client)
        assert len(echoed) == len(stored)
        assert set(echoed.values()) == {1}, "an event emitted with the ack stands in the stream once"
        self._check_outside(stored)
        self._check_views(entries, Counter(key.decode() for key in results.values()))

    def _check_outside(self, stored: Counter[str]) -> None:
        keys: dict[int, set[str]] = {}
        for run in self.runs():
            keys.setdefault(run.n, set()).add(run.idempotency_key)
        assert {f"job-{n}" for n in keys} >= set(stored), "what is stored has run"
        assert all(len(of_one) == 1 for of_one in keys.values())

    def _check_views(self, entries: Sequence[dict[bytes, bytes]], results: Counter[str]) -> None:
        """Each read model equals what comes out of the streams as they are."""
        jobs = [fields for fields in entries if fields[b"type"] == b"Job"]
        with self.spread.app.blocking() as opened:
            for name in ACCOUNTS:
                mine = [int(one[b"id"].decode().removeprefix("job-")) for one in jobs if one[b"key"] == name.encode()]
                if mine:
                    row = opened.call(self.spread.accounts.get(name))
                    assert row == Account(account=name, jobs=len(mine), echoes=len(mine), total=sum(mine))
                if results[name]:
                    assert opened.call(self.spread.sums.get(name)) == Sum(account=name, results=results[name])


def _run(line: str) -> Run:
    n, partition, at_s, key = line.split(" ", 3)
    return Run(int(n), int(partition), float(at_s), key)
