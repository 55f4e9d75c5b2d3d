"""Claims: who may run an event, by the idempotency key's state (each row of the design's table)."""

import asyncio

import pytest

from streamlib.redisio.failures import CLIENT_ERRORS
from streamlib.redisio.settler import ack, bury, done, give_back, retry
from tests.helpers.delivering import GROUP, LEASE_MS, WINDOW_MS, Partition, a_partition
from tests.helpers.settling import FAILURE


async def test_an_event_nobody_knows_is_run_under_our_token(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        entry_id = p.add("e-1")
        assert await p.claim(await p.take()) == [("RUN", 0)]
        assert p.state("e-1") == f"c w1:{entry_id}"
        left_ms = p.client.pttl(p.keys.idem(GROUP, "e-1"))
        assert WINDOW_MS < left_ms <= WINDOW_MS + 10 * LEASE_MS, (
            "the claim is kept past its deadline: a suspect must be found"
        )


@pytest.mark.row(21)
async def test_a_claim_sent_twice_answers_the_same(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        for event_id in ("e-1", "e-2", "e-1"):
            p.add(event_id)
        deliveries = await p.take()
        first = await p.claim(deliveries)
        assert first == [("RUN", 0), ("RUN", 0), ("DUPLICATE", 0)]
        assert await p.claim(deliveries) == first


async def test_of_copies_in_one_batch_the_first_entry_runs(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        first = p.add("e-1")
        p.add("e-1")
        p.add("e-1")
        assert await p.claim(await p.take()) == [("RUN", 0), ("DUPLICATE", 0), ("DUPLICATE", 0)]
        assert p.state("e-1") == f"c w1:{first}"


@pytest.mark.parametrize("worker", ["w1", "w2"])
async def test_another_entry_of_a_claimed_event_is_a_duplicate_for_every_worker(redis_url: str, worker: str) -> None:
    async with a_partition(redis_url) as p:
        [held] = await p.held("e-1")
        p.add("e-1")
        assert await p.claim(await p.take(worker), worker) == [("DUPLICATE", 0)]
        assert p.state("e-1") == f"c w1:{held.entry_id}"


async def test_another_entry_stays_a_duplicate_when_the_claim_has_run_out(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        await p.held("e-1")
        p.expire("e-1")
        p.add("e-1")
        assert await p.claim(await p.take("w2"), "w2", suspects=True) == [("DUPLICATE", 0)]


async def test_an_entry_that_another_worker_holds_is_busy_until_its_deadline(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        [held] = await p.held("e-1")
        taken = await p.take_over("w2")
        for suspects in (False, True):
            [(verdict, left_ms)] = await p.claim(taken, "w2", suspects=suspects)
            assert verdict == "BUSY"
            assert 0 < left_ms <= LEASE_MS
        assert p.state("e-1") == f"c w1:{held.entry_id}"
        assert not p.client.exists(p.keys.suspect(GROUP)), "a live worker is no suspect"


@pytest.mark.row(67)
async def test_a_claim_that_ran_out_is_told_before_it_is_taken_over_and_counted(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        [held] = await p.held("e-1")
        p.expire("e-1")
        taken = await p.take_over("w2")
        assert await p.claim(taken, "w2") == [("SUSPECT", 0)]
        assert p.state("e-1") == f"c w1:{held.entry_id}", "the look alone takes nothing"
        assert await p.claim(taken, "w2", suspects=True) == [("RUN", 1)]
        assert await p.claim(taken, "w2", suspects=True) == [("RUN", 1)], "sent twice it is counted once"
        p.expire("e-1")
        assert await p.claim(await p.take_over("w3"), "w3", suspects=True) == [("RUN", 2)]
        assert p.state("e-1") == f"c w3:{held.entry_id}"


async def test_our_own_claim_may_run_again_after_its_deadline(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        deliveries = await p.held("e-1")
        p.expire("e-1")
        assert await p.claim(deliveries) == [("RUN", 0)]
        assert not p.client.exists(p.keys.suspect(GROUP))


@pytest.mark.row(68)
async def test_after_a_retry_was_scheduled_only_the_entry_in_again_runs(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        [held] = await p.held("e-1")
        assert await p.settle([retry(held, delay_ms=60_000, attempts=1)]) == [True]
        p.add("e-1")
        assert await p.claim(await p.take()) == [("DUPLICATE", 0)]
        assert p.state("e-1") == "r"


async def test_an_event_handed_back_is_claimed_by_its_entry_in_again(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        [held] = await p.held("e-1")
        assert await p.settle([give_back(held, claimed=True)]) == [True]
        p.add("e-1")
        returned, copy = await p.take("w2")
        assert returned.again
        assert (returned.event_id, returned.origin_id) == ("e-1", held.entry_id)
        assert await p.claim([copy, returned], "w2") == [("DUPLICATE", 0), ("RUN", 0)]
        assert p.state("e-1") == f"c w2:a{returned.entry_id}"


@pytest.mark.row(4)
async def test_an_entry_of_again_that_another_worker_has_settled_is_a_duplicate(redis_url: str) -> None:
    """Else the event is lost: its next entry is taken for a copy of one that is not there any more."""
    async with a_partition(redis_url) as p:
        await p.settle([give_back(one, claimed=True) for one in await p.held("e-1")])
        [slow] = await p.take("w1")
        [taken] = await p.take_over("w2")
        assert await p.claim([taken], "w2") == [("RUN", 0)]
        await p.settle([give_back(taken, claimed=True)], "w2")
        assert await p.claim([slow], "w1") == [("DUPLICATE", 0)]
        await p.settle([ack(slow)], "w1")
        assert p.state("e-1") == "r", "it still waits for whoever reads its next entry"
        assert await p.claim(await p.take("w3"), "w3") == [("RUN", 0)]


@pytest.mark.parametrize("mark", ["d", "x"])
async def test_an_event_that_has_ended_is_a_duplicate_from_either_stream(redis_url: str, mark: str) -> None:
    async with a_partition(redis_url) as p:
        [held] = await p.held("e-1")
        ending = done(held) if mark == "d" else bury(held, FAILURE, attempts=1, group=GROUP, consumer="c", now_ms=1)
        assert await p.settle([ending]) == [True]
        p.add("e-1")
        p.client.xadd(p.again, {"id": "e-1", "body": b"whatever"})
        again, new = await p.take()
        assert await p.claim([new]) == [("DUPLICATE", 0)]
        assert p.state("e-1") == mark
        again.event_id = "e-1"
        assert await p.claim([again]) == [("DUPLICATE", 0)]


async def test_ids_of_the_two_streams_may_be_equal_without_harm(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        p.add("e-1", entry_id="1-1")  # long ago: the one that returns has a later id, which the twin is given
        [held] = await p.held()
        await p.settle([give_back(held, claimed=True)])
        [returned] = await p.take("w2")
        p.add("e-1", entry_id=returned.entry_id)
        [copy] = await p.take("w2")
        assert copy.entry_id == returned.entry_id
        assert await p.claim([returned, copy], "w2") == [("RUN", 0), ("DUPLICATE", 0)]


@pytest.mark.row(63)
async def test_one_of_twenty_workers_gets_an_entry_that_ran_out(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        await p.held("e-1")
        p.expire("e-1")
        taken = await p.take_over("w0")
        answers = await asyncio.gather(*(p.claim(taken, f"w{n}", suspects=True) for n in range(20)))
        verdicts = sorted(verdict for [(verdict, _)] in answers)
        assert verdicts == ["BUSY"] * 19 + ["RUN"]
        assert p.client.hvals(p.keys.suspect(GROUP)) == [b"1"]


async def test_five_hundred_entries_are_one_script(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        deliveries = await p.held(*(f"e-{n}" for n in range(500)))
        assert len(deliveries) == 500
        assert p.state("e-499") == f"c w1:{deliveries[-1].entry_id}"


async def test_a_key_of_another_type_is_named_and_nothing_is_claimed(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        p.add("e-1")
        deliveries = await p.take()
        p.client.set(p.keys.suspect(GROUP), "somebody's", px=60_000)
        await _refused(p, deliveries, p.keys.suspect(GROUP))
        p.client.delete(p.keys.suspect(GROUP))
        assert await p.claim(deliveries) == [("RUN", 0)]


async def _refused(p: Partition, deliveries: list, key: str) -> None:  # type: ignore[type-arg]
    before = p.everything()
    with pytest.raises(CLIENT_ERRORS, match="WRONGTYPE") as caught:
        await p.claim(deliveries)
    assert key in str(caught.value)
    assert p.everything() == before
