"""A bench for ordered groups: a paced publisher, any number of worker processes, and the oracle over what settled."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import redis
from msgspec import Struct

from streamlib import App
from streamlib.blocking import BlockingApp
from streamlib.message import Position
from streamlib.settings import load_settings
from tests.chaos.ordered_app import BESIDE, GROUP, TOPIC, VIEW, Account, Moved, Ordered, Settled, fold
from tests.helpers.oracle import assert_no_stray_keys, assert_nothing_lost
from tests.helpers.servers import RedisProc
from tests.helpers.waiting import wait_until
from tests.helpers.workers import WorkerProc

STILL_S = 30.0
_TICK_S = 0.05


class Entry(Struct, frozen=True):
    """One entry of the topic as it lies in Redis; `at_ms` is the server's clock when it was added."""

    entry_id: str
    event_id: str
    at_ms: int
    event: Moved | Settled


class Emitted(Struct, frozen=True):
    """What is wrong with the emitted events, over all keys."""

    out_of_order: int
    lost: int
    doubled: int


class OrderedBench:
    """One server, the app's publisher, and any number of workers."""

    def __init__(
        self,
        server: RedisProc,
        directory: Path,
        *,
        keys: int,
        partitions: int,
        lease_ms: int,
        beside: bool = False,
        **env: str,
    ) -> None:
        self.server = server
        self.partitions = partitions
        self.runs_path = directory / "runs.log"
        self.streams = [f"{TOPIC}.{number}" for number in range(partitions)]
        self.ordered = Ordered(partitions=partitions, beside=beside)
        self.keys = self._spread_keys(keys)
        self.confirmed: dict[tuple[int, str], Moved] = {}
        """(partition, entry id) -> what was published there."""
        self._directory = directory
        self._beside = beside
        self._env = {
            "STREAMLIB_WORKER_LEASE_MS": str(lease_ms),
            "STREAMLIB_WORKER_BLOCK_MS": "200",
            "STREAMLIB_REDIS_TIMEOUT_S": "5",
            "ORDERED_PARTITIONS": str(partitions),
            "ORDERED_BESIDE": "1" if beside else "0",
            "ORDERED_RUNS": str(self.runs_path),
            **env,
        }
        flags = {"redis.url": server.url, "worker.lease_ms": lease_ms}
        self.ordered.app.configure(load_settings(flags, environ={}))

    def worker(self) -> WorkerProc:
        return WorkerProc("tests.chaos.ordered_app:app", self.server.url, cwd=self._directory, env=self._env)

    def partition_of(self, key: str) -> int:
        spec = self.ordered.moves.spec
        return spec.partition_of(spec.message(Moved(account=key, n=0)))

    def _spread_keys(self, keys: int) -> list[str]:
        """Names of keys, as evenly over the partitions as their number allows."""
        by_partition: dict[int, list[str]] = defaultdict(list)
        names = (f"acc-{number}" for number in range(1_000 * self.partitions))
        most = -(-keys // self.partitions)
        for name in names:
            of_one = by_partition[self.partition_of(name)]
            if len(of_one) < most:
                of_one.append(name)
        rounds = zip(*(by_partition[number] for number in range(self.partitions)), strict=True)
        return [name for one in rounds for name in one][:keys]

    # -- load -----------------------------------------------------------------------------------------------------

    @contextmanager
    def load(self, per_second: float, *, each: int | None = None) -> Iterator[threading.Event]:
        """Meanwhile events of all keys are published, in turn and numbered per key; `each` is the number after which it
        ends, None the end of the block. The event is set when it has ended."""
        stop, ended = threading.Event(), threading.Event()
        errors: list[BaseException] = []

        def publish() -> None:
            try:
                with self.ordered.app.blocking() as opened:
                    self._publish_until(opened, stop, per_second, each)
            except BaseException as error:  # noqa: BLE001 - raised again in the test's own thread
                errors.append(error)
            finally:
                ended.set()

        thread = threading.Thread(target=publish)
        thread.start()
        try:
            yield ended
        finally:
            if each is None:
                stop.set()
            thread.join()
            if errors:
                raise errors[0]

    def _publish_until(
        self, opened: BlockingApp[App], stop: threading.Event, per_second: float, each: int | None
    ) -> None:
        batch = max(round(per_second * _TICK_S), 1)
        sent, total = 0, each * len(self.keys) if each is not None else None
        while not stop.wait(_TICK_S) and (total is None or sent < total):
            numbers = range(sent, sent + batch if total is None else min(sent + batch, total))
            events = [Moved(account=self.keys[i % len(self.keys)], n=i // len(self.keys)) for i in numbers]
            for event, answer in zip(events, opened.publish_many(self.ordered.moves, events), strict=True):
                assert isinstance(answer, Position), f"{event} was not stored: {answer}"
                self.confirmed[answer.partition, answer.entry_id] = event
            sent = numbers.stop

    # -- the end --------------------------------------------------------------------------------------------------

    def wait_until_done(self) -> None:
        """Until every group has acknowledged, or folded, all there is. Fails when nothing moves any more."""
        groups = [GROUP, VIEW, *([BESIDE] if self._beside else [])]
        with self.server.client() as client:
            seen: list[Any] = []

            def moves() -> bool:
                before, seen[:] = list(seen), [_position(client, stream, groups) for stream in self.streams]
                return before != seen

            try:
                while not all(_caught_up(client, stream, groups) for stream in self.streams):
                    wait_until(moves, STILL_S, every=0.1, what="every group is done, or goes on")
                    time.sleep(0.1)
            except AssertionError as error:
                raise AssertionError(f"{error}\n{self._under_way(client)}") from error

    def _under_way(self, client: redis.Redis) -> str:
        """What each group has not done, and who owns it."""
        found = []
        for stream in self.streams:
            for group in client.xinfo_groups(stream):
                owner = client.hgetall(f"{{{stream}}}:owner:{group['name'].decode()}")
                found.append(f"{stream} {group} {owner}")
        return "\n".join([*found, f"{client.time()} {client.hgetall('streamlib:workers')}"])

    def entries(self) -> list[list[Entry]]:
        """Per partition, all that lies in the topic."""
        with self.server.client() as client:
            found: list[Any] = [client.xrange(stream) for stream in self.streams]
        return [[_entry(entry_id, fields) for entry_id, fields in of_one] for of_one in found]

    def check(self) -> Emitted:
        """The oracle: nothing lost, nothing dead, effects in Redis exact and in order. What it finds of the emitted
        events it tells, and leaves to the caller."""
        entries = self.entries()
        moved = [entry for of_one in entries for entry in of_one if isinstance(entry.event, Moved)]
        stored = {
            (number, entry.entry_id): entry.event
            for number, of_one in enumerate(entries)
            for entry in of_one
            if isinstance(entry.event, Moved)
        }
        assert stored == self.confirmed, "what lies in the topic is what was confirmed"
        with self.server.client() as client:
            for group in (GROUP, BESIDE) if self._beside else (GROUP,):
                for number, stream in enumerate(self.streams):
                    ids = [one.event_id for one in entries[number] if isinstance(one.event, Moved)]
                    account = assert_nothing_lost(client, stream, group, ids)
                    assert account.settled, f"{group} of {stream}: {account}"
                    assert not account.dead, f"dead letters of {group} in {stream}: {sorted(account.dead)[:10]}"
                    assert not client.exists(f"{{{stream}}}:keys:{group}"), "nothing is noted about keys that go on"
            assert_no_stray_keys(client)
        assert len({entry.event_id for entry in moved}) == len(moved)
        self._check_view(entries)
        return self._check_emitted(entries)

    def _check_view(self, entries: Sequence[Sequence[Entry]]) -> None:
        """The read model equals what comes out of the streams as they are; its digests tell the order."""
        rows: dict[str, Account] = {}
        for of_one in entries:
            for entry in of_one:
                rows[entry.event.account] = fold(rows.get(entry.event.account), entry.event)
        with self.ordered.app.blocking() as opened:
            for key in self.keys:
                assert opened.call(self.ordered.accounts.get(key)) == rows[key]

    def _check_emitted(self, entries: Sequence[Sequence[Entry]]) -> Emitted:
        published: dict[str, int] = defaultdict(int)
        settled: dict[str, list[int]] = defaultdict(list)
        for of_one in entries:
            for entry in of_one:
                if isinstance(entry.event, Moved):
                    assert entry.event.n == published[entry.event.account], "the publisher kept the order"
                    published[entry.event.account] += 1
                else:
                    settled[entry.event.account].append(entry.event.n)
        return Emitted(
            out_of_order=sum(after < before for numbers in settled.values() for before, after in pairwise(numbers)),
            lost=sum(len(set(range(count)) - set(settled[key])) for key, count in published.items()),
            doubled=sum(len(numbers) - len(set(numbers)) for numbers in settled.values()),
        )


def _caught_up(client: redis.Redis, stream: str, groups: Sequence[str]) -> bool:
    last, *positions = _position(client, stream, groups)
    return all(position == (last, 0) for position in positions)


def _position(client: redis.Redis, stream: str, groups: Sequence[str]) -> list[Any]:
    """The last entry of the stream, and per group the last that it was given and how many it has not acknowledged."""
    with client.pipeline(transaction=True) as tx:
        tx.xinfo_stream(stream)
        tx.xinfo_groups(stream)
        last, rows = tx.execute()
    found = {row["name"].decode(): (row["last-delivered-id"], row["pending"]) for row in rows}
    return [last["last-generated-id"], *(found[name] for name in groups)]


def _entry(entry_id: bytes, fields: dict[bytes, bytes]) -> Entry:
    cls: type[Moved | Settled] = Moved if fields[b"type"] == b"Moved" else Settled
    event = msgspec.json.decode(fields[b"data"], type=cls)
    return Entry(entry_id.decode(), fields[b"id"].decode(), int(entry_id.partition(b"-")[0]), event)
