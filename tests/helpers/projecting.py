"""A topic of accounts and its view, how tests publish to it, and a process that projects it: `python -m`."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from decimal import Decimal
from functools import partial
from typing import Any, Self

import redis

from streamlib.codec import NativeCodec
from streamlib.event import Event, Registry
from streamlib.keys import Keys
from streamlib.message import Position
from streamlib.metrics.worker import WorkerMetrics
from streamlib.read_model import Exact, Ordered, Prefix, ReadModel
from streamlib.redisio.connection import RedisDoor
from streamlib.settings import IdempotencySettings, RedisSettings, Settings, WorkerSettings
from streamlib.topic import TopicSpec
from streamlib.worker.inflight import InFlight
from streamlib.worker.loops import end, repeat
from streamlib.worker.ownership import Ownership
from streamlib.worker.projection import OnError, Projection
from streamlib.worker.projector import Projector
from streamlib.worker.renewer import Renewer

TOPIC, VIEW = "accounts", "balances"


class Opened(Event):
    account: str
    owner: str
    limit: Decimal | None = None


class Moved(Event):
    account: str
    amount: Decimal


class Closed(Event):
    account: str


class Noted(Event):
    account: str
    text: str


class Balance(ReadModel):
    account: str
    owner: str
    balance: Decimal = Decimal(0)
    limit: Decimal | None = None
    moves: int = 0


class Projecting(Projector):
    """A projector with an ownership of its own, as a process of its own would have it."""

    def __init__(self, view: Projection[Any], door: RedisDoor, keys: Keys, settings: Settings, worker: str) -> None:
        metrics = WorkerMetrics()
        self._ownership = Ownership(door, keys, settings.worker, worker_id=worker, metrics=metrics)
        super().__init__(view, door, keys, settings, self._ownership, partial(metrics.group, view.topic.name))
        self._renewer = Renewer(
            door, InFlight(), settings.worker, consumer=worker, worker_id=worker, window_ms=600_000,
            loop=asyncio.get_running_loop(), on_error=_ignore, owned=self._ownership.renewals,
        )  # fmt: skip

    async def run(self, stop: asyncio.Event) -> None:
        beating = repeat("membership", self._ownership.run_once, heal=_nothing, on_error=_ignore)
        beats = asyncio.create_task(beating)
        pulse = asyncio.create_task(self._pulse())
        self._renewer.start()
        try:
            await super().run(stop)
        finally:
            await end([beats, pulse])
            await self._ownership.leave()
            await asyncio.to_thread(self._renewer.close)

    async def _pulse(self) -> None:
        while True:
            self._renewer.beat()
            await asyncio.sleep(0.1)


async def _nothing() -> None:
    """Nothing is healed here."""


def _ignore(kind: str, error: Exception) -> None:
    """The loops log their errors."""


class Rig:
    """The topic, its view, and what a test needs to publish to it and to project it here."""

    def __init__(
        self,
        url: str,
        *,
        partitions: int = 1,
        on_error: OnError = "dead-letter",
        lease_ms: int = 2_000,
        block_ms: int = 100,
        door: RedisDoor | None = None,
        **topic: Any,
    ) -> None:
        self.keys = Keys()
        self.settings = Settings(
            redis=RedisSettings(url=url, timeout_s=2.0, retry_s=5.0),
            worker=WorkerSettings(lease_ms=lease_ms, reclaim_ms=100, block_ms=block_ms),
            idempotency=IdempotencySettings(window_s=600),
        )
        self.door = door or RedisDoor.open(self.settings.redis)
        self.topic = TopicSpec(
            name=TOPIC,
            registry=Registry([Opened, Moved, Closed, Noted]),
            key="account",
            partitions=partitions,
            **topic,
        )
        self.view = Projection(
            VIEW,
            self.topic,
            Balance,
            key="account",
            indexes=INDEXES,
            on_error=on_error,
            keys=lambda: self.keys,
            redis=lambda: self.door,
        )
        self.view.on(Opened)(opened)
        self.view.on(Moved)(moved)
        self.view.on(Closed)(lambda row, event: None)

    def projector(self, worker: str = "w1") -> "Projecting":
        return Projecting(self.view, self.door, self.keys, self.settings, worker)

    def stream(self, partition: int = 0) -> str:
        return self.keys.stream(TOPIC, partition, self.topic.partitions).stream

    def publish(self, client: redis.Redis, event: Event, event_id: str | None = None) -> Position:
        return self.publish_many(client, [(event, event_id)])

    def publish_many(self, client: redis.Redis, events: Iterable[tuple[Event, str | None]]) -> Position:
        """Events and their ids (None: any), in one round trip; the last one's position."""
        sending = client.pipeline(transaction=False)
        for event, event_id in events:
            message = self.topic.message(event, event_id=event_id)
            partition, fields = self.topic.partition_of(message), self.topic.codec.write(message)
            sending.xadd(self.stream(partition), dict(zip(fields[::2], fields[1::2], strict=True)))
        return Position(TOPIC, partition, sending.execute()[-1].decode())

    def recomputed(self, client: redis.Redis, without: Iterable[bytes] = ()) -> dict[str, Balance]:
        """The view as a fold over the whole stream, each event id once (none of `without`), without streamlib's
        projector."""
        rows: dict[str, Balance] = {}
        seen = set(without)
        codec = NativeCodec()
        for partition in range(self.topic.partitions):
            entries: Any = client.xrange(self.stream(partition))
            for entry_id, fields in entries:
                if fields[b"id"] in seen:
                    continue
                seen.add(fields[b"id"])
                message = codec.read(entry_id.decode(), [part for pair in fields.items() for part in pair])
                event: Any = self.topic.decode(message)
                fold = self.view.folds.get(type(event))
                if fold is not None:
                    row = fold(rows.get(event.account), event)
                    if row is None:
                        rows.pop(event.account, None)
                    else:
                        rows[event.account] = row
        return rows

    async def stored(self, client: redis.Redis) -> dict[str, Balance]:
        """The view's rows, found by looking at every key."""
        row_ids = [
            key.decode().rpartition(":row:")[2] for key in client.scan_iter(match=f"*:view:{VIEW}:1:row:*", count=1000)
        ]
        found = await self.view.get_many(row_ids)
        return {row_id: row for row_id, row in zip(row_ids, found, strict=True) if row is not None}

    @asynccontextmanager
    async def running(self, *workers: str) -> AsyncIterator[list[Projecting]]:
        """Projectors of these workers in this loop, stopped at the end."""
        projectors = [self.projector(worker) for worker in workers or ("w1",)]
        async with stopping(*projectors):
            yield projectors

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.door.close()


@asynccontextmanager
async def stopping(*projectors: Projector) -> AsyncIterator[None]:
    """Run projectors in this loop, and stop them at the end."""
    stop = asyncio.Event()
    tasks = [asyncio.create_task(projector.run(stop)) for projector in projectors]
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*tasks)


INDEXES = (Exact("owner"), Ordered("balance"), Prefix("account"))


def opened(row: Balance | None, event: Opened) -> Balance:
    return Balance(account=event.account, owner=event.owner, limit=event.limit)


def moved(row: Balance | None, event: Moved) -> Balance:
    if row is None:
        raise ValueError(f"no account {event.account}")
    return Balance(
        account=row.account,
        owner=row.owner,
        limit=row.limit,
        balance=row.balance + event.amount,
        moves=row.moves + 1,
    )


async def project(url: str, worker: str, lease_ms: int, partitions: int) -> None:
    """Project in this process until SIGTERM; prints "owns" when it has taken every partition."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with Rig(url, lease_ms=lease_ms, partitions=partitions) as rig:
        projector = rig.projector(worker)
        running = asyncio.create_task(projector.run(stop))
        while len(projector.owned) < partitions and not running.done():
            await asyncio.sleep(0.01)
        print("owns", flush=True)
        await running


if __name__ == "__main__":
    asyncio.run(project(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
