"""Halted keys: an operator lets them go on, or gives the event up; said twice or too late it changes nothing."""

import asyncio

import pytest
import redis

from streamlib import App, Context, Event, Retry
from streamlib.redisio.again import Again, pack
from streamlib.redisio.dead_letter import DeadLetter, Failure, parse_dead_letter
from streamlib.redisio.delivery import Delivery
from streamlib.redisio.failures import CLIENT_ERRORS
from streamlib.redisio.key_states import forget, halted_count, key_states, parse, resume, skip
from streamlib.redisio.settler import done, retry
from tests.helpers.delivering import GROUP, WINDOW_MS, dead_letters, running, settings
from tests.helpers.owning import OwnedPartition, an_owned_partition, halted
from tests.helpers.settling import FAILURE
from tests.helpers.waiting import eventually


class Placed(Event):
    order_id: str


async def one_halted(
    p: OwnedPartition, failure: Failure = FAILURE, *, event_id: str = "e-1", key: str = "k"
) -> Delivery:
    """An event at which its key has halted."""
    p.put(event_id, key=key)
    [held] = await p.ran(await p.own())
    assert await p.settle([halted(held, failure)]) == [True]
    return held


async def resumed(p: OwnedPartition, key: str = "k") -> bool:
    return await resume(p.door, p.keys, GROUP, key)


async def skipped(p: OwnedPartition, key: str = "k") -> bool:
    return await skip(p.door, p.keys, GROUP, key, window_ms=WINDOW_MS)


async def letters(p: OwnedPartition) -> list[DeadLetter]:
    reply = await p.door.execute("XRANGE", p.keys.dead(GROUP), "-", "+")
    found = [parse_dead_letter(fields) for _, fields in reply]
    assert None not in found
    return [letter for letter in found if letter is not None]


# -- resume -------------------------------------------------------------------------------------------------------


async def test_a_resumed_key_has_all_attempts_ahead_and_is_due_now(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        held = await one_halted(p)
        assert await resumed(p)
        state = await p.noted()
        assert state is not None
        assert (state.ref, state.attempts, state.due_ms, state.halted) == (held.ref, 0, 0, False)
        assert (state.error, state.event_id) == (FAILURE.error, "")
        assert await p.claim([held]) == [("RUN", 0)]
        assert await p.settle([done(held)]) == [True]
        assert await p.noted() is None
        assert await letters(p) == []


async def test_resumed_twice_the_second_says_no_and_changes_nothing(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        await one_halted(p)
        assert await resumed(p)
        before = p.everything()
        assert not await resumed(p)
        assert not await skipped(p)
        assert p.everything() == before


async def test_a_key_that_halts_again_can_be_resumed_again(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        held = await one_halted(p)
        for _ in range(3):
            assert await resumed(p)
            await p.claim([held])
            assert await p.settle([halted(held)]) == [True]
        assert await halted_count(p.door, p.keys, GROUP) == 1


# -- skip ---------------------------------------------------------------------------------------------------------


async def test_a_skipped_event_is_a_dead_letter_as_it_would_have_been(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        held = await one_halted(p)
        assert await skipped(p)
        [letter] = await letters(p)
        assert letter.fields == held.fields
        assert (letter.reason, letter.error, letter.traceback) == (FAILURE.reason, FAILURE.error, FAILURE.traceback)
        assert (letter.attempts, letter.entry_id, letter.group, letter.consumer) == (3, held.entry_id, GROUP, "c-w1")
        assert letter.fingerprint
        assert letter.at_ms > 1_700_000_000_000, "it dies now, not when it failed"
        assert p.state("e-1") == "x"
        assert 0 < p.client.pttl(p.keys.idem(GROUP, "e-1")) <= WINDOW_MS
        assert (p.pending(), await p.noted()) == ({}, None)
        assert p.client.xlen(p.keys.stream) == 1, "an entry of the topic stays for other groups"


async def test_skipped_twice_there_is_one_dead_letter(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        await one_halted(p)
        assert sorted(await asyncio.gather(*(skipped(p) for _ in range(8)))) != [False] * 8
        assert not await skipped(p)
        assert len(await letters(p)) == 1


async def test_a_skip_of_what_was_resumed_meanwhile_gives_nothing_up(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        await one_halted(p)
        assert sorted(await asyncio.gather(resumed(p), skipped(p))) == [False, True]
        assert len(await letters(p)) + (await p.noted() is not None) == 1


async def test_an_event_that_came_again_is_skipped_with_its_own_fields_and_leaves_again(redis_url: str) -> None:
    """Replays lie in `again`, packed: the dead letter has what the topic's entry had."""
    async with an_owned_partition(redis_url) as p:
        entry_id = p.put("e-1")
        fields = (await p.door.execute("XRANGE", p.keys.stream, entry_id, entry_id))[0][1]
        body = pack(Again(entry_id, 0, 0, "replayed", fields))
        p.client.xadd(p.again, {"id": "e-1", "body": body})
        p.client.set(p.keys.idem(GROUP, "e-1"), "r", px=WINDOW_MS)
        [again, plain] = [one.delivery for one in (await p.read(await p.own())).received]
        assert await p.claim([again, plain]) == [("RUN", 0), ("DUPLICATE", 0)]
        assert await p.settle([halted(again)]) == [True]
        state = await p.noted()
        assert state is not None
        assert state.ref == f"a{again.entry_id}"
        assert await skipped(p)
        [letter] = await letters(p)
        assert (letter.fields, letter.entry_id) == (fields, entry_id)
        assert p.client.xlen(p.again) == 0


async def test_where_the_entry_is_gone_its_key_goes_on_all_the_same(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        held = await one_halted(p)
        p.client.xdel(p.keys.stream, held.entry_id)
        assert await skipped(p)
        assert (await letters(p), await p.noted(), p.pending()) == ([], None, {})


@pytest.mark.parametrize("text", ["nul\0inside", "two\nlines", "\ud800", "", "1 2 halted 3"])
async def test_whatever_the_error_said_a_skip_finds_all_the_parts(redis_url: str, text: str) -> None:
    async with an_owned_partition(redis_url) as p:
        for n, failure in enumerate((Failure("rejected", text, text, text), Failure.of("rejected", ValueError(text)))):
            held = await one_halted(p, failure, event_id=f"e-{n}")
            assert await skipped(p)
            letter = (await letters(p))[-1]
            expected = failure.error.replace("\0", "?").encode("utf-8", "replace").decode()
            assert (letter.error, letter.reason) == (expected, "rejected")
            assert (letter.attempts, letter.entry_id, letter.consumer) == (3, held.entry_id, "c-w1")
            assert p.state(f"e-{n}") == "x"


@pytest.mark.parametrize("event_id", ["two words", "line\nbreak", "ü" * 100, "x" * 200, "1 2 halted 3"])
async def test_whatever_the_event_is_called_its_own_mark_is_set(redis_url: str, event_id: str) -> None:
    async with an_owned_partition(redis_url) as p:
        await one_halted(p, event_id=event_id)
        state = await p.noted()
        assert state is not None
        assert state.event_id == event_id
        assert await skipped(p)
        assert p.state(event_id) == "x"


@pytest.mark.parametrize("key", ["two words", "nul\0inside", "line\nbreak", "", "halted", "ü" * 100])
async def test_whatever_the_key_is_called_it_can_be_resumed_and_skipped(redis_url: str, key: str) -> None:
    async with an_owned_partition(redis_url) as p:
        held = await one_halted(p, key=key)
        assert await resumed(p, key)
        await p.claim([held])
        await p.settle([halted(held)])
        assert [state.key for state in await key_states(p.door, p.keys, GROUP)] == [key]
        assert await skipped(p, key)
        assert await key_states(p.door, p.keys, GROUP) == []


async def test_a_dead_letter_stream_of_another_type_is_named_and_nothing_is_given_up(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        await one_halted(p)
        p.client.set(p.keys.dead(GROUP), "somebody's", px=60_000)
        before = p.everything()
        with pytest.raises(CLIENT_ERRORS, match="WRONGTYPE") as caught:
            await skipped(p)
        assert p.keys.dead(GROUP) in str(caught.value)
        assert p.everything() == before


# -- which keys ---------------------------------------------------------------------------------------------------


async def test_neither_is_done_to_a_key_that_only_waits_or_that_nobody_knows(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        p.put("e-1")
        [held] = await p.ran(await p.own())
        await p.settle([retry(held, delay_ms=60_000, attempts=1)])
        before = p.everything()
        for key in ("k", "nobody's"):
            assert not await resumed(p, key)
            assert not await skipped(p, key)
        assert p.everything() == before


async def test_what_somebody_else_wrote_there_is_passed_over(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        await one_halted(p)
        for n, rubbish in enumerate([b"", b"\xff 1 1 0 e", b"1-1 1 halted", b"1-1 " + b"9" * 5_000 + b" 1 0 e"]):
            p.client.hset(p.keys.key_states(GROUP), f"rubbish-{n}", rubbish)
        assert [state.key for state in await key_states(p.door, p.keys, GROUP)] == ["k"]
        assert await halted_count(p.door, p.keys, GROUP) == 1
        assert not await resumed(p, "rubbish-1")
        assert not await skipped(p, "rubbish-3")


async def test_a_halted_key_that_says_little_can_be_skipped_too(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        held = await one_halted(p)
        p.client.hset(p.keys.key_states(GROUP), "k", f"{held.ref} 3 halted 0 broken\0e-1")
        assert await skipped(p)
        [letter] = await letters(p)
        assert (letter.fields, letter.reason, letter.attempts) == (held.fields, "", 0)
        assert letter.at_ms


async def test_keys_are_told_by_name_and_counted_over_many_pages(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        for n in range(1_000):
            p.put(f"e-{n}", key=f"k{n:04}")
        reader = await p.own()
        for _ in range(2):
            held = await p.ran(reader)
            await p.settle([halted(one) if n % 2 else retry(one, delay_ms=0, attempts=1) for n, one in enumerate(held)])
        states = await key_states(p.door, p.keys, GROUP)
        assert [state.key for state in states] == [f"k{n:04}" for n in range(1_000)]
        assert sum(state.halted for state in states) == await halted_count(p.door, p.keys, GROUP) == 500


async def test_what_is_noted_of_a_lost_entry_is_forgotten_unless_it_has_changed(redis_url: str) -> None:
    async with an_owned_partition(redis_url) as p:
        await one_halted(p)
        state = await p.noted()
        assert state is not None
        await resumed(p)
        assert not await forget(p.door, p.keys, GROUP, state), "something else is noted by now"
        changed = await p.noted()
        assert changed is not None
        assert parse("k", changed.noted) == changed
        assert await forget(p.door, p.keys, GROUP, changed)
        assert await forget(p.door, p.keys, GROUP, changed), "sent twice it answers the same"
        assert not p.client.exists(p.keys.key_states(GROUP))


# -- at work ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["half a pair \udcff", "nul\0inside", "two\nlines", "x" * 100_000])
async def test_a_worker_outlives_whatever_its_handlers_say(redis_url: str, client: redis.Redis, text: str) -> None:
    """Retried, halted, resumed, halted again and skipped by a worker at work."""
    app, runs = App("shop", settings=settings(redis_url)), list[str]()
    orders = app.topic("orders", Placed, key="order_id")

    @app.handler(orders, group=GROUP, ordering="key", on_dead="block", retry=Retry(max_attempts=2, base=0.01, cap=0.01))
    async def mail(event: Placed) -> None:
        runs.append(event.order_id)
        if event.order_id == "bad":
            raise ValueError(text)

    keys = app.keys.stream("orders", 0, 1)
    async with app, running(app):
        for name in ("bad", "bad", "good"):
            await orders.publish(Placed(order_id=name))
        for total in (1, 2):
            await eventually(lambda: halted_count(app.redis, keys, GROUP))
            assert runs.count("bad") == 2 * total
            if total == 1:
                assert await resume(app.redis, keys, GROUP, "bad")
        assert await skip(app.redis, keys, GROUP, "bad", window_ms=WINDOW_MS)
        await eventually(lambda: runs.count("bad") == 6, what="the key goes on with the next")
        await eventually(lambda: halted_count(app.redis, keys, GROUP))
    assert runs.count("good") == 1
    [letter] = dead_letters(client, "orders", GROUP)
    assert letter["dl-attempts"] == "2"
    assert letter["dl-error"].startswith("ValueError: ")


async def test_a_note_that_was_lost_lets_the_event_run_again_and_is_no_skip(
    redis_url: str, client: redis.Redis
) -> None:
    """A failover can lose what was written last: the event is still pending then, and must not vanish."""
    app, runs = App("shop", settings=settings(redis_url)), list[str]()
    orders = app.topic("orders", Placed, key="order_id")
    poisoned = True

    @app.handler(orders, group=GROUP, ordering="key", on_dead="block", retry=Retry(max_attempts=1))
    async def mail(event: Placed, ctx: Context) -> None:
        if poisoned:
            raise ValueError("broken")
        runs.append(ctx.event_id)

    keys = app.keys.stream("orders", 0, 1)
    async with app, running(app):
        for event_id in ("first", "second"):
            await orders.publish(Placed(order_id="o-1"), id=event_id)
        await eventually(lambda: halted_count(app.redis, keys, GROUP))
        poisoned = False
        client.delete(keys.key_states(GROUP))
        await eventually(lambda: len(runs) == 2)
    assert runs == ["first", "second"]
    assert dead_letters(client, "orders", GROUP) == []
