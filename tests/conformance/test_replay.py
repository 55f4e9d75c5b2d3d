"""Replays of a range, in every place: on one server, with sentinels, on a cluster."""

from collections import Counter

from streamlib import Context
from streamlib.ops.pace import Pace
from streamlib.ops.ranges import BEGIN, Asked
from streamlib.ops.replay import Replay
from streamlib.redisio.replays import Totals
from tests.conformance.places import Place
from tests.conformance.rig import GROUP, TOPIC, Note, Subscriber, publishing
from tests.helpers.waiting import eventually


async def test_a_range_runs_again_once_for_its_group_while_workers_run_and_others_do_not_notice(place: Place) -> None:
    """120 events of 12 keys; half the keys are replayed in small batches, under a live worker of each group."""
    runs: Counter[tuple[str, str]] = Counter()
    attempts: set[int] = set()

    async def handle(event: Note, ctx: Context) -> None:
        runs[ctx.group, ctx.event_id] += 1
        attempts.add(ctx.attempt)

    keys = [f"author-{n}" for n in range(12)]
    async with (
        publishing(place, key="author", partitions=4) as notes,
        Subscriber(place, handle, key="author", partitions=4) as reader,
        Subscriber(place, handle, key="author", partitions=4, group="others"),
    ):
        made = [Note(number=n, author=keys[n % 12]) for n in range(120)]
        await notes.publish_many(made)
        await eventually(lambda: len(runs) == 240, timeout=30)
        asked = Asked(topic=TOPIC, start=BEGIN, keys=frozenset(keys[:6]))

        async def all_ended() -> bool:
            replay = Replay(reader.app.redis, reader.app.keys, asked, GROUP, window_s=3_600)
            await replay.check()
            return (await replay.look()).totals.replayed == 60

        await eventually(all_ended, timeout=30)
        replay = Replay(reader.app.redis, reader.app.keys, asked, GROUP, window_s=3_600)
        await replay.check()
        assert await replay.run(Pace(500), lambda n: None) == Totals(replayed=60, filtered=60)
        await eventually(lambda: runs.total() == 300, timeout=30)
    again = {event_id for (group, event_id), count in runs.items() if count == 2 and group == GROUP}
    assert len(again) == 60
    assert {note.author for event_id, note in reader.received if event_id in again} == set(keys[:6])
    assert all(count == 1 for (group, _), count in runs.items() if group == "others")
    assert attempts == {1}
