"""Batches end event by event; events that handlers emit are there once, however often the handler ran."""

from __future__ import annotations

import asyncio
import zlib
from collections import Counter
from typing import Any

from streamlib import App, BatchContext, Context, Event, Reject, Retry
from tests.helpers.delivering import burst, counted, dead_letters, outcomes, settings
from tests.helpers.publishing import stored_ids

PARTITIONS = 4


class Order(Event):
    n: int
    act: str = "ok"
    account: str = "a"


class Sent(Event):
    n: int
    account: str


class Elsewhere(Event):
    n: int


# -- batches --------------------------------------------------------------------------------------------------------


async def test_a_batch_ends_event_by_event(redis_url: str, client: Any) -> None:
    app = App("shop", settings=settings(redis_url))
    orders = app.topic("orders", Order)
    sizes, runs = list[int](), Counter[int]()

    @app.handler(orders, group="g", retry=Retry(max_attempts=3, base=0.001))
    async def handle(events: list[Order], ctx: BatchContext) -> None:
        sizes.append(len(events))
        for event in events:
            runs[event.n] += 1
            if event.act == "reject":
                ctx.reject(event, f"no order {event.n}")
            elif (event.act == "retry" and ctx.of(event).attempt < 3) or event.act == "always":
                ctx.retry(event)

    async with app:
        acts = ["ok"] * 20 + ["reject", "retry", "always"]
        for n, act in enumerate(acts):
            await orders.publish(Order(n=n, act=act), id=f"e-{n}")
        assert await burst(app) == 0
        assert counted(app, "events_received_total", group="g") == sum(outcomes(app, "g").values())
    assert max(sizes) == len(acts)
    assert runs == Counter(range(20)) + Counter({20: 1, 21: 3, 22: 3})
    letters = {
        letter["id"]: (letter["dl-reason"], letter["dl-error"]) for letter in dead_letters(client, "orders", "g")
    }
    assert letters["e-20"] == ("rejected", "Reject: no order 20")
    assert letters["e-22"][0] == "max_attempts"
    assert set(letters) == {"e-20", "e-22"}


async def test_a_batch_that_raises_runs_again_one_by_one_and_only_the_bad_one_suffers(
    redis_url: str, client: Any
) -> None:
    app = App("shop", settings=settings(redis_url))
    orders = app.topic("orders", Order)
    good: Counter[int] = Counter()
    emitted_from_split = app.topic("sent", Sent)

    @app.handler(orders, group="g", retry=Retry(max_attempts=2, base=0.001))
    def handle(events: list[Order], ctx: BatchContext) -> None:
        for event in events:
            ctx.of(event).publish(emitted_from_split, Sent(n=event.n, account="a"))
            if event.act == "raise":
                raise ValueError("poison")
            if event.act == "reject":
                raise Reject("never")
        good.update(event.n for event in events)

    async with app:
        await orders.publish_many([Order(n=n, act={5: "raise", 6: "reject"}.get(n, "ok")) for n in range(10)])
        assert await burst(app) == 0
    assert good == Counter(n for n in range(10) if n not in (5, 6))
    reasons = sorted(letter["dl-reason"] for letter in dead_letters(client, "orders", "g"))
    assert reasons == ["max_attempts", "rejected"]
    assert client.xlen("sent") == 8, "what a failed run emitted is not published"


async def test_an_object_that_is_not_of_the_batch_is_a_clear_error(redis_url: str, client: Any) -> None:
    app = App("shop", settings=settings(redis_url))
    orders = app.topic("orders", Order)

    @app.handler(orders, group="g", retry=Retry(max_attempts=1))
    async def handle(events: list[Order], ctx: BatchContext) -> None:
        ctx.reject(Order(n=1), "another object")

    async with app:
        await orders.publish(Order(n=1))
        await burst(app)
    [letter] = dead_letters(client, "orders", "g")
    assert "pass the very object" in letter["dl-error"]


# -- emitted events -------------------------------------------------------------------------------------------------


def _partition(account: str) -> int:
    return zlib.crc32(account.encode()) % PARTITIONS


async def test_emitted_events_are_exact_over_retries_in_every_direction(redis_url: str, client: Any) -> None:
    """Into the own partition with the ack; into another partition and another topic once for every reader."""
    app = App("shop", settings=settings(redis_url))
    orders = app.topic("orders", Order, Sent, key="account", partitions=PARTITIONS)
    other = app.topic("other", Elsewhere)
    others = [name for name in "bcdefghijkl" if _partition(name) != _partition("a")]
    read, runs = Counter[tuple[str, int]](), Counter[int]()

    @app.handler(orders, group="g", retry=Retry(max_attempts=5, base=0.001))
    async def handle(event: Order, ctx: Context) -> None:
        runs[event.n] += 1
        ctx.publish(orders, Sent(n=event.n, account="a"))
        ctx.publish(orders, Sent(n=event.n, account=others[0]))
        ctx.publish(other, Elsewhere(n=event.n))
        await asyncio.sleep(0)
        if event.act == "fail" and ctx.attempt < 3:
            raise ValueError("after it emitted")

    @app.handler(orders, group="readers")
    async def read_sent(event: Sent, ctx: Context) -> None:
        read[event.account, event.n] += 1
        assert ctx.correlation_id

    @app.handler(other, group="readers")
    async def read_elsewhere(event: Elsewhere) -> None:
        read["elsewhere", event.n] += 1

    async with app:
        await orders.publish_many([Order(n=n, act="fail" if n % 2 else "ok") for n in range(20)])
        assert await burst(app) == 0
    assert runs == {n: 3 if n % 2 else 1 for n in range(20)}
    assert read == Counter((name, n) for name in ("a", others[0], "elsewhere") for n in range(20))
    own = stored_ids(client, f"orders.{_partition('a')}")
    assert len(own) == len(set(own)) == 40, "in its own partition an emitted event is stored once"


async def test_a_repeat_after_half_of_the_emissions_were_stored_doubles_none_for_readers(
    redis_url: str, client: Any
) -> None:
    """One of two topics refuses the first time: the other has the event already when the handler runs again."""
    app = App("shop", settings=settings(redis_url))
    orders = app.topic("orders", Order)
    first, second = app.topic("first", Elsewhere), app.topic("second", Sent)
    read: Counter[str] = Counter()

    @app.handler(orders, group="g", retry=Retry(max_attempts=5, base=0.001))
    async def handle(event: Order, ctx: Context) -> None:
        ctx.publish(first, Elsewhere(n=1))
        ctx.publish(second, Sent(n=1, account="x" * (300_000 if ctx.attempt == 1 else 1)))

    @app.handler(first, group="readers")
    async def read_first(event: Elsewhere) -> None:
        read["first"] += 1

    @app.handler(second, group="readers")
    async def read_second(event: Sent) -> None:
        read["second"] += 1

    async with app:
        await orders.publish(Order(n=1))
        assert await burst(app) == 0
    assert read == {"first": 1, "second": 1}
    assert outcomes(app, "g") == {"retry": 1, "ok": 1}
    assert len(set(stored_ids(client, "first"))) == 1


async def test_an_emission_that_can_never_be_stored_is_the_handlers_failure(redis_url: str, client: Any) -> None:
    app = App("shop", settings=settings(redis_url))
    orders = app.topic("orders", Order)

    @app.handler(orders, group="g", retry=Retry(max_attempts=2, base=0.001))
    async def alone(event: Order, ctx: Context) -> None:
        ctx.publish(orders, Elsewhere(n=1))

    @app.handler(orders, group="batch", retry=Retry(max_attempts=2, base=0.001))
    async def many(events: list[Order], ctx: BatchContext) -> None:
        for event in events:
            if event.n == 3:
                ctx.of(event).publish(orders, Elsewhere(n=1))

    async with app:
        await orders.publish_many([Order(n=n) for n in range(5)])
        assert await burst(app) == 0
    assert outcomes(app, "g") == {"retry": 5, "dead": 5}
    assert outcomes(app, "batch") == {"ok": 4, "retry": 1, "dead": 1}
    assert "does not declare Elsewhere" in dead_letters(client, "orders", "batch")[0]["dl-error"]
    assert client.xlen("orders") == 5
