"""Reads of an owned partition: fenced by owner and epoch, what is pending before what is new, safe to send twice."""

import pytest

from streamlib.errors import Fenced
from streamlib.redisio.again import Again, pack
from streamlib.redisio.delivering import Delivered
from streamlib.redisio.failures import CLIENT_ERRORS
from streamlib.redisio.ownership import release
from streamlib.redisio.settler import done
from tests.helpers.delivering import GROUP
from tests.helpers.owning import an_owned_partition


def ids(found: Delivered) -> list[str]:
    return [one.delivery.event_id for one in found.received]


def how(found: Delivered) -> set[str]:
    return {one.delivery.how for one in found.received}


async def test_new_entries_come_in_order_and_carry_the_epoch(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        for n in range(5):
            p.put(f"e-{n}", key=f"k{n}")
        found = await p.read(await p.own())
        assert (ids(found), how(found), found.pending) == ([f"e-{n}" for n in range(5)], {"new"}, False)
        assert [(one.delivery.epoch, one.delivery.key) for one in found.received] == [
            (p.epoch, f"k{n}") for n in range(5)
        ]
        seconds, _ = p.client.time()
        assert abs(found.now_ms - seconds * 1000) < 60_000
        assert {consumer for consumer, _ in p.pending().values()} == {"c-w1"}


async def test_at_its_end_a_read_is_empty_and_writes_nothing(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        reader = await p.own()
        assert (await p.read(reader)).empty
        p.put("e-1")
        await p.read(reader)
        assert (await p.read(reader)).empty
        assert len(p.pending()) == 1


async def test_what_an_earlier_owner_left_comes_before_what_is_new(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        for n in range(4):
            p.put(f"old-{n}")
        await p.read(await p.own())
        p.put("new")
        p.end_lease()
        reader = await p.own("w2")
        first, second, third = [await p.read(reader, 3) for _ in range(3)]
        assert (ids(first), first.pending, how(first)) == (["old-0", "old-1", "old-2"], True, {"reclaimed"})
        assert (ids(second), second.pending) == (["old-3"], True), "nothing new while anything pending is left"
        assert (ids(third), third.pending, how(third)) == (["new"], False, {"new"})
        assert {consumer for consumer, _ in p.pending().values()} == {"c-w2"}


async def test_a_read_whose_answer_was_lost_brings_the_same_again(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        for n in range(3):
            p.put(f"e-{n}")
        reader = await p.own()
        await p.read(p.reader("w1", p.epoch), 2)  # as the first sending of what follows
        p.put("e-3")
        assert ids(await p.read(reader, 2)) == ["e-0", "e-1"]
        assert ids(await p.read(reader, 2)) == ["e-2", "e-3"]


async def test_what_is_pending_with_us_is_not_read_twice(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        reader = await p.own()
        for n in range(6):
            p.put(f"e-{n}")
            assert ids(await p.read(reader)) == [f"e-{n}"]
        assert len(p.pending()) == 6


async def test_returning_events_come_with_those_of_the_topic(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        entry_id = p.put("e-1")
        fields = (await p.door.execute("XRANGE", p.keys.stream, entry_id, entry_id))[0][1]
        p.client.xadd(p.again, {"id": "replayed", "body": pack(Again(entry_id, 2, 0, "replayed", fields))})
        reader = await p.own()
        found = await p.read(reader)
        assert ids(found) == ["replayed", "e-1"]
        again = found.received[0].delivery
        assert (again.again, again.how, again.attempts, again.origin_id) == (True, "retry", 2, entry_id)
        p.end_lease()
        left = await p.read(await p.own("w2"))
        assert (ids(left), left.pending) == (["replayed", "e-1"], True)


@pytest.mark.row(58)
async def test_pending_entries_that_somebody_deleted_are_named_once(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        kept, gone = p.put("kept"), p.put("gone")
        p.client.xadd(p.again, {"id": "e", "body": "b"}, id="5-5")
        await p.read(await p.own())
        p.client.xdel(p.keys.stream, gone)
        p.client.xdel(p.again, "5-5")
        p.end_lease()
        reader = await p.own("w2")
        found = await p.read(reader)
        assert [one.delivery.entry_id for one in found.received] == [kept]
        assert {one.stream: one.entry_ids for one in found.missing} == {p.keys.stream: [gone], p.again: ["5-5"]}
        after = await p.read(reader)
        assert (after.received, after.missing, after.empty) == ([], [], True)
        assert list(p.pending()) == [kept]


async def test_a_thousand_deleted_ones_do_not_hide_the_one_behind_them(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        gone = [p.put(f"e-{n}") for n in range(1_000)]
        p.put("last")
        reader = await p.own()
        await p.read(reader, 2_000)
        p.client.xdel(p.keys.stream, *gone)
        p.end_lease()
        reader, found, missing = await p.own("w2"), list[str](), list[str]()
        while not (answer := await p.read(reader, 10)).empty:
            found += ids(answer)
            missing += [entry_id for one in answer.missing for entry_id in one.entry_ids]
        assert found == ["last"]
        assert missing == gone


@pytest.mark.parametrize("ended", ["taken", "released", "later epoch", "no owner"])
async def test_who_is_not_the_owner_in_this_epoch_is_given_nothing(redis_url: str, ended: str) -> None:
    async with an_owned_partition(redis_url) as p:
        p.put("e-1")
        reader = await p.own()
        await p.read(reader)
        p.put("e-2")
        if ended == "released":
            await release(p.door, p.keys.owner(GROUP), "w1", p.epoch)
            await p.own("w2")
        elif ended == "no owner":
            p.client.delete(p.keys.owner(GROUP))
        else:
            p.end_lease()
            await p.own("w2" if ended == "taken" else "w1")
        before = p.everything()
        with pytest.raises(Fenced, match="another owner"):
            await p.read(reader)
        assert p.everything() == before


async def test_an_entry_that_cannot_be_read_comes_with_the_reason_and_its_key(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        p.client.xadd(p.keys.stream, {"key": "k", "hello": "world"})
        p.client.xadd(p.keys.stream, {"odd": "one"})
        first, second = (await p.read(await p.own())).received
        assert (first.message, first.delivery.key) == (None, "k")
        assert (second.message, second.delivery.key) == (None, "")
        assert first.error is not None


async def test_a_wait_ends_with_what_came_to_either_stream_and_takes_nothing(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        reader = await p.own()
        lane = p.door.blocking(30_000)
        try:
            for stream, fields in ((p.keys.stream, {"id": "e"}), (p.again, {"id": "e", "body": "b"})):
                await p.read(reader)
                assert (await p.read(reader)).empty
                p.client.xadd(stream, fields)
                pending = p.pending()
                await reader.wait(lane, 30_000)
                assert p.pending() == pending
            await p.read(reader)
            assert (await p.read(reader)).empty
            await reader.wait(lane, 10)
        finally:
            await lane.close()


async def test_a_group_that_is_gone_is_said_to_be(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        reader = await p.own()
        p.client.xgroup_destroy(p.keys.stream, GROUP)
        with pytest.raises(CLIENT_ERRORS, match="NOGROUP"):
            await p.read(reader)


async def test_owners_that_follow_each_other_miss_nothing_and_end_all(redis_url: str) -> None:
    """Each owner reads some, ends the first of them and is fenced: every event is ended once, in order."""
    async with an_owned_partition(redis_url) as p:
        for n in range(40):
            p.put(f"e-{n:02}", key="k")
        ended: list[str] = []
        for turn in range(40):
            worker = f"w{turn}"
            reader = await p.own(worker)
            delivery = (await p.read(reader, 1 + turn % 3)).received[0].delivery
            await p.claim([delivery], worker)
            assert await p.settle([done(delivery)], worker) == [True]
            ended.append(delivery.event_id)
            p.end_lease()
        assert ended == [f"e-{n:02}" for n in range(40)]
        assert (await p.read(await p.own())).empty
        assert p.pending() == {}
