"""A partition whose server does not answer holds up its own events only: the others are claimed, settled, reclaimed."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, Literal

import pytest
import redis
import redis.exceptions

from streamlib import App, Context, Event, Retry
from streamlib.redisio.connection import RedisDoor
from streamlib.settings import RedisSettings
from tests.helpers.delivering import running, settings
from tests.helpers.oracle import ledger
from tests.helpers.waiting import eventually

GROUP = "email"
STREAMS = ["orders.0", "orders.1"]


class Placed(Event):
    n: int


class Named(Event):
    name: str


class Fault:
    """Scripts and commands of one partition that hang or fail while it is on; nothing else is touched."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hangs = True
        self.streams = ["orders.1"]
        self.hit = 0
        self._over = asyncio.Event()
        self._over.set()
        execute = RedisDoor.execute

        async def faulty(door: RedisDoor, *command: Any) -> Any:
            words = [arg.decode() if isinstance(arg, bytes) else str(arg) for arg in command[:6]]
            touched = any(stream in word for stream in self.streams for word in words)
            if touched and not self._over.is_set():
                self.hit += 1
                if self.hangs:
                    await self._over.wait()
                raise redis.exceptions.ConnectionError("the node is gone")
            return await execute(door, *command)

        monkeypatch.setattr(RedisDoor, "execute", faulty)

    def begin(self, *, hangs: bool) -> None:
        self.hangs = hangs
        self._over.clear()

    def end(self) -> None:
        self._over.set()


@pytest.fixture
async def fault(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Fault]:
    found = Fault(monkeypatch)
    yield found
    found.end()


def event_ids(app: App, partition: int, count: int) -> list[str]:
    """Ids of events that lie in this partition."""
    spec = app.topics["orders"].spec
    ids: list[str] = []
    for n in range(10_000):
        if len(ids) < count and spec.partition_of(spec.message(Placed(n=0), event_id=f"e-{n}")) == partition:
            ids.append(f"e-{n}")
    return ids


@pytest.mark.row(56)
@pytest.mark.parametrize("hangs", [True, False], ids=["hangs", "refuses"])
async def test_other_partitions_go_on(redis_url: str, client: redis.Redis, fault: Fault, hangs: bool) -> None:
    app = App("lost", settings=settings(redis_url, concurrency=4))
    orders = app.topic("orders", Placed, partitions=2)
    runs: Counter[str] = Counter()

    @app.handler(orders, group=GROUP, retry=Retry(base=0.02, cap=0.05))
    async def send(event: Placed, ctx: Context) -> None:
        runs[ctx.event_id] += 1
        if ctx.attempt == 1 and event.n % 10 == 0:
            raise ValueError("comes again by the promoter")

    async with app:
        lost, kept = event_ids(app, 1, 100), event_ids(app, 0, 100)
        async with running(app):
            for n in range(100):  # both partitions alike are full of work when the fault begins
                await orders.publish(Placed(n=n), id=lost[n])
                if n == 40:
                    fault.begin(hangs=hangs)
                    break
            await asyncio.gather(*(orders.publish(Placed(n=n), id=one) for n, one in enumerate(kept)))
            await eventually(
                lambda: ledger(client, "orders.0", GROUP, kept).settled, what="the other partition is done meanwhile"
            )
            assert fault.hit > 0
            fault.end()
            await asyncio.gather(*(orders.publish(Placed(n=n), id=lost[n]) for n in range(41, 100)))
            await eventually(lambda: ledger(client, STREAMS, GROUP, [*lost, *kept]).settled)
    again = {one for ids in (lost, kept) for one in ids[::10]}
    assert runs == {one: 2 if one in again else 1 for one in (*lost, *kept)}


@pytest.mark.row(56)
@pytest.mark.parametrize("ordering", ["none", "key"])
async def test_a_worker_is_ready_while_any_partition_is_in_reach_and_not_when_none_is(
    redis_url: str, client: redis.Redis, fault: Fault, monkeypatch: pytest.MonkeyPatch, ordering: Literal["none", "key"]
) -> None:
    """All that there is to claim lies on the lost node; the other one has nothing to do, and would."""
    monkeypatch.setattr(RedisDoor, "one_node", False)  # as on a cluster: partitions are read one by one
    quick = RedisSettings(url=redis_url, timeout_s=0.3)
    app = App("lost", settings=settings("", sections={"redis": quick}))
    orders = app.topic("orders", Named, key="name", partitions=2)

    @app.handler(orders, group=GROUP, ordering=ordering)
    async def send(event: Named) -> None: ...

    def add(partition: int, event_id: str) -> None:  # as another program does, which reaches it
        data = {"id": event_id, "type": "Named", "v": "1", "key": "a", "data": '{"name": "a"}'}
        client.xadd(f"orders.{partition}", data)  # type: ignore[arg-type]

    def owned() -> int:
        return client.exists(*(f"{{{stream}}}:owner:{GROUP}" for stream in STREAMS))

    async with app, running(app) as one:
        await eventually(lambda: one.worker.readiness()[0] and (ordering == "none" or owned() == len(STREAMS)))
        fault.begin(hangs=False)
        add(1, "e-1")
        began = time.monotonic()
        while time.monotonic() - began < 1.5:  # three times as long as it takes to say that nothing is answered
            await asyncio.sleep(0.05)
            assert one.worker.readiness() == (True, "ready")
        assert fault.hit > 0
        fault.streams = STREAMS
        add(0, "e-0")
        await eventually(lambda: one.worker.readiness() == (False, f"{GROUP}: no answer from Redis"))
        fault.end()
        await eventually(lambda: one.worker.readiness()[0])
        await eventually(lambda: ledger(client, STREAMS, GROUP, ["e-0", "e-1"]).settled)


async def test_more_than_one_partition_fills_is_not_read_ahead(
    redis_url: str, client: redis.Redis, fault: Fault
) -> None:
    """Reads of the lost partition go on here, as on a server that is full: what they bring is bounded."""
    app = App("lost", settings=settings(redis_url, concurrency=2, batch=50))
    orders = app.topic("orders", Placed, partitions=2)

    @app.handler(orders, group=GROUP)
    async def send(event: Placed) -> None:
        await asyncio.sleep(0)

    async with app:
        ids = event_ids(app, 1, 1_000)
        await asyncio.gather(*(orders.publish(Placed(n=n), id=one) for n, one in enumerate(ids)))
        fault.begin(hangs=True)
        async with running(app):
            await eventually(lambda: len(ledger(client, STREAMS, GROUP, ids).pending) > 0)
            await asyncio.sleep(0.5)  # time enough to read all of it
            assert len(ledger(client, STREAMS, GROUP, ids).pending) <= 200
            fault.end()
            await eventually(lambda: ledger(client, STREAMS, GROUP, ids).settled)
