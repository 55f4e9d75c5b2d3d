"""Settling: every outcome's effects and its ack are one step, done once, and only by who holds the claim."""

from collections.abc import Callable

import pytest

from streamlib.redisio.again import unpack
from streamlib.redisio.dead_letter import parse_dead_letter
from streamlib.redisio.delivery import Delivery
from streamlib.redisio.failures import CLIENT_ERRORS
from streamlib.redisio.settler import ack, bury, done, give_back, retry
from tests.helpers.delivering import GROUP, WINDOW_MS, Partition, a_partition
from tests.helpers.marks import COMPACT
from tests.helpers.servers import RedisProc
from tests.helpers.settling import EMITTED, FAILURE, KINDS, dead, outcome

CLAIMED = [kind for kind in KINDS if kind not in ("ack", "return")]
STATES = {"done": "d", "retry": "r", "back": "r", "dead": "x"}


async def returned(p: Partition) -> Delivery:
    """An event that w1 holds by its entry in `again`, which has another id than its first one, long ago."""
    p.add("e-1", entry_id="1-1")
    [held] = await p.held()
    await p.settle([give_back(held, claimed=True)])
    [again] = await p.take()
    assert await p.claim([again]) == [("RUN", 0)]
    return again


# -- what each kind writes -----------------------------------------------------------------------------------------


async def test_ack_takes_the_entry_off_the_pending_list_and_writes_nothing_else(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        await p.held("e-1")
        p.add("e-1")
        assert await p.settle([ack(one) for one in await p.take()]) == [True]
        assert len(p.pending()) == 1, "the entry that runs is still pending"
        assert p.state("e-1").startswith("c w1:")


async def test_done_marks_acks_and_emits_together(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        [held] = await p.held("e-1")
        assert await p.settle([done(held, [EMITTED, EMITTED])]) == [True]
        assert p.state("e-1") == "d"
        [mark] = p.client.keys("*:done:*:*:*") if COMPACT else [p.keys.idem(GROUP, "e-1")]
        assert 0 < p.client.pttl(mark) <= WINDOW_MS * (1.25 if COMPACT else 1)
        assert p.pending() == {}
        emitted = [fields for _, fields in p.client.xrange(p.keys.stream)][1:]
        assert emitted == [dict(zip(EMITTED[::2], EMITTED[1::2], strict=True))] * 2


@pytest.mark.row(68)
async def test_retry_schedules_the_event_with_everything_it_needs(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        [held] = await p.held("e-1")
        now_ms = _now_ms(p)
        assert await p.settle([retry(held, delay_ms=60_000, attempts=2)]) == [True]
        assert p.state("e-1") == "r"
        assert p.client.pttl(p.keys.idem(GROUP, "e-1")) > WINDOW_MS, "remembered at least until it ran again"
        [(event_id, due_ms)] = p.client.zrange(p.keys.retry(GROUP), 0, -1, withscores=True)
        assert event_id == b"e-1"
        assert now_ms + 60_000 <= due_ms <= _now_ms(p) + 60_000
        body = p.client.hget(p.keys.retry_body(GROUP), "e-1")
        kept = unpack("1-1", [b"id", b"e-1", b"body", body])
        assert (kept.entry_id, kept.attempts, kept.parked_ms, kept.why) == (held.entry_id, 2, 0, "retry")
        assert kept.fields == held.fields
        assert p.pending() == {}


@pytest.mark.parametrize("claimed", [True, False])
async def test_handing_back_lets_another_worker_run_it_at_once_with_no_attempt_spent(
    redis_url: str, claimed: bool
) -> None:
    async with a_partition(redis_url) as p:
        p.add("e-1")
        [taken] = await p.take()
        if claimed:
            await p.claim([taken])
        assert await p.settle([give_back(taken, claimed=claimed)]) == [True]
        assert p.pending() == {}
        [again] = await p.take("w2")
        assert (again.again, again.attempts, again.fields) == (True, 0, taken.fields)
        assert await p.claim([again], "w2") == [("RUN", 0)]


async def test_a_dead_letter_keeps_the_fields_and_says_why(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        [held] = await p.held("e-1")
        assert await p.settle([dead(held)]) == [True]
        assert p.state("e-1") == "x"
        assert p.pending() == {}
        assert not p.client.exists(p.keys.retry(GROUP))
        [letter] = await _letters(p)
        assert letter is not None
        assert (letter.fields, letter.reason, letter.error) == (held.fields, "max_attempts", FAILURE.error)
        assert (letter.entry_id, letter.group, letter.attempts) == (held.entry_id, GROUP, 3)
        assert letter.fingerprint


async def test_every_ending_of_a_returned_event_deletes_its_entry_in_again(redis_url: str) -> None:
    for kind in ("done", "retry", "back", "dead"):
        async with a_partition(redis_url) as p:
            again = await returned(p)
            assert await p.settle([outcome(kind, again)]) == [True]
            assert p.pending() == {}
            left = [entry_id.decode() for entry_id, _ in p.client.xrange(p.again)]
            assert again.entry_id not in left, kind
            assert len(left) == (kind == "back")
            p.client.flushall()


async def test_a_settled_suspect_is_no_suspect_any_more(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        await p.held("e-1")
        p.expire("e-1")
        taken = await p.take_over("w2")
        assert await p.claim(taken, "w2", suspects=True) == [("RUN", 1)]
        assert await p.settle([done(taken[0])], "w2") == [True]
        assert not p.client.exists(p.keys.suspect(GROUP))


# -- who may settle -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CLAIMED)
@pytest.mark.parametrize("resent", [False, True])
async def test_a_foreign_token_writes_nothing(redis_url: str, kind: str, resent: bool) -> None:
    async with a_partition(redis_url) as p:
        [mine] = await p.held("e-1")
        p.expire("e-1")
        theirs = await p.take_over("w2")
        assert await p.claim(theirs, "w2", suspects=True) == [("RUN", 1)]
        before = p.everything()
        assert await p.settle([outcome(kind, mine)], resent=resent) == [False]
        assert p.everything() == before
        assert await p.settle([done(theirs[0])], "w2") == [True], "who took it over may end it"


@pytest.mark.parametrize("kind", CLAIMED)
async def test_a_claim_that_ran_out_and_was_not_taken_still_settles(redis_url: str, kind: str) -> None:
    async with a_partition(redis_url) as p:
        [held] = await p.held("e-1")
        p.expire("e-1")
        assert await p.settle([outcome(kind, held)]) == [True]
        assert p.state("e-1") == STATES[kind]
        assert p.pending() == {}


@pytest.mark.row(21, 69)
@pytest.mark.parametrize("kind", KINDS)
async def test_sent_twice_an_outcome_counts_and_is_written_once(redis_url: str, kind: str) -> None:
    async with a_partition(redis_url) as p:
        p.add("e-1")
        deliveries = await p.take()
        if kind not in ("ack", "return"):
            await p.claim(deliveries)
        settlements = [outcome(kind, one) for one in deliveries]
        assert await p.settle(settlements) == [True]
        before = p.everything()
        assert await p.settle(settlements, resent=True) == [True]
        assert p.everything() == before


@pytest.mark.parametrize("kind", CLAIMED)
async def test_settled_twice_without_a_lost_reply_is_a_lost_lease(redis_url: str, kind: str) -> None:
    async with a_partition(redis_url) as p:
        [held] = await p.held("e-1")
        await p.settle([outcome(kind, held)])
        before = p.everything()
        assert await p.settle([outcome(kind, held)]) == [False]
        assert p.everything() == before


async def test_one_entry_twice_in_a_batch_has_one_outcome(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        [held] = await p.held("e-1")
        assert await p.settle([done(held, [EMITTED]), done(held, [EMITTED])]) == [True, True]
        assert p.client.xlen(p.keys.stream) == 2


async def test_copies_handed_back_unclaimed_come_back_as_one(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        p.add("e-1")
        p.add("e-1")
        first, second = await p.take()
        assert await p.settle([give_back(one, claimed=False) for one in (first, second)]) == [True, True]
        assert p.pending() == {}, "nothing of either copy stays behind"
        assert p.client.xlen(p.again) == 1


async def test_an_entry_that_another_worker_runs_is_not_handed_back(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        p.add("e-1")
        [mine] = await p.take()
        theirs = await p.take_over("w2")
        await p.claim(theirs, "w2")
        before = p.everything()
        assert await p.settle([give_back(mine, claimed=False)]) == [False]
        assert p.everything() == before


async def test_in_one_batch_the_lost_stay_and_the_held_are_settled(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        mine = await p.held("e-1", "e-2", "e-3")
        p.expire("e-2")
        await p.claim(await p.take_over("w2"), "w2", suspects=True)
        assert await p.settle([done(one) for one in mine]) == [True, False, True]
        assert [p.state(f"e-{n}") for n in (1, 2, 3)] == ["d", f"c w2:{mine[1].entry_id}", "d"]
        assert list(p.pending()) == [mine[1].entry_id]


# -- what goes wrong -----------------------------------------------------------------------------------------------


@pytest.mark.row(73)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_key_of_another_type_is_named_and_changes_nothing(redis_url: str, kind: str) -> None:
    async with a_partition(redis_url) as p:
        for key in _needed(p, kind):
            [held] = await p.held("e-1")
            if kind == "return":  # what is handed back so was never claimed
                p.client.delete(p.keys.idem(GROUP, "e-1"))
            p.client.delete(key)
            p.client.setrange(key, 0, "x") if key not in _strings(p) else p.client.rpush(key, "x")
            before = p.everything()
            with pytest.raises(CLIENT_ERRORS, match="WRONGTYPE") as caught:
                await p.settle([outcome(kind, held)])
            assert p.everything() == before
            assert key in str(caught.value) or key in _strings(p), "the error names the key"
            p.client.flushall()
            p.client.xgroup_create(p.keys.stream, GROUP, "0", mkstream=True)
            p.client.xgroup_create(p.again, GROUP, "0", mkstream=True)


async def test_an_outcome_does_not_suffer_from_a_key_that_it_does_not_need(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        held = await p.held("e-1", "e-2")
        for key in (p.keys.dead(GROUP), p.keys.retry(GROUP), p.keys.retry_body(GROUP)):
            p.client.set(key, "somebody's", px=60_000)
        assert await p.settle([done(held[0])]) == [True]
        with pytest.raises(CLIENT_ERRORS, match="WRONGTYPE"):
            await p.settle([dead(held[1])])


@pytest.mark.row(31)
async def test_an_entry_with_more_fields_than_a_script_can_unpack_is_buried_whole(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        fields = {f"f{n}": str(n) for n in range(5_000)}
        p.client.xadd(p.keys.stream, fields)
        [taken] = await p.take()
        await p.claim([taken])
        assert await p.settle([dead(taken)]) == [True]
        assert p.pending() == {}
        [letter] = await _letters(p)
        assert letter is not None
        assert letter.fields == taken.fields
        assert letter.reason == "max_attempts"


@pytest.mark.row(31)
async def test_five_hundred_outcomes_of_every_kind_are_one_script(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        held = await p.held(*(f"e-{n}" for n in range(500)))
        kinds = ["done", "retry", "back", "dead"] * 125
        settlements = [outcome(kind, one) for kind, one in zip(kinds, held, strict=True)]
        assert await p.settle(settlements) == [True] * 500
        assert p.pending() == {}
        assert p.client.xlen(p.keys.stream) == 500 + 125
        assert p.client.zcard(p.keys.retry(GROUP)) == p.client.hlen(p.keys.retry_body(GROUP)) == 125
        assert p.client.xlen(p.again) == p.client.xlen(p.keys.dead(GROUP)) == 125
        returning = await p.take("w2")
        assert len([one for one in returning if one.again]) == 125


@pytest.mark.row(36)
@pytest.mark.parametrize("kind", KINDS)
async def test_when_redis_is_full_what_runs_can_still_be_settled(
    own_server: Callable[..., RedisProc], kind: str
) -> None:
    server = own_server(conf={"maxmemory": "100mb"})
    async with a_partition(server.url) as p:
        p.add("e-1")
        deliveries = await p.take()
        if kind not in ("ack", "return"):
            await p.claim(deliveries)
        p.client.config_set("maxmemory", "1")
        with pytest.raises(CLIENT_ERRORS, match="maxmemory"):
            p.add("e-2")
        assert await p.settle([outcome(kind, deliveries[0])]) == [True]
        assert p.pending() == {}
        p.client.config_set("maxmemory", "0")
        assert p.state("e-1") == {**STATES, "return": "r", "ack": ""}[kind]
        assert len(await _letters(p)) == (kind == "dead")


async def test_what_is_buried_after_a_crash_keeps_its_place_in_both_streams(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        again = await returned(p)
        settlement = bury(again, FAILURE, attempts=1, group=GROUP, consumer="w1", now_ms=1)
        assert await p.settle([settlement]) == [True]
        [letter] = await _letters(p)
        assert letter is not None
        assert letter.entry_id == again.origin_id != again.entry_id


def _strings(p: Partition) -> tuple[str]:
    return (p.keys.idem(GROUP, "e-1"),)


def _needed(p: Partition, kind: str) -> list[str]:
    """The keys that an outcome of this kind, for an entry of S, writes to."""
    keys, needed = p.keys, [p.keys.suspect(GROUP), p.keys.idem(GROUP, "e-1"), p.keys.stream]
    if kind in ("back", "return"):
        needed.append(keys.again(GROUP))
    elif kind == "retry":
        needed += [keys.retry(GROUP), keys.retry_body(GROUP)]
    elif kind == "dead":
        needed.append(keys.dead(GROUP))
    return needed


def _now_ms(p: Partition) -> int:
    seconds, micros = p.client.time()
    return int(seconds) * 1000 + int(micros) // 1000


async def _letters(p: Partition) -> list:  # type: ignore[type-arg]
    reply = await p.door.execute("XRANGE", p.keys.dead(GROUP), "-", "+")
    return [parse_dead_letter(fields) for _, fields in reply]
