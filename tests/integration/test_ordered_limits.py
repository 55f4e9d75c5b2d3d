"""Ordered groups with limits, and with delayed events: the limit holds over all owners, the order within each key."""

from __future__ import annotations

import asyncio
from collections import defaultdict

import redis

from streamlib import App, Event, Retry
from tests.helpers.delivering import GROUP, running, settings
from tests.helpers.waiting import eventually


class Moved(Event):
    account: str
    n: int


class Seen:
    """What the handlers of all workers of a test did."""

    def __init__(self) -> None:
        self.done: dict[str, list[int]] = defaultdict(list)
        self.starts: list[float] = []
        self.running = self.most = 0

    async def run(self, event: Moved, seconds: float) -> None:
        self.starts.append(asyncio.get_running_loop().time())
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(seconds)
        self.running -= 1
        self.done[event.account].append(event.n)

    @property
    def total(self) -> int:
        return sum(map(len, self.done.values()))


async def test_a_limit_of_the_group_holds_over_the_owners_of_its_partitions(redis_url: str) -> None:
    seen = Seen()
    apps = [App("bank", settings=settings(redis_url)) for _ in range(2)]
    failed: set[int] = set()
    for app in apps:
        moves = app.topic("moves", Moved, key="account", partitions=4)

        @app.handler(moves, group=GROUP, ordering="key", group_concurrency=2, retry=Retry(base=0.01, cap=0.02))
        async def move(event: Moved) -> None:
            if event.n % 20 == 7 and event.n not in failed:
                failed.add(event.n)
                raise ValueError("once")
            await seen.run(event, 0.005)

    first, second = apps
    async with first, second:
        await first.topics["moves"].publish_many([Moved(account=f"a{n % 12}", n=n) for n in range(240)])
        async with running(first), running(second):
            await eventually(lambda: seen.total == 240, timeout=60)
    assert seen.most <= 2
    assert all(numbers == sorted(numbers) and len(numbers) == 20 for numbers in seen.done.values())
    assert len(failed) == 12


async def test_a_rate_holds_and_no_key_is_overtaken_for_it(redis_url: str, client: redis.Redis) -> None:
    app, seen = App("bank", settings=settings(redis_url)), Seen()
    moves = app.topic("moves", Moved, key="account", partitions=2)

    @app.handler(moves, group=GROUP, ordering="key", rate="50/s")
    async def move(event: Moved) -> None:
        await seen.run(event, 0)

    async with app:
        await moves.publish_many([Moved(account=f"a{n % 5}", n=n) for n in range(100)])
        async with running(app):
            await eventually(lambda: seen.total == 100, timeout=60)
    assert seen.starts[-1] - seen.starts[0] > 0.9, "a second's worth at once, the rest at its pace"
    assert all(numbers == sorted(numbers) for numbers in seen.done.values())
    assert not client.exists("{moves.0}:keys:" + GROUP, "{moves.1}:keys:" + GROUP)


async def test_delayed_events_of_a_key_run_in_the_order_in_which_they_became_due(redis_url: str) -> None:
    app, seen = App("bank", settings=settings(redis_url)), Seen()
    moves = app.topic("moves", Moved, key="account")

    @app.handler(moves, group=GROUP, ordering="key")
    async def move(event: Moved) -> None:
        await seen.run(event, 0.01)

    async with app, running(app):
        for n, delay_s in enumerate([0.6, 0.3, 0.0]):
            await moves.publish(Moved(account="a", n=n), delay=delay_s)
        await eventually(lambda: seen.total == 3)
    assert seen.done == {"a": [2, 1, 0]}
    assert seen.most == 1
