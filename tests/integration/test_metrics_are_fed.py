"""Every metric of the catalogue is fed by a worker at work, and every word of its closed labels comes up."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis

from streamlib import App, Breaker, Context, Event, ReadModel, Reject, Retry, RetryLater
from streamlib.message import Position
from streamlib.metrics.catalogue import DELIVERIES, METRICS, OUTCOMES, OWNERSHIP_CHANGES
from streamlib.metrics.worker import COMMANDS, OTHER
from streamlib.redisio.pauses import pause
from streamlib.worker import keeper, settling
from tests.helpers.delivering import Running, counted, running, settings
from tests.helpers.servers import connect
from tests.helpers.waiting import eventually

TOPIC = "orders"
CLOSED = {"delivery": DELIVERIES, "outcome": OUTCOMES, "change": OWNERSHIP_CHANGES, "command": (*COMMANDS, OTHER)}
"""Labels whose values this project chooses: each of them must come up."""
NOT_HERE = {"published_events": "outcome is the publisher's word, not the executor's: see test_publish_refusals"}


class Placed(Event):
    order_id: str


class Noted(Event):
    order_id: str


class Order(ReadModel):
    order_id: str


class Shop:
    """An app in which everything happens that a worker can count."""

    def __init__(self, url: str) -> None:
        self.app = App("shop", settings=settings(url, parked=3, concurrency=4, lease_ms=4_500))
        self.orders = self.app.topic(TOPIC, Placed, Noted, key="order_id")
        self.stolen, self.stuck = asyncio.Event(), asyncio.Event()
        self.seen: dict[str, set[str]] = defaultdict(set)
        """Closed label values, and "" for the metric itself, of every sample that was ever above 0."""
        quick = Retry(max_attempts=2, base=0.01, cap=0.01)
        view = self.app.projection("view", self.orders, Order, key="order_id")
        view.on(Placed)(_fold)

        @self.app.handler(self.orders, group="email", retry=quick)
        async def mail(event: Placed, ctx: Context) -> None:
            if event.order_id == "poison" or (event.order_id == "flaky" and ctx.attempt == 1):
                raise ValueError("broken")
            if event.order_id == "later" and ctx.attempt == 1:
                raise RetryLater(delay=3600)
            if event.order_id == "stolen":
                await self.stolen.wait()
            if event.order_id == "stuck" and not self.stuck.is_set():
                self.stuck.set()
                await asyncio.Event().wait()

        @self.app.handler(self.orders, group="ledger", ordering="key", on_dead="block")
        async def book(event: Placed) -> None:
            if event.order_id == "poison":
                raise Reject("never")

        @self.app.handler(self.orders, group="slow", rate="20/s")
        async def load(event: Placed) -> None: ...

        @self.app.handler(self.orders, group="down", breaker=Breaker(failures=1))
        async def call(event: Placed) -> None:
            if event.order_id == "poison":
                raise ConnectionError("down")

        @self.app.handler(self.orders, group="away")
        async def export(event: Placed) -> None: ...

    def note(self) -> None:
        for family in self.app.metrics.registry.collect():
            for sample in family.samples:
                name = sample.name.removeprefix("streamlib_").removesuffix("_total").removesuffix("_count")
                if sample.value > 0:
                    self.seen[name] |= {
                        "",
                        *(f"{label}={sample.labels[label]}" for label in CLOSED & sample.labels.keys()),
                    }

    def missing(self) -> list[str]:
        """What has not come up yet."""
        self.note()
        found = []
        for metric in [metric for metric in METRICS if metric.kind != "exporter"]:
            words = {f"{label}={word}" for label in metric.labels for word in CLOSED.get(label, ())}
            wanted = {""} | (words if metric.name not in NOT_HERE else set())
            found += [f"{metric.name} {word}".rstrip() for word in sorted(wanted - self.seen[metric.name])]
        return found

    async def publish(self, *names: str) -> list[Any]:
        return await self.orders.publish_many([Placed(order_id=name) for name in names])


def _fold(row: Order | None, event: Placed) -> Order:
    if event.order_id == "poison":
        raise ValueError("cannot be folded")
    return Order(order_id=event.order_id)


def _copy(client: Any, position: Position) -> None:
    """What a program that knows nothing of event ids does when it is not sure: send it again."""
    [(_, fields)] = client.xrange(TOPIC, position.entry_id, position.entry_id)
    client.xadd(TOPIC, fields)


async def _make_trouble(shop: Shop, client: Any, one: Running) -> None:
    """What needs a hand from outside while the worker runs."""
    [position] = await shop.publish("stolen")
    [(_, fields)] = client.xrange(TOPIC, position.entry_id, position.entry_id)
    key = "{orders}:idem:email:" + fields[b"id"].decode()
    await eventually(lambda: (client.get(key) or b"").startswith(b"c"), what="the event runs")
    client.set(key, "d", px=60_000)
    shop.stolen.set()
    await eventually(lambda: counted(shop.app, "lease_lost_total"))
    # What stands where dead letters go refuses the next one, until somebody removes it.
    kept = client.rename("{orders}:dead:email", "{orders}:dead:kept")
    client.set("{orders}:dead:email", "somebody's")
    await shop.publish("poison")
    await eventually(lambda: counted(shop.app, "ack_errors_total"))
    assert kept
    client.rename("{orders}:dead:kept", "{orders}:dead:email")
    client.xgroup_destroy(TOPIC, "slow")
    await eventually(lambda: counted(shop.app, "stream_lost_total", group="slow"))
    client.hset("{orders}:owner:ledger", mapping={"owner": "somebody", "epoch": "9999999999999", "deadline": "1"})
    await eventually(lambda: counted(shop.app, "ownership_changes_total", change="lost"))
    await shop.publish("stuck")
    await shop.stuck.wait()
    await eventually(lambda: counted(shop.app, "inflight_events", group="email"))
    shop.note()
    one.worker.cancel_handlers()


@contextmanager
def connected(url: str) -> Iterator[Any]:
    with connect(url) as client:
        yield client


async def test_every_metric_is_fed_by_a_worker_at_work(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "_GAUGES_EVERY_S", 0.2)
    monkeypatch.setattr(settling, "_REFUSED_AGAIN_S", 0.2)
    shop = Shop(redis_url)
    app = shop.app
    async with app:
        with connected(redis_url) as client:
            await pause(app.redis, app.keys, TOPIC, "away")
            [first, *_] = await shop.publish("fine", "flaky", "later", "poison", *["poison"] * 3)
            _copy(client, first)
            client.xreadgroup("ledger", "a dead worker", {TOPIC: ">"}, count=1)
            await shop.orders.publish(Noted(order_id="fine"))
            await shop.orders.publish(Placed(order_id="fine"), delay=3600)
            async with running(app) as one:
                await eventually(lambda: counted(app, "dead_letters_total", group="email"))
                await _make_trouble(shop, client, one)
                await shop.publish(*["fine"] * 50)

                def all_but_what_the_end_brings() -> bool:
                    assert shop.missing() == ["ownership_changes change=released"]
                    return True

                await eventually(all_but_what_the_end_brings, 30, ignore=(AssertionError,))
        shop.note()
    assert shop.missing() == []


async def test_an_idle_worker_counts_no_wait_as_a_slow_command(redis_url: str) -> None:
    """Reads that wait for work are no round trips: they would make every quiet worker look slow."""
    app = App("shop", settings=settings(redis_url, block_ms=2_000, lease_ms=30_000))
    orders = app.topic(TOPIC, Placed, key="order_id")
    done: list[str] = []

    @app.handler(orders, group="email")
    async def mail(event: Placed) -> None:
        done.append(event.order_id)

    @app.handler(orders, group="ledger", ordering="key")
    async def book(event: Placed) -> None:
        done.append(event.order_id)

    app.projection("view", orders, Order, key="order_id").on(Placed)(_fold)
    async with app:
        async with running(app):
            waits = redis.Redis.from_url(redis_url)
            await eventually(lambda: waits.info("clients")["blocked_clients"] == 3, what="all three wait for work")
            await orders.publish(Placed(order_id="o-1"))
            await eventually(lambda: len(done) == 2)
            waits.close()
        names = {
            sample.labels["command"]
            for family in app.metrics.registry.collect()
            for sample in family.samples
            if sample.name == "streamlib_redis_command_duration_seconds_count" and sample.value
        }
        assert {"claim", "settle", "deliver"} <= names <= {*COMMANDS, OTHER}
        heard: list[str] = []
        app.redis.observe = lambda name, seconds: heard.append(name)
        lane = app.redis.blocking(50)
        assert await lane.execute("XREAD", "BLOCK", 50, "STREAMS", TOPIC, "$") is None
        await lane.close()
        assert heard == []
        await app.redis.execute("PING")
        assert heard == ["ping"]


async def test_a_worker_that_ended_hears_no_commands_any_more(redis_url: str) -> None:
    app = App("shop", settings=settings(redis_url))
    orders = app.topic(TOPIC, Placed, key="order_id")

    @app.handler(orders, group="email")
    async def mail(event: Placed) -> None: ...

    async with app:
        async with running(app):
            await eventually(lambda: counted(app, "redis_command_duration_seconds_count"))
        before = counted(app, "redis_command_duration_seconds_count")
        await app.redis.execute("PING")
        assert counted(app, "redis_command_duration_seconds_count") == before


async def test_an_event_that_comes_again_has_its_size_counted_once_for_each_group(redis_url: str) -> None:
    app = App("shop", settings=settings(redis_url))
    orders = app.topic(TOPIC, Placed, key="order_id")

    @app.handler(orders, group="email", retry=Retry(base=0.01, cap=0.01))
    async def mail(event: Placed, ctx: Context) -> None:
        if ctx.attempt < 3:
            raise ValueError("not yet")

    app.projection("view", orders, Order, key="order_id").on(Placed)(_fold)
    async with app:
        await orders.publish(Placed(order_id="o-1"))
        [(_, fields)] = await app.redis.execute("XRANGE", TOPIC, "-", "+")
        async with running(app):
            await eventually(lambda: counted(app, "events_processed_total", outcome="ok") == 2)
        assert counted(app, "event_size_bytes_count", topic=TOPIC) == 2
        assert counted(app, "event_size_bytes_sum", topic=TOPIC) == 2 * sum(map(len, fields))
