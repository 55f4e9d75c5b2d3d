"""While code of an event runs anywhere, nobody else runs that event, whatever stops or breaks around it."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from streamlib import App, BatchContext, Event, ReadModel, Retry
from tests.helpers.delivering import GROUP, burst, counted, dead_letters, running, settings
from tests.helpers.waiting import eventually


class Placed(Event):
    n: int


class Row(ReadModel):
    n: int


async def test_a_thread_that_outlives_its_worker_keeps_its_claim(redis_url: str) -> None:
    """In a process that lives on after a cancelled worker: the next run starts only when the first has ended."""
    app = App("shop", settings=settings(redis_url, lease_ms=600, drain_s=0.1))
    orders = app.topic("orders", Placed)
    spans: list[tuple[float, float]] = []
    gate, started = threading.Event(), threading.Event()

    @app.handler(orders, group=GROUP)
    def handle(event: Placed) -> None:
        began = time.monotonic()
        started.set()
        gate.wait(30)
        spans.append((began, time.monotonic()))

    async with app:
        await orders.publish(Placed(n=1))
        first = asyncio.create_task(app.worker().run(asyncio.Event()))
        await eventually(started.is_set)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        async with running(app):
            await asyncio.sleep(3 * 0.6)  # three leases: long enough for a second run to start
            assert spans == []
            gate.set()
            await eventually(lambda: len(spans) == 2, timeout=30)
    assert spans[0][1] <= spans[1][0], "the runs did not overlap"


@pytest.mark.row(69)
async def test_a_refused_settle_is_tried_again_and_the_handler_is_not(redis_url: str, client: Any) -> None:
    app = App("shop", settings=settings(redis_url, lease_ms=600))
    orders = app.topic("orders", Placed)
    runs: list[int] = []

    @app.handler(orders, group=GROUP, rerun="never")
    async def handle(event: Placed) -> None:
        runs.append(event.n)
        raise ValueError("to the dead letters")

    client.set("{orders}:dead:" + GROUP, "not a stream")
    async with app, running(app):
        await orders.publish(Placed(n=1))
        await eventually(lambda: runs == [1])
        await asyncio.sleep(3 * 0.6)  # three leases without a second run
        client.delete("{orders}:dead:" + GROUP)
        await eventually(lambda: client.exists("{orders}:dead:" + GROUP), timeout=30)
    assert runs == [1]
    assert [letter["dl-reason"] for letter in dead_letters(client, "orders", GROUP)] == ["outcome_unknown"]


async def test_nothing_starts_after_the_stop(redis_url: str) -> None:
    app = App("shop", settings=settings(redis_url, block_ms=1_000))
    orders = app.topic("orders", Placed)
    runs: list[int] = []

    @app.handler(orders, group=GROUP, concurrency=2)
    async def handle(event: Placed) -> None:
        runs.append(event.n)
        await asyncio.sleep(0.2)

    async with app:
        stop = asyncio.Event()
        working = asyncio.create_task(app.worker().run(stop))
        await orders.publish_many([Placed(n=n) for n in range(20)])
        await eventually(lambda: len(runs) == 2)
        stop.set()
        assert await working == 0
        assert len(runs) == 2
        assert await burst(app) == 0
        assert sorted(runs) == list(range(20))


@pytest.mark.parametrize("batch", [1, 4])
async def test_the_smallest_batches_reclaim_too(redis_url: str, client: Any, batch: int) -> None:
    app = App("shop", settings=settings(redis_url, lease_ms=600, batch=batch))
    orders = app.topic("orders", Placed)
    runs: list[int] = []

    @app.handler(orders, group=GROUP)
    async def handle(event: Placed) -> None:
        runs.append(event.n)

    async with app:
        await orders.publish_many([Placed(n=n) for n in range(5)])
        client.xreadgroup(GROUP, "dead", {"orders": ">"}, count=5)
        async with running(app):
            await eventually(lambda: sorted(runs) == [0, 1, 2, 3, 4], timeout=30)


async def test_a_split_batch_of_a_plain_function_hands_back_the_rest(redis_url: str, client: Any) -> None:
    app = App("shop", settings=settings(redis_url, drain_s=0.2))
    orders = app.topic("orders", Placed)
    gate, alone = threading.Event(), list[int]()

    @app.handler(orders, group=GROUP, concurrency=1)
    def handle(events: list[Placed], ctx: BatchContext) -> None:
        if len(events) > 1:
            raise ValueError("not together")
        alone.append(events[0].n)
        gate.wait(20)

    async with app:
        await orders.publish_many([Placed(n=n) for n in range(6)])
        stop = asyncio.Event()
        working = asyncio.create_task(app.worker().run(stop))
        await eventually(lambda: len(alone) == 1)
        stop.set()
        asyncio.get_running_loop().call_later(1.0, gate.set)
        assert await working == 7, "it had to wait for a thread longer than drain_s"
        assert len(alone) == 1
        assert await burst(app) == 0
        assert sorted(alone) == list(range(6)), "handed back at once, none of them run twice"


async def test_a_topic_that_cannot_be_emitted_to_spends_attempts(redis_url: str, client: Any) -> None:
    app = App("shop", settings=settings(redis_url))
    orders, broken = app.topic("orders", Placed), app.topic("broken", Placed)

    @app.handler(orders, group=GROUP, retry=Retry(max_attempts=2, base=0.001))
    async def handle(event: Placed, ctx: Any) -> None:
        ctx.publish(broken, event)

    async with app:
        client.delete("broken")
        client.set("broken", "not a stream")
        await orders.publish(Placed(n=1))
        assert await burst(app) == 0
        client.delete("broken")
    assert [letter["dl-attempts"] for letter in dead_letters(client, "orders", GROUP)] == ["2"]


async def test_a_burst_ends_at_a_projection_that_stands_still(redis_url: str) -> None:
    app = App("shop", settings=settings(redis_url))
    orders = app.topic("orders", Placed)
    view = app.projection("view", orders, Row, key="n", on_error="halt")

    @view.on(Placed)
    def fold(row: Row | None, event: Placed) -> Row:
        raise ValueError("cannot be folded")

    async with app:
        await orders.publish(Placed(n=1))
        with pytest.raises(Exception, match="'view' stands still at partition 0"):
            await burst(app)


async def test_a_burst_ends_at_a_projection_whose_next_event_no_worker_reads(redis_url: str, client: Any) -> None:
    """It is told as every view that stands still; the partition is not taken and left again without a pause."""
    app = App("shop", settings=settings(redis_url))
    view = app.projection("view", app.topic("orders", Placed), Row, key="n")

    @view.on(Placed)
    def fold(row: Row | None, event: Placed) -> Row:
        return Row(n=event.n)

    async with app:
        client.xadd("orders", {"id": "e-1", "type": "Placed", "v": "9", "key": "", "data": '{"n": 1}'})
        with pytest.raises(Exception, match=r"'view' stands still at partition 0: .*version 9.*no other worker"):
            await burst(app)
    assert counted(app, "partitions_owned", group="view") == 0
