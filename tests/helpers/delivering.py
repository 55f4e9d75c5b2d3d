"""Deliveries made by hand, script by script, and workers inside the test's own process."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import redis

from streamlib import App, NativeCodec, Settings
from streamlib.keys import Keys
from streamlib.redisio.claims import claim
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.delivery import Delivery
from streamlib.redisio.large_entries import Room
from streamlib.redisio.marks import Marks
from streamlib.redisio.reader import Reader
from streamlib.redisio.settler import Settled, Settlement, settle
from streamlib.settings import RedisSettings, WorkerSettings
from streamlib.worker.runner import Worker
from tests.helpers.marks import COMPACT, IDEMPOTENCY, is_member
from tests.helpers.publishing import open_door
from tests.helpers.servers import connect

GROUP = "email"
STREAM = "orders"
LEASE_MS = 10_000
WINDOW_MS = 60_000


class Partition:
    """One partition stream with one group, worked on by workers that exist in name only."""

    def __init__(self, door: RedisDoor, client: redis.Redis, group: str = GROUP, *, window_ms: int = WINDOW_MS) -> None:
        self.door = door
        self.client: Any = client
        self.group = group
        self.window_ms = window_ms
        self.keys = Keys().stream(STREAM, 0, 1)
        self.again = self.keys.again(group)
        self.marks: dict[str, Marks] | None = {} if COMPACT else None
        for stream in (self.keys.stream, self.again):
            client.xgroup_create(stream, group, "0", mkstream=True)

    def add(self, event_id: str, data: str = "{}", *, entry_id: str = "*") -> str:
        """Store an event as any producer might; its entry id."""
        fields: Any = {"id": event_id, "type": "Placed", "v": "1", "key": "", "data": data}
        added: Any = self.client.xadd(self.keys.stream, fields, id=entry_id)
        return str(added.decode())

    async def take(self, worker: str = "w1", count: int = 500) -> list[Delivery]:
        """What a read by this worker brings: returning events first."""
        reader = Reader({0: self.keys}, self.group, worker, NativeCodec())
        return [one.delivery for one in await reader.read(self.door, count=count, block_ms=None)]

    async def take_over(self, worker: str, *, idle_ms: int = 0, count: int = 500) -> list[Delivery]:
        """What a reclaim by this worker brings, up to `count` entries of either stream."""
        reader = Reader({0: self.keys}, self.group, worker, NativeCodec())
        found: list[Delivery] = []
        for again in (True, False):
            _, received, _ = await reader.take_over(
                self.door, 0, again, idle_ms=idle_ms, cursor="0-0", count=count, room=Room()
            )
            found += (one.delivery for one in received)
        return found

    async def claim(
        self, deliveries: Sequence[Delivery], worker: str = "w1", *, lease_ms: int = LEASE_MS, suspects: bool = False
    ) -> list[tuple[str, int]]:
        """The verdicts' names and their numbers."""
        answers = await claim(
            self.door,
            deliveries,
            group=self.group,
            worker_id=worker,
            lease_ms=lease_ms,
            window_ms=self.window_ms,
            take_suspects=suspects,
            marks=self.marks_of(worker),
        )
        return [(answer.verdict.name, answer.number) for answer in answers]

    async def held(self, *event_ids: str, worker: str = "w1", lease_ms: int = LEASE_MS) -> list[Delivery]:
        """Store these events and let the worker read and claim them."""
        for event_id in event_ids:
            self.add(event_id)
        deliveries = await self.take(worker)
        assert {name for name, _ in await self.claim(deliveries, worker, lease_ms=lease_ms)} == {"RUN"}
        return deliveries

    async def settle(
        self, settlements: Sequence[Settlement], worker: str = "w1", *, resent: bool = False
    ) -> list[bool]:
        answers = await settle(
            self.door, settlements, group=self.group, worker_id=worker, window_ms=self.window_ms, resent=resent,
            marks=self.marks_of(worker),
        )  # fmt: skip
        return [answer is not Settled.LOST for answer in answers]

    def marks_of(self, worker: str) -> Marks | None:
        """Where this worker believes done marks to be; None where they are keys."""
        return self.marks.setdefault(worker, Marks()) if self.marks is not None else None

    def state(self, event_id: str) -> str:
        """The idempotency key: "" for none, "d", "x", "r", or "c <worker>:<entry ref>" without its deadline."""
        raw: Any = self.client.get(self.keys.idem(self.group, event_id))
        if raw is None and is_member(self.client, STREAM, self.group, event_id):
            return "d"
        text = (raw or b"").decode()
        return f"c {text.partition(':')[2]}" if text.startswith("c") else text

    def expire(self, event_id: str) -> None:
        """Let the claim's deadline lie in the past, as after a lease without renewal."""
        key = self.keys.idem(self.group, event_id)
        raw: Any = self.client.get(key)
        self.client.set(key, b"c1:" + raw.partition(b":")[2], keepttl=True)

    def pending(self) -> dict[str, tuple[str, int]]:
        """Per pending entry ("a" before those of `again`): its consumer and its delivery count."""
        found: dict[str, tuple[str, int]] = {}
        for mark, stream in (("", self.keys.stream), ("a", self.again)):
            rows: Any = self.client.xpending_range(stream, self.group, "-", "+", 10_000)
            for row in rows:
                ref = mark + row["message_id"].decode()
                found[ref] = (row["consumer"].decode(), row["times_delivered"])
        return found

    def everything(self) -> dict[bytes, Any]:
        """Every key with its serialized value: equal before and after means that nothing was written; the plan of done
        marks aside."""
        keys: Any = self.client.keys()
        return {key: self.client.dump(key) for key in keys if key.decode() != self.keys.marks(self.group)}


@asynccontextmanager
async def a_partition(url: str) -> AsyncIterator[Partition]:
    async with open_door(url) as door:
        with connect(url) as client:
            yield Partition(door, client)


def settings(url: str, *, sections: dict[str, Any] | None = None, **worker: Any) -> Settings:
    """Settings for quick tests: short leases and reads; `worker` and whole `sections` override."""
    quick = {"lease_ms": 1_500, "block_ms": 50, "drain_s": 5.0, "concurrency": 8, **worker}
    return Settings(
        **{
            "redis": RedisSettings(url=url),
            "idempotency": IDEMPOTENCY,
            "worker": WorkerSettings(**quick),
            **(sections or {}),
        }
    )


class Running:
    """A worker at work in a task of this loop."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._stop = asyncio.Event()
        self._task = asyncio.create_task(worker.run(self._stop))

    @property
    def ended(self) -> bool:
        return self._task.done()

    def ask_to_stop(self) -> None:
        self._stop.set()

    async def stop(self) -> int:
        """Drain; the exit code. Raises what the worker raised."""
        self._stop.set()
        return await asyncio.wait_for(asyncio.shield(self._task), 30)


@asynccontextmanager
async def running(app: App, groups: Sequence[str] | None = None) -> AsyncIterator[Running]:
    """A worker of an open app that runs meanwhile; at the end it must leave cleanly, unless the test stopped it."""
    one = Running(app.worker(groups))
    try:
        yield one
    except BaseException:
        one.ask_to_stop()
        one.worker.cancel_handlers()
        with contextlib.suppress(Exception):  # the test's own failure counts
            await one.stop()
        raise
    if not one.ended:
        assert await one.stop() == 0


async def burst(app: App, groups: Sequence[str] | None = None, *, timeout_s: float = 30) -> int:
    """Let a worker of an open app do all there is to do; the exit code."""
    return await asyncio.wait_for(app.worker(groups).run(asyncio.Event(), burst=True), timeout_s)


def counted(app: App, metric: str, **labels: str) -> float:
    """The sum of a counter's samples with these labels."""
    return sum(
        sample.value
        for family in app.metrics.registry.collect()
        for sample in family.samples
        if sample.name == f"streamlib_{metric}" and labels.items() <= sample.labels.items()
    )


def outcomes(app: App, group: str) -> dict[str, int]:
    """How often each outcome was counted for a group, without those that never were."""
    found: Counter[str] = Counter()
    for family in app.metrics.registry.collect():
        for sample in family.samples:
            if sample.name == "streamlib_events_processed_total" and sample.labels["group"] == group:
                found[sample.labels["outcome"]] += int(sample.value)
    return {outcome: n for outcome, n in found.items() if n}


def dead_letters(client: redis.Redis, stream: str, group: str) -> list[dict[str, str]]:
    """The dead letters of a group, fields by name; bytes that are no UTF-8 as surrogate escapes."""
    entries: Any = client.xrange("{" + stream + "}:dead:" + group)
    return [
        {
            name.decode(errors="surrogateescape"): value.decode(errors="surrogateescape")
            for name, value in fields.items()
        }
        for _, fields in entries
    ]
