"""What a handler sees: its context, the app's state, and nothing of the event before."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from streamlib import App, Context, Event, Retry
from streamlib.worker.executor import Executor
from tests.helpers.delivering import burst, dead_letters, outcomes, running, settings
from tests.helpers.waiting import eventually

seen_before: contextvars.ContextVar[Any] = contextvars.ContextVar("seen_before")


class Incomparable:
    def __eq__(self, other: object) -> bool:
        raise ValueError("neither true nor false")

    __hash__ = None  # type: ignore[assignment]


class Placed(Event):
    order_id: str


class Shipped(Event):
    order_id: str


class Ignored(Event):
    order_id: str


async def test_the_context_says_which_event_this_is(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    app = App("shop", settings=settings(redis_url))
    orders = app.topic("orders", Placed, key="order_id", partitions=4)
    contexts: list[Context] = []

    @app.handler(orders, group="g", retry=Retry(base=0.001))
    async def see(event: Placed, ctx: Context) -> None:
        contexts.append(ctx)
        ctx.log.warning("seen", extra={"mood": "good"})
        if ctx.attempt < 3:
            raise ValueError("again")

    async with app:
        position = await orders.publish(
            Placed(order_id="o-7"),
            id="e-1",
            headers={"tenant": "acme"},
            correlation_id="c-1",
            time_ms=1_700_000_000_000,
        )
        with caplog.at_level(logging.WARNING, logger="streamlib.handler"):
            await burst(app)
    assert [ctx.attempt for ctx in contexts] == [1, 2, 3]
    for ctx in contexts:
        assert (ctx.event_id, ctx.entry_id, ctx.partition) == ("e-1", position.entry_id, position.partition)
        assert (ctx.topic, ctx.group, ctx.key, ctx.time) == ("orders", "g", "o-7", 1_700_000_000_000)
        assert (ctx.headers, ctx.correlation_id) == ({"tenant": "acme"}, "c-1")
        assert ctx.idempotency_key == contexts[0].idempotency_key
    said = [record.__dict__ for record in caplog.records if record.message == "seen"]
    assert [(one["event_id"], one["attempt"], one["mood"]) for one in said] == [("e-1", n, "good") for n in (1, 2, 3)]


async def test_keys_of_two_groups_and_of_two_events_differ(redis_url: str) -> None:
    app = App("shop", settings=settings(redis_url))
    orders = app.topic("orders", Placed)
    keys: Counter[str] = Counter()

    @app.handler(orders, group="one")
    async def first(event: Placed, ctx: Context) -> None:
        keys[ctx.idempotency_key] += 1
        assert ctx.time == int(ctx.entry_id.partition("-")[0]), "without a time of its own: when it was stored"

    @app.handler(orders, group="two")
    def second(event: Placed, ctx: Context) -> None:
        keys[ctx.idempotency_key] += 1

    async with app:
        await orders.publish_many([Placed(order_id="o-1"), Placed(order_id="o-2")])
        await burst(app)
    assert outcomes(app, "one") == outcomes(app, "two") == {"ok": 2}
    assert sorted(keys.values()) == [1, 1, 1, 1]


async def test_state_is_there_for_handlers_and_torn_down_after_the_last(redis_url: str) -> None:
    app = App("shop", settings=settings(redis_url))
    orders = app.topic("orders", Placed)
    story: list[str] = []

    @app.lifespan
    async def resources(of: App) -> AsyncIterator[dict[str, Any]]:
        assert of is app
        story.append("up")
        yield {"say": story.append}
        story.append("down")

    @app.handler(orders, group="g")
    async def handle(event: Placed, ctx: Context) -> None:
        await asyncio.sleep(0.05)
        ctx.state["say"](event.order_id)

    @app.handler(orders, group="threads")
    def in_a_thread(event: Placed, ctx: Context) -> None:
        ctx.state["say"](event.order_id)

    async with app, running(app):
        await orders.publish(Placed(order_id="o-1"))
        await eventually(lambda: "up" in story)
        await orders.publish(Placed(order_id="o-1"))
        await eventually(lambda: len(story) >= 3)
    assert story == ["up", *["o-1"] * 4, "down"]


@pytest.mark.parametrize("value", [1, Incomparable()], ids=["plain", "incomparable"])
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_context_variables_of_one_event_are_not_seen_by_the_next(redis_url: str, kind: str, value: Any) -> None:
    app = App("shop", settings=settings(redis_url))
    orders = app.topic("orders", Placed)
    seen: list[object] = []

    def look_and_set() -> None:
        seen.append(seen_before.get(None))
        seen_before.set(value)

    if kind == "async":

        @app.handler(orders, group="g", concurrency=1)
        async def handle(event: Placed) -> None:
            look_and_set()
    else:

        @app.handler(orders, group="g", concurrency=1)
        def handle_in_thread(event: Placed) -> None:
            look_and_set()

    async with app:
        await orders.publish_many([Placed(order_id=f"o-{n}") for n in range(20)])
        await burst(app)
    assert seen == [None] * 20


async def test_a_handler_runs_up_to_its_own_bound_at_once(redis_url: str) -> None:
    app = App("shop", settings=settings(redis_url, concurrency=8))
    orders = app.topic("orders", Placed, Shipped)
    now, most, lock = Counter[str](), Counter[str](), threading.Lock()
    gate = asyncio.Event()

    def count(name: str, change: int) -> None:
        with lock:
            now[name] += change
            most[name] = max(most[name], now[name])

    @app.handler(orders, group="g", concurrency=3)
    async def bounded(event: Placed) -> None:
        count("bounded", 1)
        await gate.wait()
        count("bounded", -1)

    @app.handler(orders, group="g")
    async def default(event: Shipped) -> None:
        count("default", 1)
        await gate.wait()
        count("default", -1)

    @app.handler(orders, group="threads", concurrency=2)
    def in_threads(event: Placed) -> None:
        count("threads", 1)
        threading.Event().wait(0.01)
        count("threads", -1)

    async with app:
        for n in range(30):
            await orders.publish_many([Placed(order_id=f"o-{n}"), Shipped(order_id=f"o-{n}")])
        async with running(app):
            await eventually(lambda: now["bounded"] == 3 and now["default"] == 8)
            gate.set()
            await eventually(lambda: outcomes(app, "g").get("ok") == 60)
            await eventually(lambda: outcomes(app, "threads").get("ok") == 30)
    assert most == {"bounded": 3, "default": 8, "threads": 2}


async def test_handlers_of_one_group_and_one_name_each_get_their_own_type(redis_url: str) -> None:
    app = App("shop", settings=settings(redis_url))
    orders = app.topic("orders", Placed, Shipped, Ignored)
    seen: list[tuple[type, type]] = []

    def declare(cls: type[Event]) -> None:
        async def handle(event: Any) -> None:
            seen.append((cls, type(event)))

        handle.__annotations__["event"] = cls
        app.handler(orders, group="g")(handle)

    declare(Placed)
    declare(Shipped)
    async with app:
        await orders.publish_many([Placed(order_id="o-1"), Shipped(order_id="o-1"), Ignored(order_id="o-1")])
        await burst(app)
    assert sorted(seen, key=str) == [(Placed, Placed), (Shipped, Shipped)]
    assert outcomes(app, "g") == {"ok": 2, "skipped": 1}, "a type that no handler takes is skipped"


@pytest.mark.row(15)
async def test_a_bug_in_a_lane_ends_the_worker(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker must not look alive without its lanes."""
    app = App("shop", settings=settings(redis_url, drain_s=0.5))
    orders = app.topic("orders", Placed)

    @app.handler(orders, group="g", concurrency=1)
    async def handle(event: Placed) -> None: ...

    async def broken(self: Executor, works: object, on_end: object, follow: object) -> None:
        raise LookupError("a bug of ours")

    monkeypatch.setattr(Executor, "run", broken)
    async with app:
        await orders.publish(Placed(order_id="o-1"))
        with pytest.raises(LookupError, match="a bug of ours"):
            await asyncio.wait_for(app.worker().run(asyncio.Event()), 20)


async def test_a_second_copy_of_an_event_is_acked_without_running(redis_url: str, client: Any) -> None:
    app = App("shop", settings=settings(redis_url))
    orders = app.topic("orders", Placed)
    runs: Counter[str] = Counter()

    @app.handler(orders, group="g")
    async def handle(event: Placed) -> None:
        runs[event.order_id] += 1

    async with app:
        for copy in range(3):
            client.xadd("orders", {"id": "e-1", "type": "Placed", "v": "1", "key": "", "data": '{"order_id": "o-1"}'})
            if copy == 1:
                await burst(app)
        await burst(app)
    assert runs == {"o-1": 1}
    assert outcomes(app, "g") == {"ok": 1, "duplicate": 2}
    assert client.xpending("orders", "g")["pending"] == 0
    assert dead_letters(client, "orders", "g") == []


async def test_a_thread_that_hangs_keeps_its_own_event_and_no_other(redis_url: str, client: Any) -> None:
    """Threads go on with the next event by themselves: what has ended is recorded meanwhile, and what waits is not tied
    to the thread that hangs."""
    app = App("shop", settings=settings(redis_url))
    orders = app.topic("orders", Placed)
    release, started = threading.Event(), list[str]()

    @app.handler(orders, group="g", concurrency=2)
    def handle(event: Placed) -> None:
        started.append(event.order_id)
        if event.order_id == "o-100":
            release.wait(60)

    async with app:
        await orders.publish_many([Placed(order_id=f"o-{n}") for n in range(300)])
        try:
            async with running(app):
                await eventually(lambda: client.xpending("orders", "g")["pending"] == 1)
                assert len(started) == 300, "one hangs; all the others have run, and are acknowledged"
                release.set()
                await eventually(lambda: client.xpending("orders", "g")["pending"] == 0)
        finally:
            release.set()
    assert Counter(started) == Counter(f"o-{n}" for n in range(300))


async def test_handlers_that_never_wait_leave_turns_to_the_loop(redis_url: str) -> None:
    """Renewal's heartbeat, claims and settling need them, however many events are ready."""
    app = App("shop", settings=settings(redis_url))
    orders = app.topic("orders", Placed)
    handled, most = 0, 0

    @app.handler(orders, group="g", concurrency=1)
    async def handle(event: Placed) -> None:
        nonlocal handled
        handled += 1

    async with app:
        await orders.publish_many([Placed(order_id=f"o-{n}") for n in range(2_000)])
        async with running(app):
            while handled < 2_000:
                before = handled
                await asyncio.sleep(0)
                most = max(most, handled - before)
    assert 1 < most <= 128
