"""A server that comes back with an older copy of its data, and one that was given an id from the far future."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from streamlib.message import Position
from tests.chaos.counting_shop import Row, Shop
from tests.helpers.delivering import counted, outcomes, running
from tests.helpers.servers import RedisProc
from tests.helpers.waiting import eventually

pytestmark = [pytest.mark.chaos]


async def published(shop: Shop, *numbers: int) -> Position:
    """Publish them, and wait until handler and view have them; where the last one lies."""
    answers = await shop.publish(*numbers)
    places = [one for one in answers if isinstance(one, Position)]
    assert len(places) == len(numbers), answers
    await shop.view.wait_for(places[-1], timeout=30)
    await eventually(lambda: {f"e-{n}" for n in numbers} <= set(shop.runs))
    return places[-1]


async def rows(shop: Shop, *numbers: int) -> dict[int, int]:
    """How often each was folded, without those that have no row."""
    found = {n: await shop.view.get(str(n)) for n in numbers}
    return {n: row.times for n, row in found.items() if isinstance(row, Row)}


@pytest.mark.row(39, 40)
async def test_an_older_copy_under_live_workers_is_told_and_worked_on_from_there(
    own_server: Callable[..., RedisProc], caplog: pytest.LogCaptureFixture
) -> None:
    server = own_server()
    shop = Shop(server.url)
    async with shop.app, running(shop.app) as worker:
        await published(shop, *range(10))
        await eventually(lambda: outcomes(shop.app, "g").get("ok") == 10)
        with server.client() as client:
            client.save()
        await published(shop, *range(10, 20))
        await eventually(lambda: outcomes(shop.app, "g").get("ok") == 20)
        server.kill9()
        server.start()
        await published(shop, *range(20, 30))
        assert await rows(shop, *range(30)) == dict.fromkeys([*range(10), *range(20, 30)], 1)
        await published(shop, *range(10, 20))
        assert await rows(shop, *range(30)) == dict.fromkeys(range(30), 1)
        with server.client() as client:
            entries: Any = client.xrange("orders")
            for _, fields in entries[:5]:
                client.xadd("orders", fields)
        await eventually(lambda: counted(shop.app, "duplicates_suppressed_total", group="g") >= 5)
        await eventually(lambda: shop.runs["e-10"] == 2, what="what was taken back and sent again runs again")
        assert not worker.ended
    assert "source_rolled_back" in caplog.messages
    assert shop.runs == Counter(f"e-{n}" for n in [*range(30), *range(10, 20)])


@pytest.mark.row(44)
async def test_an_id_from_the_far_future_changes_nothing_but_the_ids_after_it(redis_url: str, client: Any) -> None:
    shop = Shop(redis_url)
    async with shop.app, running(shop.app):
        await published(shop, 1)
        foreign = {"id": "e-2", "type": "Placed", "v": "1", "key": "2", "data": '{"n":2}'}
        client.xadd("orders", foreign, id="9999999999999-0")
        last = await published(shop, 3, 4)
        assert last.entry_id.startswith("9999999999999-")
        assert await rows(shop, 1, 2, 3, 4) == {1: 1, 2: 1, 3: 1, 4: 1}
        assert counted(shop.app, "queue_wait_seconds_sum") >= 0
        assert counted(shop.app, "end_to_end_latency_seconds_sum") >= 0
    assert shop.runs == Counter(f"e-{n}" for n in range(1, 5))
