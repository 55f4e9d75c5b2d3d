"""Settling in ordered groups: what is held stays pending and is noted by its key; only the owner's epoch writes."""

import pytest

from streamlib.errors import Fenced
from streamlib.redisio.dead_letter import Failure
from streamlib.redisio.failures import CLIENT_ERRORS
from streamlib.redisio.settler import ack, bury, done, give_back, hold, park, retry
from tests.helpers.delivering import GROUP, WINDOW_MS
from tests.helpers.owning import OwnedPartition, an_owned_partition, halted
from tests.helpers.settling import FAILURE, dead

ODD_TEXTS = [
    "a\0b\0c",
    "two\nlines\r\n",
    "",
    " leads and ends with spaces ",
    "\udcff half a pair \ud800",
    "x" * 5_000,
    "ü€😀",
]
ODD_KEYS = ["two words", "line\nbreak", "nul\0inside", "ü€😀", "-1", "halted", "x" * 200, ""]


def raised(text: str) -> Failure:
    """The failure of a run that raised with this text."""
    return Failure.of("max_attempts", ValueError(text))


async def test_a_retry_stays_pending_and_is_noted_with_attempts_and_time(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        entry_id = p.put("e-1")
        [held] = await p.ran(await p.own())
        before = _now_ms(p)
        assert await p.settle([retry(held, delay_ms=5_000, attempts=2, error="ValueError: broken")]) == [True]
        noted = await p.noted()
        assert noted is not None
        assert (noted.key, noted.ref, noted.attempts, noted.halted) == ("k", entry_id, 2, False)
        assert (noted.error, noted.parked_ms) == ("ValueError: broken", 0)
        assert before + 5_000 <= noted.due_ms <= _now_ms(p) + 5_000
        assert p.state("e-1") == f"h{entry_id}"
        assert p.client.pttl(p.keys.idem(GROUP, "e-1")) > WINDOW_MS, "remembered at least until it runs again"
        assert list(p.pending()) == [entry_id]
        assert not p.client.exists(p.keys.retry(GROUP), p.keys.retry_body(GROUP))


async def test_what_is_held_can_be_claimed_again_by_its_entry_alone(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        p.put("e-1")
        reader = await p.own()
        [held] = await p.ran(reader)
        await p.settle([retry(held, delay_ms=0, attempts=1)])
        p.put("e-1")
        [copy] = [one.delivery for one in (await p.read(reader)).received]
        assert await p.claim([held, copy]) == [("RUN", 0), ("DUPLICATE", 0)]


async def test_a_parked_event_is_noted_with_the_time_since_when(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        p.put("e-1")
        [held] = await p.ran(await p.own())
        assert await p.settle([park(held, delay_ms=1_000, now_ms=1_700_000_000_000, error="no class")]) == [True]
        noted = await p.noted()
        assert noted is not None
        assert (noted.attempts, noted.parked_ms, noted.halted, noted.error) == (0, 1_700_000_000_000, False, "no class")


async def test_handed_back_it_is_pending_with_nothing_noted(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        entry_id = p.put("e-1")
        [held] = await p.ran(await p.own())
        assert await p.settle([give_back(held, claimed=True)]) == [True]
        assert await p.noted() is None
        assert (list(p.pending()), p.state("e-1")) == ([entry_id], f"h{entry_id}")
        assert p.client.xlen(p.again) == 0


async def test_handed_back_it_keeps_what_was_noted_before(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        p.put("e-1")
        [held] = await p.ran(await p.own())
        await p.settle([retry(held, delay_ms=0, attempts=4, error="first")])
        before = await p.noted()
        assert await p.claim([held]) == [("RUN", 0)]
        assert await p.settle([give_back(held, claimed=True)]) == [True]
        assert await p.noted() == before


@pytest.mark.parametrize("ending", ["done", "dead", "ack"])
async def test_an_ending_clears_what_was_noted_of_its_key(redis_url: str, ending: str) -> None:
    async with an_owned_partition(redis_url) as p:
        p.put("e-1")
        p.put("e-2", key="other")
        [held, other] = await p.ran(await p.own())
        await p.settle([retry(held, delay_ms=0, attempts=1), retry(other, delay_ms=0, attempts=1)])
        await p.claim([held])
        endings = {"done": done(held), "dead": dead(held), "ack": ack(held)}
        assert await p.settle([endings[ending]]) == [True]
        assert await p.noted() is None
        assert await p.noted("other") is not None, "of its own key only"
        assert list(p.pending()) == [other.entry_id]


async def test_the_end_of_another_event_of_the_key_clears_nothing(redis_url: str) -> None:
    """A copy is acknowledged while the event it is a copy of waits."""
    async with an_owned_partition(redis_url) as p:
        p.put("e-1")
        reader = await p.own()
        [held] = await p.ran(reader)
        await p.settle([retry(held, delay_ms=0, attempts=1)])
        p.put("e-1")
        [copy] = [one.delivery for one in (await p.read(reader)).received]
        assert await p.settle([ack(copy)]) == [True]
        noted = await p.noted()
        assert noted is not None
        assert noted.ref == held.ref


async def test_a_held_suspect_is_no_suspect_any_more(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        p.put("e-1")
        await p.ran(await p.own())
        p.expire("e-1")
        p.end_lease()
        [taken] = [one.delivery for one in (await p.read(await p.own("w2"))).received]
        assert await p.claim([taken], "w2", suspects=True) == [("RUN", 1)]
        assert await p.settle([retry(taken, delay_ms=0, attempts=1)], "w2") == [True]
        assert not p.client.exists(p.keys.suspect(GROUP))


# -- who may settle -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ack", "done", "dead", "retry", "halt", "back"])
@pytest.mark.parametrize("resent", [False, True])
async def test_after_another_took_the_partition_nothing_is_written(redis_url: str, kind: str, resent: bool) -> None:
    async with an_owned_partition(redis_url) as p:
        p.put("e-1")
        [held] = await p.ran(await p.own())
        outcome = {
            "ack": ack(held), "done": done(held), "dead": dead(held), "retry": retry(held, delay_ms=0, attempts=1),
            "halt": halted(held), "back": give_back(held, claimed=True),
        }[kind]  # fmt: skip
        p.end_lease()
        await p.own("w2")
        before = p.everything()
        with pytest.raises(Fenced, match="another owner"):
            await p.settle([outcome], resent=resent)
        assert p.everything() == before


async def test_an_earlier_epoch_of_the_same_worker_writes_nothing(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        p.put("e-1")
        [held] = await p.ran(await p.own())
        p.end_lease()
        await p.own()
        before = p.everything()
        with pytest.raises(Fenced):
            await p.settle([done(held)])
        with pytest.raises(Fenced):
            await p.claim([held])
        assert p.everything() == before


async def test_a_lease_that_ended_but_that_nobody_took_still_settles(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        p.put("e-1")
        [held] = await p.ran(await p.own())
        p.end_lease()
        assert await p.settle([done(held)]) == [True]


@pytest.mark.parametrize("kind", ["retry", "halt", "back", "park"])
async def test_held_twice_after_a_lost_reply_it_is_written_once(redis_url: str, kind: str) -> None:
    async with an_owned_partition(redis_url) as p:
        p.put("e-1")
        [held] = await p.ran(await p.own())
        outcome = {
            "retry": retry(held, delay_ms=60_000, attempts=1), "halt": halted(held),
            "back": give_back(held, claimed=True), "park": park(held, delay_ms=60_000, now_ms=7),
        }[kind]  # fmt: skip
        assert await p.settle([outcome]) == [True]
        before = p.everything()
        assert await p.settle([outcome], resent=True) == [True]
        assert await p.settle([outcome]) == [False], "nobody holds its claim any more"
        assert p.everything() == before


@pytest.mark.row(73)
async def test_a_key_of_another_type_is_named_and_changes_nothing(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        p.put("e-1")
        [held] = await p.ran(await p.own())
        p.client.set(p.keys.key_states(GROUP), "somebody's", px=60_000)
        before = p.everything()
        for outcome in (retry(held, delay_ms=0, attempts=1), halted(held)):
            with pytest.raises(CLIENT_ERRORS, match="WRONGTYPE") as caught:
                await p.settle([outcome])
            assert p.keys.key_states(GROUP) in str(caught.value)
            assert p.everything() == before


async def test_five_hundred_outcomes_of_many_keys_are_one_script(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        for n in range(500):
            p.put(f"e-{n}", key=f"k{n}")
        held = await p.ran(await p.own())
        outcomes = [
            [done(one), retry(one, delay_ms=0, attempts=1), halted(one), dead(one)][n % 4] for n, one in enumerate(held)
        ]
        assert await p.settle(outcomes) == [True] * 500
        assert p.client.hlen(p.keys.key_states(GROUP)) == len(p.pending()) == 250


# -- what may stand in texts and keys ----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ODD_TEXTS, ids=repr)
async def test_any_error_text_can_be_noted_and_read(redis_url: str, text: str) -> None:
    async with an_owned_partition(redis_url) as p:
        p.put("e-1")
        p.put("e-2", key="other")
        first, second = await p.ran(await p.own())
        error = raised(text).error
        assert await p.settle([retry(first, delay_ms=0, attempts=1, error=error), halted(second, raised(text))]) == [
            True,
            True,
        ]
        for key in ("k", "other"):
            noted = await p.noted(key)
            assert noted is not None
            expected = error.encode("utf-8", "replace").decode()[:500]
            assert noted.error == expected


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
async def test_texts_that_nobody_has_cleaned_do_no_harm_either(redis_url: str, text: str) -> None:
    """Failures are made in other places than by `Failure.of` too."""
    async with an_owned_partition(redis_url) as p:
        p.put("e-1")
        p.put("e-2", key="other")
        first, second = await p.ran(await p.own())
        failure = Failure("rejected", text, text, text)
        assert await p.settle([hold(first, delay_ms=0, attempts=1, text=text), halted(second, failure)]) == [True] * 2
        noted = await p.noted("other")
        assert noted is not None
        assert noted.event_id == "e-2"


@pytest.mark.parametrize("key", ODD_KEYS, ids=repr)
async def test_any_key_can_be_noted_and_cleared(redis_url: str, key: str) -> None:
    async with an_owned_partition(redis_url) as p:
        p.put("e-1", key=key)
        [held] = await p.ran(await p.own())
        await p.settle([retry(held, delay_ms=0, attempts=1)])
        noted = await p.noted(key)
        assert noted is not None
        assert (noted.key, noted.ref) == (key, held.ref)
        await p.claim([held])
        await p.settle([bury(held, FAILURE, attempts=1, group=GROUP, consumer="c", now_ms=1)])
        assert not p.client.exists(p.keys.key_states(GROUP))


def _now_ms(p: OwnedPartition) -> int:
    seconds, micros = p.client.time()
    return int(seconds) * 1000 + int(micros) // 1000
