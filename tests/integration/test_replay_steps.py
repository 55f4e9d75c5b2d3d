"""One step of a replay, as a script: all or nothing, the same answer when it is sent twice, nothing behind its run."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from streamlib.codec import NativeCodec
from streamlib.errors import Fenced
from streamlib.ops.pace import Pace
from streamlib.redisio import replays
from streamlib.redisio.again import Again, unpack
from streamlib.redisio.failures import CLIENT_ERRORS
from streamlib.redisio.marks import digest_of
from streamlib.redisio.replays import Batch, Candidate, Outcome, Plan, Progress, Totals
from tests.helpers.proxy import ChaosProxy
from tests.helpers.replaying import GROUP, Topic, a_topic

KEY = "{orders}:replay:email"
PLAN = "streamlib:replay:orders:email"


def batch(t: Topic, *entry_ids: str, upto: str = "", left_out: Totals | None = None) -> Batch:
    """These entries of the first partition."""
    found = [t.client.xrange("orders", one, one)[0] for one in entry_ids]
    events = []
    for raw_id, named in found:
        fields = [part for pair in named.items() for part in pair]
        events.append(Candidate(raw_id.decode(), NativeCodec().read(raw_id.decode(), fields), fields))
    return Batch(upto or entry_ids[-1], events, left_out or Totals())


async def step(t: Topic, number: int, behind: str, what: Batch) -> tuple[bool, Progress]:
    return await replays.step(t.door, t.streams[0], GROUP, number, behind, what, window_ms=60_000)


async def test_it_copies_the_entry_as_it_is(redis_url: str) -> None:
    async with a_topic(redis_url) as t:
        entry_id = t.put("e-1")
        t.deliver()
        assert await step(t, 1, "", batch(t, entry_id)) == (True, Progress(entry_id, Totals(replayed=1)))
        [(again_id, named)] = t.client.xrange(t.streams[0].again(GROUP))
        again = unpack(again_id.decode(), [part for pair in named.items() for part in pair])
        fields = [part for pair in t.client.xrange("orders")[0][1].items() for part in pair]
        assert again == Again(entry_id, 0, 0, "replayed", fields)


@pytest.mark.parametrize("compact", [False, True])
async def test_an_event_that_has_ended_is_replayed_though_a_copy_waits_in_the_pending_list(
    redis_url: str, compact: bool
) -> None:
    """The copy would be acknowledged as a duplicate: it is no run that makes the replay needless."""
    async with a_topic(redis_url) as t:
        first, copy = t.put("e-1"), t.put("e-1")
        t.deliver(ack=False)
        t.client.xack("orders", GROUP, copy)
        if compact:
            digest = digest_of("e-1")
            t.client.hset(t.streams[0].marks(GROUP), mapping={"plan": "1.1", "count": 1})
            t.client.sadd(t.streams[0].mark_set(GROUP, 1, 0), digest)
            t.client.pexpire(t.streams[0].marks(GROUP), 60_000)
            t.client.pexpire(t.streams[0].mark_set(GROUP, 1, 0), 60_000)
        else:
            t.mark("e-1", "d")
        what = batch(t, first)
        assert await replays.look(t.door, t.streams[0], GROUP, what) == [Outcome.REPLAYED]
        assert await step(t, 1, "", what) == (True, Progress(first, Totals(replayed=1)))
        assert t.again() == ["e-1"]


@pytest.mark.row(21)
async def test_sent_twice_it_adds_once_and_answers_the_same_though_the_event_has_run(redis_url: str) -> None:
    async with a_topic(redis_url) as t:
        ids = [t.put(f"e-{n}") for n in range(3)]
        t.deliver()
        t.mark("e-1", "x")
        sent = batch(t, *ids, left_out=Totals(filtered=2, foreign=1, not_delivered=4, copies=3))
        answer = await step(t, 1, "", sent)
        total = Totals(replayed=2, dead=1, filtered=2, foreign=1, not_delivered=4, copies=3)
        assert answer == (True, Progress(ids[-1], total))
        t.mark("e-0", "d")
        before = t.everything()
        assert await step(t, 1, "", sent) == answer
        assert t.everything() == before


async def test_a_step_from_another_position_or_an_earlier_run_writes_nothing(redis_url: str) -> None:
    async with a_topic(redis_url) as t:
        ids = [t.put(f"e-{n}") for n in range(4)]
        t.deliver()
        await step(t, 5, "", batch(t, ids[0], ids[1]))
        before = t.everything()
        assert await step(t, 5, "", batch(t, ids[0])) == (False, Progress(ids[1], Totals(replayed=2)))
        assert await step(t, 5, ids[2], batch(t, ids[3])) == (False, Progress(ids[1], Totals(replayed=2)))
        with pytest.raises(Fenced):
            await step(t, 4, ids[1], batch(t, ids[2]))
        assert t.everything() == before
        assert await step(t, 6, "", batch(t, ids[2])) == (True, Progress(ids[2], Totals(replayed=1)))


async def test_a_lost_reply_does_not_double_the_step(redis_url: str, proxy: ChaosProxy) -> None:
    async with a_topic(redis_url) as t:
        for n in range(5):
            t.put(f"e-{n}")
        t.deliver()
        assert await t.replayed(end="0-1") == Totals()  # the scripts are known to the server now
        await step(t, 1, "", Batch("0-1", [], Totals()))
        async with a_topic(proxy.url) as behind:
            replay = await behind.replay()
            await replays.begin(behind.door, PLAN, _plan(replay), instead=False)
            proxy.drop_next_reply(b"EVALSHA")
            totals = await (await behind.replay()).run(Pace(), lambda n: None)
        assert proxy.struck == 1
        assert totals == Totals(replayed=5)
        assert t.again() == [f"e-{n}" for n in range(5)]


def _plan(replay: Any) -> Plan:
    plan: Plan = replay._plan
    return plan


@pytest.mark.allow_keys(KEY, "{orders}:retry:email", "{orders}:again:email", "{orders}:idem:email:e-1")
@pytest.mark.parametrize("key", [KEY, "{orders}:retry:email", "{orders}:again:email", "{orders}:idem:email:e-1"])
async def test_keys_of_another_type_stop_it_before_the_first_write(redis_url: str, key: str) -> None:
    async with a_topic(redis_url) as t:
        ids = [t.put(f"e-{n}") for n in range(2)]
        t.deliver()
        t.client.delete(key)
        t.client.sadd(key, "mine")
        before = t.everything()
        with pytest.raises(CLIENT_ERRORS, match="WRONGTYPE"):
            await step(t, 1, "", batch(t, *ids))
        assert t.everything() == before


async def test_a_run_begins_once_and_only_its_own_traces_go(redis_url: str, client: redis.Redis) -> None:
    async with a_topic(redis_url) as t:
        first = Plan(number=7, request="a", begun_ms=1, ranges=[])
        other = Plan(number=8, request="b", begun_ms=1, ranges=[])
        assert await replays.begin(t.door, PLAN, first, instead=False) == first
        assert await replays.begin(t.door, PLAN, first, instead=False) == first
        assert await replays.begin(t.door, PLAN, other, instead=False) == first
        assert await replays.begin(t.door, PLAN, other, instead=True) == other
        assert await replays.begin(t.door, PLAN, first, instead=True) == other, "an earlier one does not come back"
        await replays.end(t.door, PLAN, 7)
        assert await replays.begun(t.door, PLAN) == other
        await replays.end(t.door, PLAN, 8)
        await replays.end(t.door, PLAN, 8)
        assert await replays.begun(t.door, PLAN) is None
