"""Replays of a range that break off, or are asked for twice at once: each event is copied once, nothing is missed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import redis

from streamlib.errors import Fenced, RedisUnavailable, Refused, StreamlibError
from streamlib.ops.pace import Pace
from streamlib.ops.ranges import FIRST
from streamlib.redisio.group_keys import destroy
from streamlib.redisio.registry import forget_group
from streamlib.redisio.replays import ENDED_MS, KEPT_MS, Totals
from tests.helpers.replaying import GROUP, Broken, a_topic, breaks_after, free_pace
from tests.helpers.servers import RedisProc


async def test_a_replay_that_broke_off_goes_on_behind_what_was_replayed_and_has_run_since(redis_url: str) -> None:
    async with a_topic(redis_url, partitions=2) as t:
        for n in range(20):
            t.put(f"e-{n}", partition=n % 2)
        t.deliver(0)
        t.deliver(1)
        first = await t.replay()
        with pytest.raises(Broken):
            await first.run(free_pace(), breaks_after(9))
        copied = t.again(0) + t.again(1)
        assert 0 < len(copied) < 20
        for event_id in copied:  # they have run meanwhile
            t.mark(event_id, "d", int(event_id[2:]) % 2)
        t.put("late")
        t.deliver()
        second = await t.replay()
        assert second.goes_on
        assert any("was begun at 20" in text and "the range of then" in text for text in second.notes)
        assert second.totals.replayed == len(copied)
        assert await second.run(free_pace(), lambda n: None) == Totals(replayed=20)
        assert Counter(t.again(0) + t.again(1)) == {f"e-{n}": 1 for n in range(20)}


async def test_what_it_remembers_goes_away(redis_url: str, client: redis.Redis) -> None:
    async with a_topic(redis_url) as t:
        for n in range(9):
            t.put(f"e-{n}")
        t.deliver()
        replay = await t.replay()
        with pytest.raises(Broken):
            await replay.run(free_pace(), breaks_after(3))
        plan, progress = "streamlib:replay:orders:email", "{orders}:replay:email"
        for key in (plan, progress):
            assert ENDED_MS < int(client.pttl(key)) <= KEPT_MS
        await (await t.replay()).run(Pace(), lambda n: None)
        assert not client.exists(plan)
        assert 0 < int(client.pttl(progress)) <= ENDED_MS


async def test_a_replay_that_ended_can_be_asked_for_again(redis_url: str) -> None:
    async with a_topic(redis_url) as t:
        t.put("e-1")
        t.deliver()
        assert await t.replayed() == Totals(replayed=1)
        t.mark("e-1", "d")
        again = await t.replay()
        assert not again.goes_on
        assert await again.run(Pace(), lambda n: None) == Totals(replayed=1)


async def test_another_range_waits_until_the_first_has_ended_or_was_given_up(redis_url: str) -> None:
    async with a_topic(redis_url) as t:
        for n in range(1, 13):
            t.put(f"e-{n}", at=f"{n}-0")
        t.deliver()
        first = await t.replay("1-0")
        with pytest.raises(Broken):
            await first.run(free_pace(), breaks_after(3))
        with pytest.raises(Refused, match=r"--from 1-0.*run that command again.*--anew"):
            await t.replay("10-0")
        assert await (await t.replay("10-0", anew=True)).run(Pace(), lambda n: None) == Totals(replayed=3)
        assert t.again() == ["e-1", "e-2", "e-3", "e-10", "e-11", "e-12"]


async def test_a_replay_that_begins_only_after_a_later_one_has_ended_leaves_no_plan_behind(redis_url: str) -> None:
    """Else the same command would go on with it, and be told for days that its place was taken."""
    async with a_topic(redis_url) as t:
        t.put("e-1")
        t.deliver()
        late = await t.replay()
        await (await t.replay()).run(Pace(), lambda n: None)
        with pytest.raises(Fenced):
            await late.run(Pace(), lambda n: None)
        assert not (await t.replay()).goes_on


async def test_a_replay_whose_place_was_taken_stops(redis_url: str) -> None:
    async with a_topic(redis_url) as t:
        for n in range(12):
            t.put(f"e-{n}")
        t.deliver()
        replay = await t.replay()

        def another_begins(entries: int) -> None:
            if entries:
                t.client.hset("{orders}:replay:email", "run", 9_000_000_000_000_000)

        with pytest.raises(Fenced, match="--anew"):
            await replay.run(free_pace(), another_begins)
        assert t.again() == ["e-0", "e-1", "e-2"]


async def test_the_same_command_twice_at_once_is_one_replay(redis_url: str) -> None:
    async with a_topic(redis_url) as t:
        for n in range(200):
            t.put(f"e-{n}")
        t.deliver()
        with pytest.raises(Broken):
            await (await t.replay()).run(free_pace(), breaks_after(1))
        both = await asyncio.gather(*[(await t.replay()).run(free_pace(), lambda n: None) for _ in range(2)])
        assert both == [Totals(replayed=200)] * 2
        assert Counter(t.again()) == {f"e-{n}": 1 for n in range(200)}


async def test_a_full_redis_refuses_before_anything_is_written_and_it_goes_on_later(
    own_server: Callable[..., RedisProc],
) -> None:
    async with a_topic(own_server().url, retry_s=0) as t:
        for n in range(6):
            t.put(f"e-{n}")
        t.deliver()
        with pytest.raises(Broken):
            await (await t.replay()).run(free_pace(), breaks_after(3))
        before = t.everything()
        t.client.config_set("maxmemory", "1")
        with pytest.raises(RedisUnavailable, match="takes no writes now"):
            await (await t.replay()).run(free_pace(), lambda n: None)
        t.client.config_set("maxmemory", "0")
        assert t.everything().keys() == before.keys()
        assert t.again() == ["e-0", "e-1", "e-2"]
        assert await t.replayed() == Totals(replayed=6)
        assert t.again() == [f"e-{n}" for n in range(6)]


@pytest.mark.parametrize(("kept", "begins"), [(40, "161-0"), (0, "nothing")])
async def test_what_retention_removes_ahead_of_a_replay_is_told(redis_url: str, kept: int, begins: str) -> None:
    async with a_topic(redis_url) as t:
        for n in range(1, 201):
            t.put(f"e-{n}", at=f"{n}-0")
        t.deliver()

        def trim(entries: int) -> None:
            if entries:
                t.client.xtrim("orders", maxlen=kept, approximate=False)

        with pytest.raises(StreamlibError, match=rf"begins with {begins} now: entries behind 64-0 .*--from first"):
            await (await t.replay("1-0")).run(free_pace(), trim)
        assert t.again() == [f"e-{n}" for n in range(1, 65)], "what it had read by then"
        left = await t.replay(FIRST, anew=True)
        assert (await left.run(Pace(), lambda n: None)).replayed == kept


async def test_a_stream_that_goes_away_meanwhile_is_told(redis_url: str) -> None:
    async with a_topic(redis_url, partitions=2) as t:
        for n in range(1, 101):
            t.put(f"e-{n}", at=f"{n}-0")
            t.mark(f"e-{n}", "d")
        t.deliver()
        t.client.delete("orders.1")

        def delete(entries: int) -> None:
            if entries:
                t.client.delete("orders.0")

        with pytest.raises(StreamlibError, match=r"orders\.0 begins with nothing now"):
            await (await t.replay("1-0")).run(free_pace(), delete)


async def test_what_retention_removes_behind_a_replay_is_no_loss(redis_url: str) -> None:
    async with a_topic(redis_url) as t:
        for n in range(1, 201):
            t.put(f"e-{n}", at=f"{n}-0")
        t.deliver()
        replay = await t.replay("1-0", end="150-0")

        def trim(entries: int) -> None:
            t.client.xtrim("orders", minid=f"{max(replay.totals.replayed, 1)}-0", approximate=False)

        assert await replay.run(free_pace(), trim) == Totals(replayed=150)


@pytest.mark.parametrize("end", [None, "15-0"], ids=["all", "up to a moment between entries"])
async def test_what_retention_removes_of_a_partition_that_is_done_is_no_loss(redis_url: str, end: str | None) -> None:
    async with a_topic(redis_url, partitions=2) as t:
        for n in range(1, 11):
            t.put(f"e-{n}", at=f"{n}-0")
            t.put(f"f-{n}", partition=1, at=f"{n}-0")
        for n in range(20, 60):
            t.put(f"e-{n}", at=f"{n}-0", partition=1)
        if end is not None:
            t.put("later", at="30-0")
        t.deliver(0)
        t.deliver(1)
        with pytest.raises(Broken):
            await (await t.replay("1-0", end=end)).run(free_pace(), breaks_after(19))
        assert len(t.again(0)) == 10, "this partition is done"
        t.put("new", at="70-0")
        t.client.xtrim("orders.0", minid="70-0", approximate=False)
        done = await (await t.replay("1-0", end=end)).run(free_pace(), lambda n: None)
        assert done.replayed == (60 if end is None else 20)


async def test_places_are_kept_as_long_as_the_run_goes_on(redis_url: str, client: redis.Redis) -> None:
    async with a_topic(redis_url, partitions=2) as t:
        for n in range(12):
            t.put(f"e-{n}")
        t.put("f-1", partition=1)
        t.deliver(0)
        t.deliver(1)
        with pytest.raises(Broken):
            await (await t.replay()).run(free_pace(), breaks_after(7))
        done_long_ago = "{orders.1}:replay:email"
        assert t.again(1) == ["f-1"]
        client.pexpire(done_long_ago, 60_000)
        with pytest.raises(Broken):
            await (await t.replay()).run(free_pace(), breaks_after(8))
        assert int(client.pttl(done_long_ago)) > ENDED_MS


async def test_a_group_that_is_removed_takes_the_traces_of_replays_with_it(redis_url: str, client: redis.Redis) -> None:
    async with a_topic(redis_url) as t:
        for n in range(6):
            t.put(f"e-{n}")
        t.deliver()
        with pytest.raises(Broken):
            await (await t.replay()).run(free_pace(), breaks_after(3))
        await destroy(t.door, t.streams[0], GROUP)
        await forget_group(t.door, t.keys, "orders", GROUP)
        found: Any = client.keys("*replay*")
        assert found == []
