"""Ordered groups under the pytest plugin: retries come at once, what stands still does not keep a drain from ending."""

from typing import Any

from streamlib import App, Context, Event, Retry, RetryLater, Settings
from streamlib.redisio.key_states import resume, skip
from streamlib.testing import AppFactory, Halted, Harness, Parked, Retried
from streamlib.testing.plugin import streamlib_app, streamlib_server

__all__ = ["streamlib_app", "streamlib_server"]

HOURS = Retry(max_attempts=3, base=3600, cap=36_000)


class Placed(Event):
    order_id: str


class Shipped(Event):
    order_id: str


def new_app() -> App:
    return App("shop", settings=Settings())


async def test_ordered_groups_keep_their_order_and_their_retries_do_not_wait(streamlib_app: AppFactory) -> None:
    app = new_app()
    orders = app.topic("orders", Placed, Shipped, key="order_id", partitions=2)
    runs: list[tuple[str, str, int]] = []

    @app.handler(orders, group="ledger", ordering="key", retry=HOURS)
    async def book(event: Placed | Shipped, ctx: Context) -> None:
        runs.append((event.order_id, type(event).__name__, ctx.attempt))
        if isinstance(event, Placed) and event.order_id == "o-1" and ctx.attempt < 3:
            raise RetryLater(delay=86_400, reason="closed") if ctx.attempt == 1 else ConnectionError("no route")

    async with streamlib_app(app) as harness:
        for name in ("o-1", "o-2"):
            await harness.publish(orders, Placed(order_id=name), id=name)
            await harness.publish(orders, Shipped(order_id=name))
        await harness.drain()
        of_first = [run[1:] for run in runs if run[0] == "o-1"]
        assert of_first == [("Placed", 1), ("Placed", 2), ("Placed", 3), ("Shipped", 1)]
        assert [run[1:] for run in runs if run[0] == "o-2"] == [("Placed", 1), ("Shipped", 1)]
        assert harness.retried == [
            Retried("orders", "ledger", "o-1", "Placed", 1, "RetryLater: closed"),
            Retried("orders", "ledger", "o-1", "Placed", 2, "ConnectionError: no route"),
        ]
        assert len(harness.handled) == 4


async def test_a_halted_key_does_not_keep_a_drain_from_ending_and_goes_on_when_told(streamlib_app: AppFactory) -> None:
    app = new_app()
    orders = app.topic("orders", Placed, Shipped, key="order_id")
    poisoned = True

    @app.handler(orders, group="ledger", ordering="key", on_dead="block", retry=Retry(max_attempts=2))
    async def book(event: Placed | Shipped) -> None:
        if poisoned and isinstance(event, Placed) and event.order_id != "good":
            raise ValueError("poison")

    async def resume_or_skip(verb: Any, key: str, **options: Any) -> bool:
        return bool(await verb(app.redis, app.keys.stream("orders", 0, 1), "ledger", key, **options))

    async with streamlib_app(app) as harness:
        for name in ("bad", "good", "worse"):
            await harness.publish(orders, Placed(order_id=name), id=name)
            await harness.publish(orders, Shipped(order_id=name), id=f"{name} shipped")
        await harness.drain()
        error = "ValueError: poison"
        assert harness.halted == [Halted("orders", "ledger", name, name, error) for name in ("bad", "worse")]
        assert _ids(harness) == ["good", "good shipped"]
        assert [(one.event_id, one.attempt) for one in harness.retried] == [("bad", 1), ("worse", 1)]
        poisoned = False
        assert await resume_or_skip(resume, "bad")
        assert await resume_or_skip(skip, "worse", window_ms=60_000)
        await harness.drain()
        assert harness.halted == []
        assert _ids(harness) == ["bad", "bad shipped", "good", "good shipped", "worse shipped"]
        assert [(one.event_id, one.error) for one in harness.dead] == [("worse", error)]


async def test_a_parked_event_of_an_ordered_group_does_not_keep_a_drain_from_ending(streamlib_app: AppFactory) -> None:
    app = new_app()
    orders = app.topic("orders", Placed, key="order_id")

    @app.handler(orders, group="ledger", ordering="key")
    async def book(event: Placed) -> None: ...

    async with streamlib_app(app) as harness:
        await app.redis.execute(
            "XADD", "orders", "*", "id", "e-9", "type", "Returned", "v", "1", "key", "o-1", "data", "{}"
        )
        await harness.publish(orders, Placed(order_id="o-1"), id="behind")
        await harness.publish(orders, Placed(order_id="o-2"), id="beside")
        await harness.drain()
        assert harness.parked == [Parked("orders", "ledger", "e-9")]
        assert (_ids(harness), harness.halted) == (["beside"], [])


def _ids(harness: Harness) -> list[str]:
    return sorted(one.event_id for one in harness.handled)
