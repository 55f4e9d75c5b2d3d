"""An ending and the claim of what follows it in its key are one script: both or neither, and only where it is plain."""

import pytest

from streamlib.errors import Fenced
from streamlib.redisio.delivery import Delivery
from streamlib.redisio.settler import Settled, Settlement, ack, bury, done, give_back, retry, settle
from tests.helpers.delivering import GROUP, LEASE_MS, WINDOW_MS
from tests.helpers.owning import OwnedPartition, an_owned_partition, halted
from tests.helpers.settling import FAILURE


async def settled(
    p: OwnedPartition, endings: list[tuple[Settlement, Delivery | None]], worker: str = "w1", *, resent: bool = False
) -> list[Settled]:
    return await settle(
        p.door,
        [ending for ending, _ in endings],
        group=GROUP,
        worker_id=worker,
        window_ms=WINDOW_MS,
        resent=resent,
        successors=[successor for _, successor in endings],
        lease_ms=LEASE_MS,
    )


async def two(p: OwnedPartition, first: str = "e-1", second: str = "e-2") -> tuple[Delivery, Delivery]:
    """Two events of a key, read; the first one is claimed."""
    p.put(first)
    p.put(second)
    one, other = [found.delivery for found in (await p.read(await p.own())).received]
    assert await p.claim([one]) == [("RUN", 0)]
    return one, other


def claimed_by(p: OwnedPartition, delivery: Delivery, worker: str = "w1") -> str:
    """The state of a claim of the owner."""
    return f"c {worker}@{p.epoch}:{delivery.ref}"


@pytest.mark.parametrize("kind", ["done", "ack", "dead"])
async def test_an_ending_claims_its_successor(redis_url: str, kind: str) -> None:
    async with an_owned_partition(redis_url) as p:
        one, other = await two(p)
        dead = bury(one, FAILURE, attempts=1, group=GROUP, consumer="c", now_ms=1)
        assert await settled(p, [({"done": done(one), "ack": ack(one), "dead": dead}[kind], other)]) == [
            Settled.LEADS_ON
        ]
        assert p.state("e-2") == claimed_by(p, other)
        assert list(p.pending()) == [other.ref]
        assert p.client.pttl(p.keys.idem(GROUP, "e-2")) > LEASE_MS * 9, "a claim like every other"
        assert await p.settle([done(other)]) == [True]
        assert not p.pending()


async def test_what_holds_its_key_claims_nothing(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        for ending in (
            lambda one: retry(one, delay_ms=0, attempts=1),
            halted,
            lambda one: give_back(one, claimed=True),
        ):
            p.client.flushall()
            for stream in (p.keys.stream, p.again):
                p.client.xgroup_create(stream, GROUP, "0", mkstream=True)
            one, other = await two(p)
            assert await settled(p, [(ending(one), other)]) == [Settled.COUNTS]
            assert p.state("e-2") == ""


async def test_a_lost_ending_claims_nothing(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        one, other = await two(p)
        p.client.delete(p.keys.idem(GROUP, "e-1"))
        assert await settled(p, [(done(one), other)]) == [Settled.LOST]
        assert p.state("e-2") == ""


async def test_who_lost_the_partition_claims_nothing(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        one, other = await two(p)
        p.end_lease()
        await p.own("w2")
        before = p.everything()
        with pytest.raises(Fenced):
            await settled(p, [(done(one), other)])
        assert p.everything() == before


async def test_sent_twice_it_answers_the_same(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        one, other = await two(p)
        for resent in (False, True):
            assert await settled(p, [(done(one), other)], resent=resent) == [Settled.LEADS_ON]
            assert p.state("e-1") == "d"
            assert p.state("e-2") == claimed_by(p, other)


@pytest.mark.parametrize("state", ["d", "x", "r", "c1:w9@1:{ref}", "c1:w1@1:{ref}", "h0-1"])
async def test_what_more_is_known_of_a_successor_its_own_claim_tells(redis_url: str, state: str) -> None:
    async with an_owned_partition(redis_url) as p:
        one, other = await two(p)
        p.client.set(p.keys.idem(GROUP, "e-2"), state.format(ref=other.ref), px=WINDOW_MS)
        assert await settled(p, [(done(one), other)]) == [Settled.COUNTS]
        assert p.client.get(p.keys.idem(GROUP, "e-2")).decode() == state.format(ref=other.ref)


async def test_what_was_handed_back_can_be_claimed_as_a_successor(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        one, other = await two(p)
        await p.claim([other])
        assert await p.settle([give_back(other, claimed=True)]) == [True]
        assert await settled(p, [(done(one), other)]) == [Settled.LEADS_ON]


async def test_a_copy_of_the_very_event_is_no_successor(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        one, copy = await two(p, "e-1", "e-1")
        assert await settled(p, [(done(one), copy)]) == [Settled.COUNTS]
        assert await p.claim([copy]) == [("DUPLICATE", 0)]


async def test_a_successor_of_a_wrong_type_does_not_keep_the_ending_from_being_recorded(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        one, other = await two(p)
        p.client.rpush(p.keys.idem(GROUP, "e-2"), "a list")
        assert await settled(p, [(done(one), other)]) == [Settled.COUNTS]
        assert p.state("e-1") == "d"
        p.client.delete(p.keys.idem(GROUP, "e-2"))


async def test_without_memory_the_ending_is_recorded_all_the_same(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        one, other = await two(p)
        await settled(p, [(done(one), None)])
        p.client.config_set("maxmemory", "1")
        try:
            answers = await settled(p, [(done(one), other)], resent=True)
        finally:
            p.client.config_set("maxmemory", "0")
        assert answers == [Settled.COUNTS], "nothing was written before the claim, so it was refused"
        assert p.state("e-2") == ""


async def test_in_one_batch_each_ending_has_its_own_successor_or_none(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        for n in range(3):
            for key in ("a", "b", "c"):
                p.put(f"{key}{n}", key)
        found = {one.delivery.event_id: one.delivery for one in (await p.read(await p.own())).received}
        firsts = [found[key + "0"] for key in ("a", "b", "c")]
        await p.claim(firsts)
        endings: list[tuple[Settlement, Delivery | None]] = [
            (done(firsts[0]), found["a1"]),
            (done(firsts[1]), None),
            (retry(firsts[2], delay_ms=0, attempts=1), found["c1"]),
        ]
        assert await settled(p, endings) == [Settled.LEADS_ON, Settled.COUNTS, Settled.COUNTS]
        assert [p.state(name) for name in ("a1", "b1", "c1")] == [claimed_by(p, found["a1"]), "", ""]
