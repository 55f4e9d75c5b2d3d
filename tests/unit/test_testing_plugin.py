"""The pytest plugin for users: their app, the real worker, a Redis inside the process."""

import asyncio
import os
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from streamlib import (
    App,
    BatchContext,
    Breaker,
    Context,
    Event,
    Exact,
    NativeCodec,
    Prefix,
    ReadModel,
    Reject,
    Retry,
    RetryLater,
    Settings,
)
from streamlib.settings import RedisSettings
from streamlib.testing import AppFactory, Dead, FakeServer, Handled, Parked, Retried, run_app
from streamlib.testing.plugin import streamlib_app, streamlib_server
from tests.helpers.source_tree import ROOT

__all__ = ["streamlib_app", "streamlib_server"]

HOURS = Retry(max_attempts=3, base=3600, cap=36_000)


class Placed(Event):
    order_id: str
    total: Decimal = Decimal(1)


class Shipped(Event):
    order_id: str


class Order(ReadModel):
    order_id: str
    total: Decimal
    shipped: bool = False


def new_app(**settings: Any) -> App:
    return App("shop", settings=Settings(**settings))


async def test_events_reach_every_group_that_handles_their_type(streamlib_app: AppFactory) -> None:
    app = new_app()
    orders = app.topic("orders", Placed, Shipped, key="order_id", partitions=3)
    seen: list[tuple[str, str]] = []

    @app.handler(orders, group="email")
    async def mail(event: Placed) -> None:
        seen.append(("email", event.order_id))

    @app.handler(orders, group="legacy")
    def audit(event: Placed | Shipped, ctx: Context) -> None:
        seen.append((ctx.group, event.order_id))

    async with streamlib_app(app) as harness:
        first = await harness.publish(orders, Placed(order_id="o-1"), id="e-1")
        await harness.publish_many(orders, [Shipped(order_id="o-2")])
        assert harness.handled == [], "nothing runs before drain"
        await harness.drain()
        assert first.topic == "orders"
        assert sorted(seen) == [("email", "o-1"), ("legacy", "o-1"), ("legacy", "o-2")]
        assert Handled("orders", "email", "e-1", "Placed") in harness.handled
        assert sorted((one.group, one.type) for one in harness.handled) == [
            ("email", "Placed"),
            ("legacy", "Placed"),
            ("legacy", "Shipped"),
        ]
        assert (harness.retried, harness.dead, harness.parked) == ([], [], [])


async def test_retries_do_not_wait_and_tell_their_errors(streamlib_app: AppFactory) -> None:
    app = new_app()
    orders = app.topic("orders", Placed)
    attempts: list[int] = []

    @app.handler(orders, group="email", retry=HOURS)
    async def mail(event: Placed, ctx: Context) -> None:
        attempts.append(ctx.attempt)
        if ctx.attempt == 1:
            raise ConnectionError("no route")
        if ctx.attempt == 2:
            raise RetryLater(delay=86_400, reason="mailbox full")

    async with streamlib_app(app) as harness:
        await harness.publish(orders, Placed(order_id="o-1"), id="e-1")
        await harness.drain()
        assert attempts == [1, 2, 3]
        assert harness.retried == [
            Retried("orders", "email", "e-1", "Placed", 1, "ConnectionError: no route"),
            Retried("orders", "email", "e-1", "Placed", 2, "RetryLater: mailbox full"),
        ]
        assert harness.handled == [Handled("orders", "email", "e-1", "Placed")]


async def test_dead_letters_are_told_apart_by_reason(streamlib_app: AppFactory) -> None:
    app = new_app()
    orders = app.topic("orders", Placed)

    @app.handler(orders, group="email", retry=HOURS)
    async def mail(event: Placed) -> None:
        if event.order_id == "rejected":
            raise Reject("negative total")
        raise ValueError("broken")

    async with streamlib_app(app) as harness:
        await harness.publish(orders, Placed(order_id="rejected"), id="e-1")
        await harness.publish(orders, Placed(order_id="failing"), id="e-2")
        garbage = await app.redis.execute("XADD", "orders", "*", "hello", "world")
        await harness.drain()
        dead = {letter.reason: letter for letter in harness.dead}
        assert dead["rejected"] == Dead("orders", "email", "e-1", "Placed", "rejected", "Reject: negative total", 1)
        assert dead["max_attempts"] == Dead("orders", "email", "e-2", "Placed", "max_attempts", "ValueError: broken", 3)
        assert (dead["decode"].event_id, dead["decode"].type) == (garbage.decode(), "")
        assert [one.attempt for one in harness.retried] == [1, 2], "the last run is the dead letter's"
        assert harness.handled == []


async def test_batch_handlers_and_their_marks(streamlib_app: AppFactory) -> None:
    app = new_app()
    orders = app.topic("orders", Placed)
    sizes: list[int] = []

    @app.handler(orders, group="warehouse", retry=HOURS)
    async def load(events: list[Placed], ctx: BatchContext) -> None:
        sizes.append(len(events))
        for event in events:
            if event.order_id == "bad":
                ctx.reject(event, "no such order")
            elif event.order_id == "later" and ctx.of(event).attempt == 1:
                ctx.retry(event)

    async with streamlib_app(app) as harness:
        for name in ("good", "bad", "later"):
            await harness.publish(orders, Placed(order_id=name), id=name)
        await harness.drain()
        assert max(sizes) > 1
        assert {one.event_id for one in harness.handled} == {"good", "later"}
        assert [(one.event_id, one.attempt) for one in harness.retried] == [("later", 1)]
        assert [(one.event_id, one.error) for one in harness.dead] == [("bad", "Reject: no such order")]


async def test_views_are_kept_and_can_be_read_whole(streamlib_app: AppFactory) -> None:
    app = new_app(redis=RedisSettings(namespace="shop"))
    orders = app.topic("orders", Placed, Shipped, key="order_id", partitions=4)
    view = app.projection("order-view", orders, Order, key="order_id", indexes=[Exact("shipped"), Prefix("order_id")])

    @view.on(Placed)
    def _(row: Order | None, event: Placed) -> Order:
        return Order(order_id=event.order_id, total=event.total)

    @view.on(Shipped)
    def _(row: Order | None, event: Shipped) -> Order | None:
        return row and Order(order_id=row.order_id, total=row.total, shipped=True)

    async with streamlib_app(app) as harness:
        for number in range(5):
            await harness.publish(orders, Placed(order_id=f"o*{number}", total=Decimal("1.50")))
        position = await harness.publish(orders, Shipped(order_id="o*3"))
        await harness.drain()
        await view.wait_for(position, timeout=0)
        rows = await harness.rows(view)
        assert [row.order_id for row in rows] == [f"o*{number}" for number in range(5)]
        assert [row.order_id for row in rows if row.shipped] == ["o*3"]
        assert await view.find(shipped=True) == [rows[3]]
        assert {one.group for one in harness.handled} == {"order-view"}


async def test_draining_again_goes_on_where_the_last_one_ended(streamlib_app: AppFactory) -> None:
    app = new_app()
    orders = app.topic("orders", Placed)
    mails = app.topic("mails", Shipped)
    starts: list[str] = []

    @app.lifespan
    async def resources(app: App) -> AsyncIterator[dict[str, Any]]:
        starts.append("start")
        yield {"sender": "shop"}
        starts.append("end")

    @app.handler(orders, group="email")
    async def mail(event: Placed, ctx: Context) -> None:
        assert ctx.state["sender"] == "shop"
        ctx.publish(mails, Shipped(order_id=event.order_id))

    @app.handler(mails, group="out")
    async def send(event: Shipped) -> None: ...

    async with streamlib_app(app) as harness:
        for number in (1, 2):
            await harness.publish(orders, Placed(order_id=f"o-{number}"))
            await harness.drain()
            assert [one.topic for one in harness.handled] == ["orders"] * number + ["mails"] * number
    assert starts == ["start", "end"] * 2


async def test_parked_events_do_not_keep_a_drain_from_ending(streamlib_app: AppFactory) -> None:
    app = new_app()
    orders = app.topic("orders", Placed)

    @app.handler(orders, group="email")
    async def mail(event: Placed) -> None: ...

    async with streamlib_app(app) as harness:
        await app.redis.execute(
            "XADD", "orders", "*", "id", "e-9", "type", "Returned", "v", "1", "key", "", "data", "{}"
        )
        await harness.drain()
        assert harness.parked == [Parked("orders", "email", "e-9")]
        assert (harness.handled, harness.dead) == ([], [])


async def test_a_drain_that_does_not_end_says_what_is_left(streamlib_app: AppFactory) -> None:
    app = new_app()
    orders = app.topic("orders", Placed)

    @app.handler(orders, group="email", retry=Retry(max_attempts=1_000_000, base=0))
    async def mail(event: Placed) -> None:
        raise ValueError("never")

    async with streamlib_app(app) as harness:
        await harness.publish(orders, Placed(order_id="o-1"))
        with pytest.raises(AssertionError, match=r"not drained within 0\.3 s: orders/email has "):
            await harness.drain(timeout=0.3)
        assert harness.retried


async def test_a_breaker_stays_closed_as_its_pauses_would_be_waited_for(streamlib_app: AppFactory) -> None:
    app = new_app()
    orders = app.topic("orders", Placed)

    @app.handler(orders, group="email", retry=HOURS, breaker=Breaker(failures=1, pause=3600, cap=3600))
    async def mail(event: Placed) -> None:
        raise ConnectionError("down")

    async with streamlib_app(app) as harness:
        await harness.publish_many(orders, [Placed(order_id=f"o-{n}") for n in range(5)])
        await harness.drain()
        assert [(letter.reason, letter.attempts) for letter in harness.dead] == [("max_attempts", 3)] * 5


async def test_an_app_is_as_before_when_its_test_is_over() -> None:
    app = new_app()
    orders = app.topic("orders", Placed)
    runs: list[str] = []

    @app.handler(orders, group="email")
    async def mail(event: Placed) -> None:
        runs.append(event.order_id)

    settings, group = app.settings, app.groups["orders", "email"]
    for number in (1, 2):
        async with run_app(app) as harness:
            await harness.publish(orders, Placed(order_id=f"o-{number}"))
            await harness.drain()
            assert len(harness.handled) == 1, "each test has a Redis of its own"
        assert app.settings is settings
        assert app.groups["orders", "email"] is group
    assert runs == ["o-1", "o-2"]


@pytest.mark.parametrize("durability", ["primary", "fsync", "replicas:2"])
async def test_every_durability_can_be_published(durability: str, streamlib_app: AppFactory) -> None:
    app = new_app()
    orders = app.topic("orders", Placed, durability=durability, codec=NativeCodec("msgpack"))
    async with streamlib_app(app) as harness:
        position = await harness.publish(orders, Placed(order_id="o-1"))
        assert await app.redis.execute("XRANGE", "orders", position.entry_id, position.entry_id)


async def test_a_blocking_read_waits_its_time_and_is_woken_by_an_entry() -> None:
    door = FakeServer().door(RedisSettings())
    lane = door.blocking(60_000)
    await door.execute("XGROUP", "CREATE", "s", "g", "0", "MKSTREAM")
    read = ("XREADGROUP", "GROUP", "g", "c", "COUNT", 10, "BLOCK")
    loop = asyncio.get_running_loop()
    started = loop.time()
    assert await lane.execute(*read, 50, "STREAMS", "s", ">") is None
    assert loop.time() - started >= 0.05
    reading = asyncio.create_task(lane.execute(*read, 60_000, "STREAMS", "s", ">"))
    await asyncio.sleep(0)
    entry_id = await door.execute("XADD", "s", "*", "BLOCK", "1")
    assert await asyncio.wait_for(reading, 5) == [[b"s", [[entry_id, [b"BLOCK", b"1"]]]]]
    await lane.close()
    await door.close()


def test_pytest_finds_the_plugin_of_an_installed_package() -> None:
    entry_points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    assert entry_points == {"streamlib": "streamlib.testing.plugin"}
    assert hasattr(import_module(entry_points["streamlib"]), "streamlib_app")


def test_where_fakeredis_is_missing_pytest_still_starts_and_the_fixture_says_what_to_install() -> None:
    script = (
        "import sys; sys.modules['fakeredis'] = None\n"
        "import streamlib.testing.plugin\n"
        "try: streamlib.testing.plugin.testing.FakeServer\n"
        "except ImportError as error: print(error)"
    )
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout == "streamlib.testing needs fakeredis; install streamlib[test]\n"


def test_a_users_test_needs_nothing_but_the_fixture(tmp_path: Path) -> None:
    (tmp_path / "test_shop.py").write_text(
        "from streamlib import App, Event\n"
        "class Placed(Event):\n"
        "    order_id: str\n"
        "app = App('shop')\n"
        "orders = app.topic('orders', Placed)\n"
        "@app.handler(orders, group='email')\n"
        "async def mail(event: Placed) -> None: ...\n"
        "async def test_orders_are_mailed(streamlib_app):\n"
        "    async with streamlib_app(app) as harness:\n"
        "        await harness.publish(orders, Placed(order_id='o-1'))\n"
        "        await harness.drain()\n"
        "        assert [one.group for one in harness.handled] == ['email']\n"
    )
    # Named here and not found by entry point, so that it is the same whether the package is installed or not.
    plugins = ["-p", "pytest_asyncio.plugin", "-p", "streamlib.testing.plugin", "-o", "asyncio_mode=auto"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *plugins, str(tmp_path)],
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "1 passed" in ran.stdout
