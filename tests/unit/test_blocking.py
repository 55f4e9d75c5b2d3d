"""The app without an event loop: publish and query from plain functions and threads."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from streamlib import App, Event, Exact, ReadModel
from streamlib.errors import PayloadTooLarge, PublishError, RedisUnavailable, StreamlibError
from streamlib.message import Position
from streamlib.settings import LimitSettings, RedisSettings, Settings
from tests.helpers.publishing import stored_ids
from tests.helpers.servers import free_port
from tests.helpers.waiting import wait_until


class Placed(Event):
    order_id: str


class Order(ReadModel):
    order_id: str


def shop(url: str, **settings: Any) -> tuple[App, Any]:
    app = App("shop", settings=Settings(redis=RedisSettings(url=url, retry_s=0.2), **settings))
    return app, app.topic("orders", Placed, key="order_id")


def test_publishing_from_many_threads_stores_each_event_once(redis_url: str, client: Any) -> None:
    app, orders = shop(redis_url)
    with app.blocking() as opened, ThreadPoolExecutor(8) as threads:
        positions = list(
            threads.map(lambda n: opened.publish(orders, Placed(order_id=f"o-{n}"), id=f"e-{n}"), range(200))
        )
    assert all(isinstance(position, Position) for position in positions)
    assert sorted(stored_ids(client, "orders")) == sorted(f"e-{n}" for n in range(200))


def test_publish_many_gives_each_event_its_position_or_error(redis_url: str) -> None:
    app, orders = shop(redis_url, limits=LimitSettings(payload_bytes=2_000))
    with app.blocking() as opened:
        answers = opened.publish_many(orders, [Placed(order_id="o-1"), Placed(order_id="o-" + "x" * 150)])
        assert all(isinstance(answer, Position) for answer in answers)
        [bad] = opened.publish_many(orders, [Placed(order_id="x" * 300)])
        assert isinstance(bad, PublishError)


def test_errors_are_those_of_the_async_calls(redis_url: str) -> None:
    app, orders = shop(redis_url, limits=LimitSettings(payload_bytes=1_024))
    with app.blocking() as opened, pytest.raises(PayloadTooLarge):
        opened.publish(orders, Placed(order_id="o" * 2_000), key="k")


def test_views_are_read_through_call(redis_url: str) -> None:
    app, orders = shop(redis_url)
    view = app.projection("view", orders, Order, key="order_id", indexes=[Exact("order_id")])
    with app.blocking() as opened:
        assert opened.call(view.get("o-1")) is None
        assert opened.call(view.find(order_id="o-1")) == []


def test_use_before_and_after_with_is_a_clear_error(redis_url: str) -> None:
    app, orders = shop(redis_url)
    opened = app.blocking()
    with pytest.raises(StreamlibError, match=r"between `with app\.blocking\(\) as \.\.\.` and its end"):
        opened.publish(orders, Placed(order_id="o-1"))
    with opened:
        opened.publish(orders, Placed(order_id="o-1"))
    with pytest.raises(StreamlibError, match=r"between `with app\.blocking\(\)"):
        opened.publish_many(orders, [Placed(order_id="o-1")])
    with pytest.raises(StreamlibError, match=r"app\.blocking\(\)"), opened:
        pass
    with app.blocking() as once_more:
        assert once_more.publish(orders, Placed(order_id="o-2")).topic == "orders"


def test_use_inside_its_own_loop_is_a_clear_error(redis_url: str) -> None:
    app, orders = shop(redis_url)
    with app.blocking() as opened:

        async def wrong() -> None:
            opened.publish(orders, Placed(order_id="o-1"))

        with pytest.raises(StreamlibError, match="between `with"):
            opened.call(wrong())


def test_the_end_does_not_leave_a_call_of_another_thread_hanging(redis_url: str) -> None:
    app, _ = shop(redis_url)
    started, failures = threading.Event(), list[BaseException]()

    async def for_ever() -> None:
        started.set()
        await asyncio.Event().wait()

    def call() -> None:
        try:
            opened.call(for_ever())
        except StreamlibError as error:
            failures.append(error)

    with app.blocking() as opened:
        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        assert started.wait(10)
    wait_until(lambda: not thread.is_alive(), what="the call has ended")
    assert "was closed while" in str(failures[0])


def test_a_server_that_is_not_there_leaves_no_thread_behind() -> None:
    app, _ = shop(f"redis://127.0.0.1:{free_port()}")
    before = threading.active_count()
    with pytest.raises(RedisUnavailable), app.blocking():
        pass
    assert threading.active_count() == before
