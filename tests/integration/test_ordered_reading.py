"""How the owner of a partition reads: in batches, also while more waits in memory than can run."""

from typing import Any

import redis

from streamlib import App, Event
from tests.helpers.delivering import running, settings
from tests.helpers.waiting import eventually

EVENTS, BATCH = 2_000, 100


class Moved(Event):
    account: str
    n: int


async def test_a_backlog_is_read_in_batches_and_not_by_ones(redis_url: str, client: redis.Redis) -> None:
    app = App("bank", settings=settings(redis_url, batch=BATCH))
    moves = app.topic("moves", Moved, key="account")
    done: list[int] = []

    @app.handler(moves, group="ledger", ordering="key")
    async def move(event: Moved) -> None:
        done.append(event.n)

    def reads() -> int:
        stats: Any = client.info("commandstats")
        found: int = stats.get("cmdstat_xautoclaim", {"calls": 0})["calls"] // 2  # a read looks into both streams
        return found

    async with app:
        await moves.publish_many([Moved(account=f"a{n % 16}", n=n) for n in range(EVENTS)])
        before = reads()
        async with running(app):
            await eventually(lambda: len(done) == EVENTS, timeout=60)
        assert reads() - before < 6 * EVENTS / BATCH
