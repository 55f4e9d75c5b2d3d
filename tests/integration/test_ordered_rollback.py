"""What a failover takes back the owner of a partition notices: lost acks are made again, with what they had emitted."""

from __future__ import annotations

from typing import Any

import pytest

from streamlib import App, Context, Event
from streamlib.keys import Keys
from tests.helpers.delivering import GROUP, counted, running, settings
from tests.helpers.marks import forget
from tests.helpers.owning import OwnedPartition, an_owned_partition
from tests.helpers.waiting import eventually

KEYS = Keys().stream("moves", 0, 1)


class Moved(Event):
    account: str
    n: int


class Noted(Event):
    account: str
    n: int


def ack_is_lost(client: Any, entry_id: str, event_id: str) -> None:
    """As on a replica that became the primary before the ack had reached it."""
    assert client.xclaim("moves", GROUP, "gone", 0, [entry_id], force=True, justid=True) == [entry_id.encode()]
    forget(client, "moves", GROUP, event_id)


@pytest.mark.row(49)
async def test_an_ack_that_a_failover_took_back_is_made_again_by_the_same_owner(redis_url: str, client: Any) -> None:
    app = App("bank", settings=settings(redis_url))
    moves = app.topic("moves", Moved, Noted, key="account")
    runs: list[int] = []

    @app.handler(moves, group=GROUP, ordering="key")
    async def move(event: Moved, ctx: Context) -> None:
        runs.append(event.n)
        ctx.publish(moves, Noted(account=event.account, n=event.n))

    async with app:
        places = [await moves.publish(Moved(account="a", n=n), id=f"e-{n}") for n in range(3)]
        async with running(app):
            await eventually(lambda: client.xlen("moves") == 6)
            await eventually(lambda: client.xpending("moves", GROUP)["pending"] == 0)
            entries: Any = client.xrange("moves")
            emitted = next(entry_id for entry_id, fields in entries if fields[b"type"] == b"Noted")
            client.xdel("moves", emitted)
            ack_is_lost(client, places[0].entry_id, "e-0")
            await eventually(lambda: client.xlen("moves") == 6, what="what it emitted is there again")
            await eventually(lambda: client.xpending("moves", GROUP)["pending"] == 0)
            assert runs == [0, 1, 2, 0]
            assert counted(app, "partitions_owned", group=GROUP) == 1
            await moves.publish(Moved(account="a", n=3))
            await eventually(lambda: runs[4:] == [3])


@pytest.mark.parametrize("how", ["nothing is pending", "we have what is pending", "a read brings something"])
async def test_a_read_tells_how_much_is_pending_when_it_brings_nothing(redis_url: str, how: str) -> None:
    async with an_owned_partition(redis_url) as p:
        reader = await p.own()
        if how != "nothing is pending":
            await _put_two(p)
            assert (await p.read(reader)).left == 0, "it was not asked"
        if how == "a read brings something":
            p.put("e-3")
            assert (await p.read(reader)).left == 0
        assert (await p.read(reader)).left == {"n": 0, "w": 2, "a": 3}[how[0]]


async def _put_two(p: OwnedPartition) -> None:
    p.put("e-1")
    p.client.xadd(p.again, {"id": "e-2", "body": "x"})
