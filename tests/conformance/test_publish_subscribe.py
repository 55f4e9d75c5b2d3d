"""What every publish-subscribe system owes its users, one guarantee each, in every place: on one server, with
sentinels, on a cluster.

The cases are those of Watermill's universal suite, told in our words and against our public face. Handlers here
are unordered (`ordering="none"`): where a case is about ordered delivery, its docstring says what we promise.
"""

import asyncio
from collections import Counter
from functools import partial

import pytest

from streamlib import Context, Retry
from tests.conformance.places import Place
from tests.conformance.rig import GROUP, TOPIC, Note, Subscriber, make_app, publishing, received_by
from tests.helpers.waiting import eventually

OFTEN = Retry(max_attempts=1_000, base=0)


async def publish_numbers(place: Place, count: int, topic: str = TOPIC) -> list[str]:
    """Publish notes 0 ... count - 1 and return their event ids."""
    ids = [f"{topic}-{number}" for number in range(count)]
    async with publishing(place, topic) as notes:
        await asyncio.gather(*(notes.publish(Note(number=n), id=event_id) for n, event_id in enumerate(ids)))
    return ids


def stored_ids(place: Place) -> Counter[str]:
    """How often each event id lies in the topic's streams."""
    return Counter(fields[b"id"].decode() for fields in place.entries(TOPIC))


def _received(subscribers: list[Subscriber], count: int) -> bool:
    return len(received_by(*subscribers)) >= count


def _at_least(items: list[str], count: int) -> bool:
    return len(items) >= count


async def test_what_is_published_arrives_once_and_unchanged(place: Place) -> None:
    """100 events arrive, none missing, extra or altered; a stopped subscriber has left without a trace."""
    envelopes: dict[str, tuple[str, dict[str, str], int]] = {}

    async def keep(event: Note, ctx: Context) -> None:
        envelopes[ctx.event_id] = (ctx.key, dict(ctx.headers), ctx.time)

    sent = {f"e-{n}": Note(number=n, author=f"a{n}", text="täxt\n\x00 \U0001f680" * n) for n in range(100)}
    async with Subscriber(place, keep, key="author") as subscriber:
        async with publishing(place, key="author") as notes:
            for event_id, note in sent.items():
                await notes.publish(note, id=event_id, headers={"n": str(note.number), "ü": "ö"}, time_ms=note.number)
        await eventually(lambda: len(subscriber.received) >= 100)
    assert sorted(subscriber.received) == sorted(sent.items()), "once each, equal in every field"
    assert envelopes == {
        event_id: (note.author, {"n": str(note.number), "ü": "ö"}, note.number) for event_id, note in sent.items()
    }
    assert subscriber.exit_code == 0
    assert place.consumers(TOPIC, GROUP) == []
    assert place.ledger(TOPIC, GROUP, sent).settled


@pytest.mark.slow
async def test_many_publishers_and_subscribers_share_the_events(place: Place) -> None:
    """5,000 events of 50 publishers reach 50 subscribers of one group: every id, each to one of them."""
    subscribers = [Subscriber(place) for _ in range(50)]
    for subscriber in subscribers:
        await subscriber.__aenter__()

    async def publish(publisher: int) -> list[str]:
        async with publishing(place) as notes:
            ids = [f"p{publisher}-{n}" for n in range(100)]
            await asyncio.gather(*(notes.publish(Note(number=n), id=one) for n, one in enumerate(ids)))
        return ids

    sent = {one for ids in await asyncio.gather(*map(publish, range(50))) for one in ids}
    await eventually(lambda: received_by(*subscribers) >= sent, timeout=60)
    for subscriber in subscribers:
        await subscriber.__aexit__(None, None, None)
    got = Counter(one for subscriber in subscribers for one in subscriber.ids)
    assert len(sent) == 5_000
    assert got == Counter(sent), "no subscriber died: nobody saw an event that another one had"
    assert place.ledger(TOPIC, GROUP, sent).settled


async def test_many_topics_at_once_do_not_mix(place: Place) -> None:
    """20 topics of 100 events each, the same event ids on all of them: each topic's subscriber gets its own."""
    names = [f"topic-{chr(97 + n)}" for n in range(20)]
    subscribers = {name: Subscriber(place, topic=name) for name in names}
    for subscriber in subscribers.values():
        await subscriber.__aenter__()

    async def publish(name: str) -> None:
        async with publishing(place, name) as notes:
            for n in range(100):
                await notes.publish(Note(number=n, text=name), id=f"same-{n}")

    await asyncio.gather(*map(publish, names))
    await eventually(lambda: all(len(one.received) >= 100 for one in subscribers.values()), timeout=60)
    for name, subscriber in subscribers.items():
        await subscriber.__aexit__(None, None, None)
        assert sorted(subscriber.ids) == sorted(f"same-{n}" for n in range(100))
        assert {note.text for _, note in subscriber.received} == {name}


@pytest.mark.row(57)
async def test_an_event_that_failed_comes_again(place: Place) -> None:
    """The first two runs fail; all 100 events are received all the same, and the failed ones on a later attempt."""
    failed: list[str] = []
    attempts: dict[str, int] = {}

    async def fail_twice(event: Note, ctx: Context) -> None:
        attempts[ctx.event_id] = ctx.attempt
        if len(failed) < 2:
            failed.append(ctx.event_id)
            raise ConnectionError("not now")

    async with Subscriber(place, fail_twice, retry=Retry(base=0.05)) as subscriber:
        ids = await publish_numbers(place, 100)
        await eventually(lambda: len(subscriber.received) >= 100)
    assert sorted(subscriber.ids) == sorted(ids)
    again = Counter(failed)
    assert attempts == {one: 1 + again[one] for one in ids}
    assert place.ledger(TOPIC, GROUP, ids).settled


@pytest.mark.row(7)
async def test_an_event_is_not_given_to_another_while_its_handler_runs(place: Place) -> None:
    """No redelivery while the claim holds, however long the handler takes, also with an idle subscriber beside it;
    and with concurrency=1 the next event starts only after the one before has ended.

    (Watermill asks this of ordered subscribers; ours is the promise for `ordering="none"`, concurrency=1.)
    """
    starts: list[str] = []
    running: list[str] = []
    overlaps: list[str] = []

    async def take_three_leases(event: Note, ctx: Context) -> None:
        starts.append(ctx.event_id)
        overlaps.extend(running)
        running.append(ctx.event_id)
        if event.number == 0:
            await asyncio.sleep(3)
        running.remove(ctx.event_id)

    async def note(event: Note, ctx: Context) -> None:
        starts.append(ctx.event_id)

    async with Subscriber(place, take_three_leases, concurrency=1) as first:
        ids = await publish_numbers(place, 3)
        # By itself: the events lie in several partitions, and any of the others may have run before it.
        await eventually(lambda: running == ids[:1], what="the first event runs")
        async with Subscriber(place, note) as idle:
            await eventually(lambda: received_by(first, idle) == set(ids), timeout=30)
    assert sorted(starts) == sorted(ids), "each event was started once"
    assert overlaps == []
    assert place.ledger(TOPIC, GROUP, ids).settled


@pytest.mark.slow
async def test_a_subscription_goes_on_where_the_last_one_was_closed(place: Place) -> None:
    """5,000 events, read by five subscribers one after another: nothing is lost, nothing runs twice."""
    ids = await publish_numbers(place, 5_000)
    subscribers: list[Subscriber] = []
    for share in range(1, 6):
        async with Subscriber(place, worker={"batch": 50}) as subscriber:
            subscribers.append(subscriber)
            await eventually(partial(_received, subscribers, share * 1_000), timeout=60)
    got = Counter(one for subscriber in subscribers for one in subscriber.ids)
    assert got == Counter(ids), "a clean stop runs nothing twice"
    assert all(subscriber.exit_code == 0 for subscriber in subscribers)
    assert place.ledger(TOPIC, GROUP, ids).settled


async def test_subscribers_that_come_and_go_together_leave_nothing_behind(place: Place) -> None:
    """10 subscribers open and close at the same time; a fresh one then receives all 50 events."""

    async def come_and_go(_: int) -> int | None:
        async with Subscriber(place) as subscriber:
            pass
        return subscriber.exit_code

    codes = await asyncio.gather(*map(come_and_go, range(10)))
    assert codes == [0] * 10
    assert place.consumers(TOPIC, GROUP) == []
    ids = await publish_numbers(place, 50)
    async with Subscriber(place) as fresh:
        await eventually(lambda: len(fresh.received) >= 50)
    assert sorted(fresh.ids) == sorted(ids)


async def test_events_that_failed_everywhere_are_received_in_the_end(place: Place) -> None:
    """Three subscribers fail 100 runs each and close; a healthy one then receives all 50 events."""
    ids = await publish_numbers(place, 50)
    for _ in range(3):
        failures: list[str] = []

        async def fail(event: Note, ctx: Context, failures: list[str] = failures) -> None:
            failures.append(ctx.event_id)
            raise ValueError("broken subscriber")

        async with Subscriber(place, fail, retry=OFTEN) as broken:
            await eventually(partial(_at_least, failures, 100))
        assert broken.received == []
    async with Subscriber(place, retry=OFTEN) as healthy:
        await eventually(lambda: len(healthy.received) >= 50)
    assert sorted(healthy.ids) == sorted(ids)
    assert place.ledger(TOPIC, GROUP, ids).settled


async def test_events_of_one_key_start_in_the_order_they_were_published(place: Place) -> None:
    """1,000 events of 16 keys on 4 partitions: with one subscriber and concurrency=1, first runs of a key follow
    stream order.

    (Unordered handlers promise no more: an event that fails is overtaken. Order across failures and rebalancing
    is what `ordering="key"` is for.)
    """
    keys = [f"key-{n}" for n in range(16)]
    async with publishing(place, key="author", partitions=4) as notes:
        for n in range(1_000):
            await notes.publish(Note(number=n, author=keys[n % 16]))
    async with Subscriber(place, key="author", partitions=4, concurrency=1) as subscriber:
        await eventually(lambda: len(subscriber.received) >= 1_000, timeout=30)
    by_key: dict[str, list[int]] = {key: [] for key in keys}
    for _, note in subscriber.received:
        by_key[note.author].append(note.number)
    assert by_key == {key: list(range(n, 1_000, 16)) for n, key in enumerate(keys)}


@pytest.mark.slow
async def test_closing_a_publisher_loses_nothing_it_accepted(place: Place) -> None:
    """10,000 publishes side by side, and the app is closed while they are under way: each one that was accepted
    returns, and what returned is stored."""
    app = make_app(place.url)
    notes = app.topic(TOPIC, Note, partitions=place.partitions)
    await app.open()
    publishes = [asyncio.create_task(notes.publish(Note(number=n), id=f"e-{n}")) for n in range(10_000)]
    await asyncio.sleep(0)  # every publish has begun
    await app.close()
    results = await asyncio.gather(*publishes, return_exceptions=True)
    assert [one for one in results if isinstance(one, BaseException)] == []
    assert stored_ids(place) == Counter(f"e-{n}" for n in range(10_000))


async def test_two_topics_are_strangers(place: Place) -> None:
    """An event of one topic is never seen by a subscriber of the other, though their groups are called alike."""
    async with Subscriber(place, topic="left") as left, Subscriber(place, topic="right") as right:
        lefts, rights = await publish_numbers(place, 10, "left"), await publish_numbers(place, 7, "right")
        await eventually(lambda: len(left.received) >= 10 and len(right.received) >= 7)
    assert sorted(left.ids) == sorted(lefts)
    assert sorted(right.ids) == sorted(rights)


async def test_a_run_ends_with_its_subscription(place: Place) -> None:
    """A handler that is still running when the time to drain is over is cancelled; its event goes to the next
    subscriber at once, no attempt spent, and what the cancelled run had emitted is never published."""
    attempts: list[int] = []
    ended: list[str] = []

    async def hang(event: Note, ctx: Context) -> None:
        attempts.append(ctx.attempt)
        ctx.publish(emitting, Note(number=99))
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append(ctx.event_id)
            raise

    hanging = Subscriber(place, hang, worker={"drain_s": 0})
    emitting = hanging.app.topics[TOPIC]
    async with hanging:
        ids = await publish_numbers(place, 1)
        await eventually(lambda: attempts == [1])
    assert ended == ids
    assert hanging.received == []

    async def note(event: Note, ctx: Context) -> None:
        attempts.append(ctx.attempt)

    async with Subscriber(place, note) as healthy:
        await eventually(lambda: healthy.ids == ids)
    assert attempts == [1, 1]
    assert len(place.entries(TOPIC)) == 1
    assert place.ledger(TOPIC, GROUP, ids).settled


async def test_a_new_subscription_gets_what_the_stopped_one_left(place: Place) -> None:
    """A subscription is stopped in the middle of 20 slow events; a new one gets the rest, and between them each
    event ran once."""
    stopped_early = asyncio.Event()

    async def slowly(event: Note, ctx: Context) -> None:
        stopped_early.set()
        await asyncio.sleep(0.05)

    ids = await publish_numbers(place, 20)
    async with Subscriber(place, slowly, concurrency=2) as first:
        await stopped_early.wait()
    async with Subscriber(place) as second:
        await eventually(lambda: received_by(first, second) == set(ids))
    assert first.exit_code == 0
    assert len(second.received) > 0
    assert Counter(first.ids) + Counter(second.ids) == Counter(ids)
    assert place.ledger(TOPIC, GROUP, ids).settled


@pytest.mark.row(62)
async def test_a_new_group_gets_the_whole_history_however_late_it_comes(place: Place) -> None:
    """Events published long before a group existed are its first events; and so for the next new group."""
    ids = await publish_numbers(place, 100)
    for group in ("late", "later", "latest"):
        async with Subscriber(place, group=group) as subscriber:
            await eventually(partial(_received, [subscriber], 100))
        assert sorted(subscriber.ids) == sorted(ids)


@pytest.mark.row(32, 57)
@pytest.mark.slow
async def test_every_publish_that_returned_is_received_though_servers_end(own_place: Place) -> None:
    """10,000 events of 100 publishers; a server is killed at a third and another ends at half of them. Each publish
    that returned is received, and none of them is stored twice."""
    published: set[str] = set()
    third_reached, half_reached = asyncio.Event(), asyncio.Event()

    async def restart() -> None:
        await third_reached.wait()
        await asyncio.to_thread(own_place.break_down)
        await half_reached.wait()
        await asyncio.to_thread(own_place.give_way)

    async with Subscriber(own_place) as subscriber, publishing(own_place, durability=own_place.durability) as notes:

        async def publish(publisher: int) -> None:
            for n in range(100):
                event_id = f"p{publisher}-{n}"
                await notes.publish(Note(number=n), id=event_id)
                published.add(event_id)
                if len(published) == 3_333:
                    third_reached.set()
                elif len(published) == 5_000:
                    half_reached.set()

        await asyncio.gather(restart(), *map(publish, range(100)))
        await eventually(lambda: received_by(subscriber) >= published, timeout=60)
    assert len(published) == 10_000
    assert stored_ids(own_place) == Counter(published), "a resend after a lost reply never doubles"
    assert own_place.assert_nothing_lost(TOPIC, GROUP, published).settled


async def test_every_group_gets_every_event(place: Place) -> None:
    """Two groups, two subscribers in one of them: each group gets all 50 events once."""
    async with (
        Subscriber(place, group="one") as alone,
        Subscriber(place, group="two") as left,
        Subscriber(place, group="two") as right,
    ):
        ids = await publish_numbers(place, 50)
        await eventually(lambda: received_by(alone) == received_by(left, right) == set(ids))
    assert sorted(alone.ids) == sorted(ids)
    assert sorted(left.ids + right.ids) == sorted(ids)
    assert place.ledger(TOPIC, "one", ids).settled
    assert place.ledger(TOPIC, "two", ids).settled
