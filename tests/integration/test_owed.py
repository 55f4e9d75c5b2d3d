"""What a group has taken over and not finished: pending, returning and scheduled events, page by page."""

import pytest

from streamlib.redisio.again import Again, pack
from streamlib.redisio.failures import CLIENT_ERRORS
from streamlib.redisio.owed import Owed, pending, returning, scheduled
from streamlib.redisio.settler import give_back, retry
from tests.helpers.delivering import GROUP, a_partition

MANY = 200


async def test_pending_events_come_in_order_with_their_fields(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        held = await p.held(*(f"e-{n:03}" for n in range(MANY)))
        found = [one async for one in pending(p.door, p.keys, GROUP)]
        assert found == [
            Owed(state="pending", entry_id=one.entry_id, event_id=one.event_id, fields=list(one.fields)) for one in held
        ]
        p.add("not taken")
        assert len([one async for one in pending(p.door, p.keys, GROUP)]) == MANY


async def test_a_pending_entry_that_was_deleted_is_told_without_fields(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        first, second = await p.held("e-1", "e-2")
        p.client.xdel(p.keys.stream, first.entry_id)
        found = [one async for one in pending(p.door, p.keys, GROUP)]
        assert [(one.entry_id, one.event_id, one.fields) for one in found] == [
            (first.entry_id, first.entry_id, None),
            (second.entry_id, "e-2", second.fields),
        ]


async def test_an_entry_of_another_program_is_called_by_its_entry_id(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        p.client.xadd(p.keys.stream, {"hello": "world"})
        p.client.xadd(p.keys.stream, {"id": b"\xff"})
        await p.take()
        first, second = [one async for one in pending(p.door, p.keys, GROUP)]
        assert (first.event_id, first.fields) == (first.entry_id, [b"hello", b"world"])
        assert second.event_id == "\ufffd"


async def test_where_the_group_is_gone_nothing_is_pending(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        await p.held("e-1")
        p.client.xgroup_destroy(p.keys.stream, GROUP)
        assert [one async for one in pending(p.door, p.keys, GROUP)] == []
        p.client.delete(p.keys.stream)
        assert [one async for one in pending(p.door, p.keys, GROUP)] == []
        p.client.set(p.keys.stream, "somebody's", px=60_000)
        with pytest.raises(CLIENT_ERRORS, match="WRONGTYPE"):
            [one async for one in pending(p.door, p.keys, GROUP)]
        p.client.delete(p.keys.stream)


async def test_returning_events_are_told_delivered_or_not(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        held = await p.held(*(f"e-{n:03}" for n in range(MANY)))
        assert await p.settle([give_back(one, claimed=True) for one in held]) == [True] * MANY
        await p.take("w2", 70)
        found = [one async for one in returning(p.door, p.keys, GROUP)]
        assert [(one.state, one.entry_id, one.event_id, one.fields, one.why) for one in found] == [
            ("again", one.entry_id, one.event_id, list(one.fields), "returned") for one in held
        ]
        assert [one async for one in pending(p.door, p.keys, GROUP)] == []


async def test_scheduled_events_come_by_the_time_they_are_due(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        held = await p.held(*(f"e-{n:03}" for n in range(MANY)))
        later = [retry(one, delay_ms=60_000 + (MANY - n) * 1_000, attempts=n) for n, one in enumerate(held)]
        assert await p.settle(later) == [True] * MANY
        found = [one async for one in scheduled(p.door, p.keys, GROUP)]
        assert [(one.event_id, one.attempts, one.entry_id, one.why) for one in found] == [
            (one.event_id, n, one.entry_id, "retry") for n, one in reversed(list(enumerate(held)))
        ]
        due = [one.due_ms or 0 for one in found]
        assert due == sorted(due)
        assert due[0] > held_since(held[0].entry_id) + 60_000


async def test_what_nobody_of_us_wrote_is_told_as_it_is(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        kept = pack(Again("1-1", 3, 0, "retry", [b"id", b"e"]))
        p.client.xadd(p.again, {"odd": "one"})
        p.client.xadd(p.again, {"id": "e-1", "body": b"\xff"})
        p.client.xadd(p.again, {"id": b"\xff", "body": kept})
        odd, broken, named = [one async for one in returning(p.door, p.keys, GROUP)]
        assert (odd.event_id, odd.fields) == (odd.entry_id, [b"odd", b"one"])
        assert (broken.event_id, broken.fields) == (broken.entry_id, [b"id", b"e-1", b"body", b"\xff"])
        assert (named.event_id, named.fields) == (named.entry_id, [b"id", b"\xff", b"body", kept])
        p.client.zadd(p.keys.retry(GROUP), {"no body": 10, "broken": 20, b"\xff": 30})
        p.client.hset(p.keys.retry_body(GROUP), mapping={"broken": b"\xff", b"\xff": kept})
        no_body, broken, named = [one async for one in scheduled(p.door, p.keys, GROUP)]
        assert (no_body.event_id, no_body.fields, no_body.due_ms) == ("no body", None, 10)
        assert (broken.event_id, broken.fields, broken.due_ms) == ("broken", [b"body", b"\xff"], 20)
        assert (named.event_id, named.fields, named.due_ms) == ("\ufffd", [b"body", kept], 30)


async def test_where_there_is_nothing_nothing_is_owed(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        for walk in (pending, returning, scheduled):
            assert [one async for one in walk(p.door, p.keys, GROUP)] == []


def held_since(entry_id: str) -> int:
    return int(entry_id.partition("-")[0])
