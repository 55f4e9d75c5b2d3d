"""Workers of two versions beside each other, and workers that stop while others hold what they were handed."""

from __future__ import annotations

import pytest

from streamlib import App, Event
from streamlib.redisio.settler import give_back
from tests.helpers.delivering import GROUP, a_partition, running, settings
from tests.helpers.waiting import eventually


class Known(Event):
    n: int


class Added(Event):
    n: int


def version(url: str, *, new: bool) -> tuple[App, set[int]]:
    """The app before and after its group learnt to handle Added."""
    app, handled = App("shop", settings=settings(url)), set[int]()
    topic = app.topic("orders", Known, Added)

    async def old_handler(event: Known) -> None:
        handled.add(event.n)

    async def new_handler(event: Known | Added) -> None:
        handled.add(event.n)

    app.handler(topic, group=GROUP)(new_handler if new else old_handler)
    return app, handled


async def test_an_old_worker_that_starts_skips_nothing_that_a_newer_one_handles(redis_url: str) -> None:
    new, handled = version(redis_url, new=True)
    old, _ = version(redis_url, new=False)
    async with new:
        await new.topics["orders"].publish_many([Added(n=n) for n in range(200)])
    async with old, running(old), new, running(new):
        await eventually(lambda: len(handled) == 200, timeout=90)


@pytest.mark.row(17)
async def test_an_old_worker_at_work_skips_nothing_from_the_moment_a_newer_one_is_up(redis_url: str) -> None:
    new, handled = version(redis_url, new=True)
    old, handled_by_old = version(redis_url, new=False)
    async with old, running(old):
        await old.topics["orders"].publish(Known(n=-1))
        await eventually(lambda: handled_by_old == {-1})
        async with new, running(new):
            await new.topics["orders"].publish_many([Added(n=n) for n in range(200)])
            await eventually(lambda: len(handled) == 200, timeout=90)


async def test_handing_back_leaves_alone_what_another_worker_has_claimed(redis_url: str) -> None:
    """w1 dies while it runs a returned event; w2 has taken the entry over and stops before it could claim it."""
    async with a_partition(redis_url) as p:
        p.add("e-1")
        [new] = await p.take("w1")
        assert await p.settle([give_back(new, claimed=False)], "w1") == [True]
        [returned] = await p.take("w1")
        assert await p.claim([returned], "w1") == [("RUN", 0)]
        [taken_over] = await p.take_over("w2")
        assert await p.settle([give_back(taken_over, claimed=False)], "w2") == [False]
        assert list(p.pending()) == [returned.ref], "it waits there until the claim has run out"
        p.expire("e-1")
        [found] = await p.take_over("w3")
        assert await p.claim([found], "w3", suspects=True) == [("RUN", 1)]
