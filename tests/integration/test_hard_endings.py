"""Handlers that end in the strangest ways, alone and in batches."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from streamlib import App, BatchContext, Event, PublishError, ReadModel, Retry
from tests.helpers.delivering import GROUP, burst, dead_letters, settings
from tests.helpers.waiting import eventually


class Placed(Event):
    n: int


class Touchy(Event):
    """An event whose class raises an error of its own when it is decoded."""

    n: int

    def __post_init__(self) -> None:
        if self.n == 13:
            raise KeyError("no thirteen")


class Row(ReadModel):
    n: int


@pytest.mark.row(16)
async def test_a_handler_that_cancels_itself_spends_its_attempts(redis_url: str, client: Any) -> None:
    app = App("shop", settings=settings(redis_url))
    orders = app.topic("orders", Placed)
    runs: list[int] = []

    @app.handler(orders, group=GROUP, retry=Retry(max_attempts=3, base=0.001))
    async def handle(event: Placed) -> None:
        runs.append(event.n)
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    async with app:
        await orders.publish(Placed(n=1))
        assert await burst(app) == 0
    assert runs == [1, 1, 1]
    assert [letter["dl-reason"] for letter in dead_letters(client, "orders", GROUP)] == ["max_attempts"]


async def test_the_events_of_a_split_batch_are_settled_as_they_end(redis_url: str, client: Any) -> None:
    app = App("shop", settings=settings(redis_url, drain_s=0.5))
    orders = app.topic("orders", Placed)
    gate, alone = asyncio.Event(), list[int]()

    @app.handler(orders, group=GROUP, concurrency=1)
    async def handle(events: list[Placed], ctx: BatchContext) -> None:
        if len(events) > 1:
            raise ValueError("not together")
        alone.append(events[0].n)
        if len(alone) == 6:
            await gate.wait()

    async with app:
        await orders.publish_many([Placed(n=n) for n in range(10)])
        stop = asyncio.Event()
        working = asyncio.create_task(app.worker().run(stop))
        await eventually(lambda: len(alone) == 6)
        await eventually(lambda: client.xpending("orders", GROUP)["pending"] == 5, timeout=10)
        stop.set()
        assert await working == 7, "one had to be cancelled"
        assert len(alone) == 6, "after the cancellation no other was started"
        gate.set()
        assert await burst(app) == 0
        assert sorted(set(alone)) == list(range(10))


async def test_an_event_class_that_raises_is_a_dead_letter_of_groups_and_views(redis_url: str, client: Any) -> None:
    app = App("shop", settings=settings(redis_url))
    orders = app.topic("orders", Touchy)
    handled: list[int] = []

    @app.handler(orders, group=GROUP)
    async def handle(event: Touchy) -> None:
        handled.append(event.n)

    view = app.projection("view", orders, Row, key="n")

    @view.on(Touchy)
    def fold(row: Row | None, event: Touchy) -> Row:
        return Row(n=event.n)

    async with app:
        await orders.publish(Touchy(n=1))
        client.xadd("orders", {"id": "bad", "type": "Touchy", "v": "1", "key": "", "data": '{"n": 13}'})
        await orders.publish(Touchy(n=2))
        assert await burst(app) == 0
        assert sorted(handled) == [1, 2]
        assert await view.get("2") == Row(n=2)
    for group in (GROUP, "view"):
        assert [letter["dl-reason"] for letter in dead_letters(client, "orders", group)] == ["decode"]


async def test_headers_that_are_no_texts_are_refused_and_close_does_not_wait(redis_url: str) -> None:
    app = App("shop", settings=settings(redis_url))
    orders = app.topic("orders", Placed)
    async with asyncio.timeout(20), app:
        with pytest.raises(PublishError, match="names and values are texts"):
            await orders.publish(Placed(n=1), headers={"tenant": 7})  # type: ignore[dict-item]
