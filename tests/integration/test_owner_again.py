"""A worker that lost a partition and owns it again: what it claimed before is a dead worker's to it, too."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any, Literal

import pytest
import redis

from streamlib import App, Event
from streamlib.errors import Fenced
from streamlib.redisio.ownership import take
from streamlib.redisio.settler import done
from tests.helpers.delivering import GROUP, LEASE_MS, WINDOW_MS, counted, dead_letters, outcomes, running, settings
from tests.helpers.owning import an_owned_partition
from tests.helpers.waiting import eventually

OWNER = "{moves}:owner:" + GROUP


class Moved(Event):
    account: str
    n: int


async def rob(app: App, client: Any) -> None:
    """Another worker owns the partition for a while, as after a freeze longer than the lease."""
    client.hset(OWNER, "deadline", "1")
    assert (await take(app.redis, OWNER, "another", 200)).ours


# -- the scripts ----------------------------------------------------------------------------------------------------


async def test_a_claim_of_an_earlier_epoch_is_a_suspect_though_it_is_our_own(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        p.put("e-1")
        await p.ran(await p.own())
        p.end_lease()
        [again] = [one.delivery for one in (await p.read(await p.own())).received]
        assert await p.claim([again]) == [("SUSPECT", 0)], "at once: our own code has ended"
        assert await p.claim([again], suspects=True) == [("RUN", 1)]
        assert await p.claim([again], suspects=True) == [("RUN", 1)], "sent twice it answers the same"
        assert await p.settle([done(again)]) == [True]
        assert p.state("e-1") == "d"


async def test_a_claim_of_another_owner_is_waited_for_whatever_its_epoch(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        p.put("e-1")
        await p.ran(await p.own())
        p.end_lease()
        [taken] = [one.delivery for one in (await p.read(await p.own("w2"))).received]
        [(verdict, ms)] = await p.claim([taken], "w2")
        assert (verdict, 0 < ms <= LEASE_MS) == ("BUSY", True)


async def test_claims_of_this_epoch_are_renewed_and_stay_what_they_are(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        p.put("e-1")
        reader = await p.own()
        [held] = await p.ran(reader)
        before = p.state("e-1")
        p.expire("e-1")
        assert p.renewed([held], "w2") == [held.ref], "it is not another's"
        assert p.renewed([held]) == []
        assert p.state("e-1") == before
        assert p.client.pttl(p.keys.idem(GROUP, "e-1")) > WINDOW_MS
        assert await p.claim([held]) == [("RUN", 0)]


async def test_what_a_fenced_owner_would_have_emitted_is_emitted_once_by_the_next(redis_url: str) -> None:
    emitted = [b"id", b"from e-1", b"type", b"Placed", b"v", b"1", b"key", b"k", b"data", b"{}"]
    async with an_owned_partition(redis_url) as p:
        p.put("e-1")
        [fenced] = await p.ran(await p.own())
        p.expire("e-1")
        p.end_lease()
        reader = await p.own("w2")
        before = p.everything()
        with pytest.raises(Fenced):
            await p.settle([done(fenced, [emitted])])
        assert p.everything() == before
        [mine] = [one.delivery for one in (await p.read(reader)).received]
        assert await p.claim([mine], "w2", suspects=True) == [("RUN", 1)]
        assert await p.settle([done(mine, [emitted])], "w2") == [True]
        with pytest.raises(Fenced):
            await p.settle([done(fenced, [emitted])], resent=True)
        assert [fields[b"id"] for _, fields in p.client.xrange(p.keys.stream)] == [b"e-1", b"from e-1"]


# -- at work ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sync", [False, True], ids=["coroutine", "thread"])
@pytest.mark.parametrize("rerun", ["never", "ok"])
async def test_what_ran_when_the_partition_was_lost_runs_again_only_where_it_may(
    redis_url: str, client: redis.Redis, rerun: Literal["ok", "never"], sync: bool
) -> None:
    app = App("bank", settings=settings(redis_url))
    moves = app.topic("moves", Moved, key="account")
    runs: Counter[int] = Counter()
    overlapping, running_now = False, 0
    may_end = False

    def begin(event: Moved) -> None:
        nonlocal overlapping, running_now
        runs[event.n] += 1
        running_now += 1
        overlapping |= running_now > 1

    def end() -> None:
        nonlocal running_now
        running_now -= 1

    if sync:

        @app.handler(moves, group=GROUP, ordering="key", rerun=rerun)
        def in_a_thread(event: Moved) -> None:
            begin(event)
            while event.n == 0 and runs[0] == 1 and not may_end:
                time.sleep(0.01)
            end()

    else:

        @app.handler(moves, group=GROUP, ordering="key", rerun=rerun)
        async def coroutine(event: Moved) -> None:
            begin(event)
            try:
                while event.n == 0 and runs[0] == 1 and not may_end:
                    await asyncio.sleep(0.01)
            finally:
                end()

    async with app:
        await moves.publish_many([Moved(account="a", n=n) for n in range(3)])
        async with running(app):
            await eventually(lambda: runs[0] == 1)
            await rob(app, client)
            await eventually(lambda: counted(app, "partitions_owned", group=GROUP) == 0, what="the loss is noticed")
            may_end = True
            await eventually(lambda: runs[2] == 1, what="the key goes on", timeout=30)
    assert not overlapping
    letters = [letter["dl-reason"] for letter in dead_letters(client, "moves", GROUP)]
    if rerun == "never":
        assert (runs, letters) == ({0: 1, 1: 1, 2: 1}, ["outcome_unknown"])
    else:
        assert (runs, letters) == ({0: 2, 1: 1, 2: 1}, [])
        assert outcomes(app, GROUP)["ok"] == 3
