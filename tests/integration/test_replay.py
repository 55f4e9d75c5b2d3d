"""Replays of a range: what of it is copied and runs again, what is left alone, what is refused."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from streamlib import App, Context, Event, Retry
from streamlib.errors import NotFound, Refused
from streamlib.ops.pace import Pace
from streamlib.ops.ranges import BEGIN, FIRST, Asked
from streamlib.ops.replay import Replay
from streamlib.redisio.registry import declare_group
from streamlib.redisio.replays import Totals
from tests.helpers.delivering import burst, running, settings
from tests.helpers.replaying import GROUP, WINDOW_S, a_topic, free_pace
from tests.helpers.waiting import eventually


class Moved(Event):
    account: str
    n: int


async def replay_all(app: App, group: str, **asked: Any) -> Totals:
    replay = Replay(app.redis, app.keys, Asked(topic="moves", start="begin", **asked), group, window_s=60)
    await replay.check()
    return await replay.run(Pace(), lambda n: None)


# -- what is replayed -------------------------------------------------------------------------------------------------


async def test_events_run_again_under_their_ids_with_all_attempts_and_for_this_group_only(redis_url: str) -> None:
    app = App("bank", settings=settings(redis_url))
    moves = app.topic("moves", Moved, key="account", partitions=3)
    runs: dict[str, list[tuple[str, str, int]]] = {"mail": [], "audit": []}

    @app.handler(moves, group="mail", retry=Retry(base=0.01, cap=0.02))
    async def mail(event: Moved, ctx: Context) -> None:
        runs["mail"].append((ctx.event_id, ctx.idempotency_key, ctx.attempt))
        if event.n == 7 and ctx.attempt == 1:
            raise ValueError("the first attempt fails")

    @app.handler(moves, group="audit")
    async def audit(event: Moved, ctx: Context) -> None:
        runs["audit"].append((ctx.event_id, ctx.idempotency_key, ctx.attempt))

    async with app:
        await moves.publish_many([Moved(account=f"a{n}", n=n) for n in range(40)])
        await burst(app)
        first = sorted(runs["mail"])
        assert len(first) == 41
        totals = await replay_all(app, "mail")
        assert totals == Totals(replayed=40)
        await burst(app)
    assert sorted(runs["mail"]) == sorted(first * 2), "the same ids and keys, and attempts begin anew"
    assert len(runs["audit"]) == 40


async def test_what_runs_or_comes_anyway_and_dead_letters_are_left_alone(redis_url: str) -> None:
    async with a_topic(redis_url) as t:
        for event_id in ("done", "forgotten", "claimed", "returns", "held", "dead", "old retry"):
            t.put(event_id)
        t.deliver()
        for event_id, state in (("done", "d"), ("claimed", "c9999999999999:w1:1-1"), ("returns", "r"), ("dead", "x")):
            t.mark(event_id, state)
        t.mark("held", "h1-1")
        t.client.zadd(t.streams[0].retry(GROUP), {"old retry": 9_999_999_999_999})
        t.client.hset(t.streams[0].retry_body(GROUP), "old retry", "body")
        t.put("read, not claimed")
        t.deliver(ack=False)
        t.put("ahead")
        totals = await t.replayed()
        assert totals == Totals(replayed=2, busy=2, waiting=3, dead=1, not_delivered=1)
        assert t.again() == ["done", "forgotten"]
        states = {event_id: t.state(event_id) for event_id in ("done", "forgotten", "returns", "dead", "held", "ahead")}
        assert states == {"done": "r", "forgotten": "r", "returns": "r", "dead": "x", "held": "h1-1", "ahead": ""}
        assert 0 < t.client.pttl(t.streams[0].idem(GROUP, "done")) <= WINDOW_S * 1000


async def test_an_event_that_waits_is_not_added_twice(redis_url: str) -> None:
    async with a_topic(redis_url) as t:
        t.put("e-1")
        t.deliver()
        assert await t.replayed() == Totals(replayed=1)
        assert await t.replayed() == Totals(waiting=1)
        assert t.again() == ["e-1"]


async def test_the_range_and_the_filters_choose(redis_url: str) -> None:
    async with a_topic(redis_url) as t:
        for n in range(1, 7):
            t.put(f"e-{n}", at=f"{n}-0", type_="Paid" if n % 2 else "Placed", key="a" if n < 4 else "b")
        t.deliver()
        types, keys = frozenset({"Paid"}), frozenset({"a"})
        assert await t.replayed("2-0", end="5-0", types=types, keys=keys) == Totals(replayed=1, filtered=3)
        assert t.again() == ["e-3"]
        assert await t.replayed("5-0") == Totals(replayed=2)
        assert t.again() == ["e-3", "e-5", "e-6"]


async def test_copies_of_an_event_are_replayed_as_one(redis_url: str) -> None:
    async with a_topic(redis_url) as t:
        for event_id in ("e-1", "e-2", "e-1", "e-1"):
            t.put(event_id)
        t.deliver()
        assert await t.replayed(pace=free_pace()) == Totals(replayed=2, copies=2)


async def test_entries_of_other_programs_are_told(redis_url: str) -> None:
    async with a_topic(redis_url) as t:
        t.put("e-1")
        t.client.xadd(t.streams[0].stream, {"sensor": "a7"})
        t.deliver()
        assert await t.replayed() == Totals(replayed=1, foreign=1)


async def test_what_comes_while_a_replay_runs_is_not_part_of_it(redis_url: str) -> None:
    async with a_topic(redis_url) as t:
        t.put("e-1")
        t.deliver()
        replay = await t.replay()
        t.put("e-2")
        t.deliver()
        assert await replay.run(Pace(), lambda n: None) == Totals(replayed=1)


async def test_it_says_what_it_would_do_and_writes_nothing(redis_url: str) -> None:
    async with a_topic(redis_url, partitions=2, namespace="shop") as t:
        t.put("e-1")
        t.put("e-2", type_="Paid", partition=1)
        t.put("e-3", partition=1)
        t.put("e-4", partition=1)
        t.deliver(0)
        t.deliver(1)
        t.mark("e-4", "x", 1)
        before = t.everything()
        outlook = await (await t.replay()).look()
        assert outlook.totals == Totals(replayed=3, dead=1)
        assert outlook.events == {(0, "Placed"): 1, (1, "Paid"): 1, (1, "Placed"): 1}
        assert t.everything() == before
        assert await t.replayed() == Totals(replayed=3, dead=1)
        assert (t.again(0), t.again(1)) == (["e-1"], ["e-2", "e-3"])


async def test_an_ordered_group_runs_them_in_the_order_of_each_key(redis_url: str) -> None:
    app = App("bank", settings=settings(redis_url))
    moves = app.topic("moves", Moved, key="account", partitions=2)
    ran: list[tuple[str, int]] = []
    second_time = False

    @app.handler(moves, group="ledger", ordering="key", retry=Retry(base=0.01, cap=0.02))
    async def ledger(event: Moved, ctx: Context) -> None:
        if second_time and event.n % 7 == 0 and ctx.attempt == 1:
            raise ValueError("not now")
        await asyncio.sleep(0)
        ran.append((event.account, event.n))

    async with app:
        await moves.publish_many([Moved(account=f"a{n % 5}", n=n) for n in range(100)])
        await burst(app)
        ran.clear()
        second_time = True
        assert await replay_all(app, "ledger") == Totals(replayed=100)
        await burst(app)
    assert len(ran) == 100
    by_key = {f"a{k}": [n for account, n in ran if account == f"a{k}"] for k in range(5)}
    assert by_key == {f"a{k}": list(range(k, 100, 5)) for k in range(5)}


async def test_events_that_run_while_it_replays_run_once_for_it(redis_url: str) -> None:
    """A worker lives: what was copied is done before the last is copied."""
    app = App("bank", settings=settings(redis_url))
    moves = app.topic("moves", Moved, key="account", partitions=2)
    runs: Counter[int] = Counter()

    @app.handler(moves, group="mail")
    async def mail(event: Moved) -> None:
        runs[event.n] += 1

    async with app:
        await moves.publish_many([Moved(account=f"a{n}", n=n) for n in range(60)])
        async with running(app):
            await eventually(lambda: sum(runs.values()) == 60)
            replay = Replay(app.redis, app.keys, Asked(topic="moves", start=BEGIN), "mail", window_s=60)
            await replay.check()
            totals = await replay.run(free_pace(), lambda n: None)
            assert totals.replayed + totals.busy == 60
            await eventually(lambda: sum(runs.values()) == 60 + totals.replayed)
    assert max(runs.values()) == 2


# -- what is refused --------------------------------------------------------------------------------------------------


async def test_history_that_is_gone_is_refused_with_the_first_entry_that_is_left(redis_url: str) -> None:
    async with a_topic(redis_url, partitions=2) as t:
        for n in range(1, 11):
            t.put(f"e-{n}", at=f"{n}-0")
        t.put("other", at="4-0", partition=1)
        t.deliver(0)
        t.deliver(1)
        t.client.xtrim("orders.0", minid="6-0", approximate=False)
        before = t.everything()
        for start in ("begin", "1-0", "5-9"):
            with pytest.raises(Refused, match=r"orders\.0 begins with 6-0; nothing was replayed.*--from first") as told:
                await t.replay(start)
            assert "orders.1" not in str(told.value), "nothing is missing there"
        assert t.everything() == before
        left = await t.replay(FIRST)
        assert left.notes == ["what was before is gone: orders.0 begins with 6-0"]
        assert await left.run(Pace(), lambda n: None) == Totals(replayed=6)
        assert await t.replayed("6-0") == Totals(waiting=5)


async def test_a_stream_that_was_trimmed_to_nothing_is_refused_too(redis_url: str) -> None:
    async with a_topic(redis_url) as t:
        t.put("e-1", at="5-0")
        t.deliver()
        t.client.xtrim("orders", maxlen=0, approximate=False)
        with pytest.raises(Refused, match="orders holds nothing any more"):
            await t.replay("5-0")
        assert await t.replayed("5-1") == Totals()


async def test_entries_that_were_deleted_by_hand_are_told(redis_url: str) -> None:
    async with a_topic(redis_url) as t:
        for n in range(1, 4):
            t.put(f"e-{n}", at=f"{n}-0")
        t.deliver()
        t.client.xdel("orders", "2-0")
        replay = await t.replay("1-0")
        assert replay.notes == ["entries of orders up to 2-0 were deleted by hand; some may be missing here"]


async def test_projections_and_names_that_are_none_are_refused(redis_url: str) -> None:
    async with a_topic(redis_url) as t:
        await declare_group(t.door, t.keys, t.spec, "view", "projection", ["Placed"])
        with pytest.raises(Refused, match=r"view is a projection.* streamlib rebuild APP view"):
            await t.replay(group="view")
        with pytest.raises(NotFound, match="no group 'mail' of topic 'orders'; there are email, view"):
            await t.replay(group="mail")


async def test_a_group_that_was_lost_is_told(redis_url: str) -> None:
    async with a_topic(redis_url) as t:
        t.put("e-1")
        t.deliver()
        replay = await t.replay()
        t.client.xgroup_destroy("orders", GROUP)
        with pytest.raises(NotFound, match=r"lost its group 'email'.*makes it again"):
            await replay.run(Pace(), lambda n: None)
        with pytest.raises(NotFound, match="lost its group 'email'"):
            await t.replay(anew=True)
        assert t.again() == []
