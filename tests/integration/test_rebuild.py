"""Generations of a view: built beside the live one, exact on old history, fenced; readers go forwards only."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest
import redis

from streamlib.errors import DeclarationError, Refused, StreamlibError
from streamlib.ops.comparing import Difference
from streamlib.ops.dropping import drop
from streamlib.ops.rebuild import Rebuild, Result, roll_back
from streamlib.ops.views import View
from streamlib.redisio import generations
from streamlib.redisio.commits import MAX_EVENTS
from streamlib.redisio.generations import Standing, ViewName
from streamlib.redisio.ownership import take
from streamlib.redisio.retention import trim_once
from streamlib.settings import RetentionSettings
from streamlib.worker.history import End, Past
from streamlib.worker.projection import Projection
from tests.helpers.projecting import TOPIC, VIEW, Balance, Moved, Opened, Rig
from tests.helpers.waiting import eventually

NAME = ViewName(TOPIC, VIEW)
NEW = f"{{{TOPIC}}}:view:{VIEW}:2"
WINDOW_MS = 600_000  # of the rig


@pytest.fixture
async def rig(redis_url: str) -> AsyncIterator[Rig]:
    async with Rig(redis_url, lease_ms=1_500) as rig:
        yield rig


def view_of(rig: Rig) -> View:
    return View(projection=rig.view, redis=rig.door, keys=rig.keys, settings=rig.settings)


async def declare(rig: Rig) -> None:
    await rig.door.execute("HSET", rig.keys.topics(), TOPIC, rig.topic.partitions, f"{TOPIC}:{VIEW}", "projection")


async def yes(_: Difference) -> bool:
    return True


async def rebuilt(rig: Rig, *, switch: bool = True) -> Result:
    async def consent(_: Difference) -> bool:
        return switch

    await declare(rig)
    return await Rebuild(view_of(rig)).run(consent, lambda done, total: None)


def add(rig: Rig, client: redis.Redis, at_ms: int, event_id: str, amount: int) -> None:
    """An entry as it was added at that time."""
    message = rig.topic.message(Moved(account="a", amount=Decimal(amount)), event_id=event_id)
    fields = rig.topic.codec.write(message)
    client.xadd(rig.stream(), dict(zip(fields[::2], fields[1::2], strict=True)), id=f"{at_ms}-*")


def open_account(rig: Rig, client: redis.Redis, at_ms: int) -> None:
    message = rig.topic.message(Opened(account="a", owner="o"), event_id="open")
    fields = rig.topic.codec.write(message)
    client.xadd(rig.stream(), dict(zip(fields[::2], fields[1::2], strict=True)), id=f"{at_ms}-*")


async def test_copies_in_old_history_are_told_by_the_time_of_the_stream(rig: Rig, client: redis.Redis) -> None:
    """A copy within the window is one; a copy a window later is folded again, as it was then; only young events get
    idempotency keys, so that history does not fill the server."""
    now_ms = int(time.time() * 1000)
    old_ms = now_ms - 100 * WINDOW_MS
    open_account(rig, client, old_ms)
    add(rig, client, old_ms + 1, "twice", 1)
    add(rig, client, old_ms + WINDOW_MS, "twice", 1)
    add(rig, client, old_ms + 5 * WINDOW_MS, "apart", 10)
    add(rig, client, old_ms + 6 * WINDOW_MS, "apart", 10)
    add(rig, client, now_ms - 1_000, "young", 100)
    done = await rebuilt(rig)
    assert (done.events, done.dead) == (6, 0)
    row = await rig.view.get("a")
    assert row is not None
    assert (row.balance, row.moves) == (Decimal(121), 4)
    assert list(client.scan_iter("*:idem:*")) == [f"{{{TOPIC}}}:idem:{VIEW}.g2:young".encode()]
    assert 0 < int(client.pttl(f"{{{TOPIC}}}:idem:{VIEW}.g2:young")) <= WINDOW_MS


async def test_what_broke_off_knows_the_copies_from_before(rig: Rig, client: redis.Redis) -> None:
    old_ms = int(time.time() * 1000) - 100 * WINDOW_MS
    open_account(rig, client, old_ms)
    add(rig, client, old_ms + 1, "e", 1)
    assert not (await rebuilt(rig, switch=False)).switched
    add(rig, client, old_ms + 2, "e", 1)
    add(rig, client, old_ms + 2 * WINDOW_MS, "e", 1)
    await rebuilt(rig)
    row = await rig.view.get("a")
    assert row is not None
    assert row.moves == 2


async def test_a_copy_that_comes_alone_is_told_however_many_commits_after_its_event(
    rig: Rig, client: redis.Redis
) -> None:
    """What is folded lies in other commits, of this rebuild and of one that broke off; no read holds both."""
    old_ms = int(time.time() * 1000) - 100 * WINDOW_MS
    open_account(rig, client, old_ms)
    add(rig, client, old_ms + 1, "before", 1)
    assert not (await rebuilt(rig, switch=False)).switched
    pipe = client.pipeline(transaction=False)
    add(rig, pipe, old_ms + 2, "before", 1)
    add(rig, pipe, old_ms + 3, "e", 10)
    for n in range(3 * MAX_EVENTS):
        add(rig, pipe, old_ms + 4, f"between-{n}", 0)
    add(rig, pipe, old_ms + 5, "e", 10)
    pipe.execute()
    await rebuilt(rig)
    row = await rig.view.get("a")
    assert row is not None
    assert (row.balance, row.moves) == (Decimal(11), 2 + 3 * MAX_EVENTS)


async def test_retention_keeps_everything_for_what_is_being_built(rig: Rig, client: redis.Redis) -> None:
    rig.publish(client, Opened(account="a", owner="o"))
    await rebuilt(rig, switch=False)
    rig.publish(client, Moved(account="a", amount=Decimal(1)))
    async with rig.running():
        await eventually(lambda: client.hget(f"{{{TOPIC}}}:view:{VIEW}:1", "read") == b"2", what="the live one is done")
    retention = RetentionSettings(max_len=1)
    kept = await trim_once(rig.door, rig.keys, rig.topic, retention)
    assert (kept.trimmed, client.xlen(rig.stream())) == (1, 1), "the new generation has one of both entries"
    client.xadd(rig.stream(), {"id": "x"})
    assert (await trim_once(rig.door, rig.keys, rig.topic, retention)).blocked_by == {f"{VIEW}.g2"}


async def test_readers_go_over_when_the_new_generation_has_all_that_they_saw(rig: Rig, client: redis.Redis) -> None:
    rig.publish(client, Opened(account="a", owner="o"))
    await rebuilt(rig, switch=False)
    async with rig.running():
        last = rig.publish(client, Moved(account="a", amount=Decimal(5)))
        await rig.view.wait_for(last, timeout=10)
        now = await view_of(rig).standing()
        assert await generations.switch(rig.door, rig.keys, NAME, now), "by hand, though it has not caught up"
        until = time.monotonic() + 20
        moves = []
        while client.hget(NEW, "read") != b"2":
            row = await rig.view.get("a")
            moves.append(row.moves if row is not None else None)
            assert time.monotonic() < until, "a worker feeds it"
        assert set(moves) == {1}, "nobody saw the view go back"
        await rig.view.wait_for(last, timeout=1)


async def test_one_that_lost_its_stream_is_not_gone_on_with(rig: Rig, client: redis.Redis) -> None:
    rig.publish(client, Opened(account="a", owner="o"))
    await rebuilt(rig, switch=False)
    assert (await Rebuild(view_of(rig)).look()).goes_on
    client.hset(NEW, "halted", "source_rolled_back")
    assert (await Rebuild(view_of(rig)).look()).starts_over
    assert (await rebuilt(rig)).live == 2
    assert not client.hexists(NEW, "halted")


def test_no_projection_is_called_like_a_generation(rig: Rig) -> None:
    with pytest.raises(DeclarationError, match="generations are called so"):
        Projection("view.g2", rig.topic, Balance, key="account", keys=lambda: rig.keys, redis=lambda: rig.door)


async def test_a_lost_register_is_made_again_as_the_workers_know_it(rig: Rig, client: redis.Redis) -> None:
    rig.publish(client, Opened(account="a", owner="o"))
    await rebuilt(rig)
    await drop(view_of(rig), await view_of(rig).standing(), 1)
    async with rig.running() as (projector,):
        await eventually(lambda: projector.owned == {0})
        client.delete("streamlib:views")
        await eventually(lambda: client.hget("streamlib:views", f"{TOPIC}:{VIEW}") == b"2")
        await rig.view.wait_for(rig.publish(client, Moved(account="a", amount=Decimal(1))), timeout=10)
    assert not list(client.scan_iter(f"*:view:{VIEW}:1*"))


async def test_a_worker_that_slept_through_the_deletion_brings_nothing_back(rig: Rig, client: redis.Redis) -> None:
    rig.publish(client, Opened(account="a", owner="o"))
    await rebuilt(rig)
    async with rig.running() as (projector,):
        await eventually(lambda: client.hget(f"{{{TOPIC}}}:view:{VIEW}:1", "read") == b"1", what="the kept one is fed")
        # All at once, as it looks to a worker that was frozen meanwhile.
        client.hdel("streamlib:views", f"{TOPIC}:{VIEW}:kept")
        for key in client.scan_iter(f"{{{TOPIC}}}:view:{VIEW}:1*"):
            client.delete(key)
        client.delete(f"{{{TOPIC}}}:owner:{VIEW}")
        await rig.view.wait_for(rig.publish(client, Moved(account="a", amount=Decimal(1))), timeout=10)
        await eventually(lambda: projector.groups == {f"{VIEW}.g2"}, what="it has left the other generation")
    assert not list(client.scan_iter(f"*:view:{VIEW}:1*"))
    assert not client.exists(f"{{{TOPIC}}}:owner:{VIEW}")


async def test_a_rebuild_that_lost_its_turn_stops(rig: Rig, client: redis.Redis) -> None:
    rig.publish(client, Opened(account="a", owner="o"))
    await declare(rig)

    async def consent(_: Difference) -> bool:
        client.delete(f"{{{TOPIC}}}:owner:{VIEW}.g2")
        assert (await take(rig.door, f"{{{TOPIC}}}:owner:{VIEW}.g2", "another", 60_000)).ours
        await asyncio.sleep(30)
        return True

    with pytest.raises(StreamlibError, match="another rebuild took over"):
        await Rebuild(view_of(rig)).run(consent, lambda done, total: None)
    assert await view_of(rig).standing() == Standing(building=2, fingerprint=Rebuild(view_of(rig))._fingerprint)


async def test_a_fold_that_halts_the_view_stops_its_rebuild_there(redis_url: str, client: redis.Redis) -> None:
    async with Rig(redis_url, lease_ms=1_500, on_error="halt") as rig:
        rig.publish(client, Opened(account="a", owner="o"))
        bad = rig.publish(client, Moved(account="nobody", amount=Decimal(1)))
        with pytest.raises(StreamlibError, match=f"partition 0 stands still: entry {bad.entry_id}"):
            await rebuilt(rig)
        assert client.hget(NEW, "read") == b"1"
        with pytest.raises(StreamlibError, match="stands still"):
            await rebuilt(rig)
        assert client.hget(NEW, "read") == b"1", "the next run went on with it"


class PastOfAnother:
    """A history whose events are of another row than it says."""

    told = "aggregates"

    def __init__(self, rig: Rig) -> None:
        self._topic = rig.topic

    async def check(self) -> None:
        """Nothing is missing."""

    async def end(self, partition: int) -> End:
        return End("5-0", 0)

    async def events(self, partition: int, end: End) -> AsyncIterator[list[Past]]:
        message = self._topic.message(Opened(account="a", owner="o"), event_id="e")
        yield [Past("1-0", self._topic.codec.write(message), "another")]


async def test_only_a_view_that_is_keyed_by_the_aggregate_can_be_made_from_aggregates(
    rig: Rig, client: redis.Redis
) -> None:
    rig.publish(client, Opened(account="a", owner="o"))
    await declare(rig)
    history: Any = PastOfAnother(rig)
    with pytest.raises(StreamlibError, match="an event of 'another' changes row 'a'"):
        await Rebuild(view_of(rig), history=history).run(yes, lambda done, total: None)
    assert not client.exists(f"{NEW}:row:a")


async def test_two_that_change_a_view_at_once_do_not_mix(rig: Rig, client: redis.Redis) -> None:
    rig.publish(client, Opened(account="a", owner="o"))
    await rebuilt(rig)
    view = view_of(rig)
    seen = await view.standing()
    assert (seen.live, seen.kept, seen.fed, seen.roles) == (2, 1, (2, 1), {1: "kept", 2: "live"})
    async with rig.running():
        await roll_back(view)
    with pytest.raises(Refused, match="somebody else"):
        await drop(view, seen, 1)
    assert await generations.swap(rig.door, rig.keys, NAME, seen), "sent twice it answers the same"
    assert (await view.standing()).live == 1


@pytest.mark.parametrize("drops", [False, True])
async def test_the_beginning_of_a_rebuild_that_arrives_after_another_has_gone_live_is_refused(
    rig: Rig, client: redis.Redis, drops: bool
) -> None:
    """Else the live generation would count as being built, and to abandon that would delete what readers see."""
    rig.publish(client, Opened(account="a", owner="o"))
    await declare(rig)
    seen = await view_of(rig).standing()
    await rebuilt(rig)
    if drops:
        await drop(view_of(rig), await view_of(rig).standing(), 1)
    assert not await generations.begin(rig.door, rig.keys, NAME, seen.live, seen.next, "a fingerprint")
    now = await view_of(rig).standing()
    assert (now.live, now.building) == (2, 0)


async def test_a_kept_generation_that_nobody_feeds_is_not_gone_back_to(
    rig: Rig, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamlib.ops.rebuild._CATCH_UP_S", 0.2)
    rig.publish(client, Opened(account="a", owner="o"))
    await rebuilt(rig)
    with pytest.raises(Refused, match="no worker feeds it"):
        await roll_back(view_of(rig))


async def test_rows_are_compared_while_both_generations_move(rig: Rig, client: redis.Redis) -> None:
    """What is only ahead in one of them is no difference; what is wrong in one is."""
    for n in range(1_200):
        rig.publish(client, Opened(account=f"a{n:04}", owner="o"))
    async with rig.running():
        await eventually(lambda: client.hget(f"{{{TOPIC}}}:view:{VIEW}:1", "read") == b"1200")
        client.delete(f"{{{TOPIC}}}:view:{VIEW}:1:row:a0007")
        client.hset(f"{{{TOPIC}}}:view:{VIEW}:1:row:a1199", "owner", "thief")
        stop = asyncio.Event()

        async def move() -> None:
            while not stop.is_set():
                await asyncio.to_thread(rig.publish, client, Moved(account="a0500", amount=Decimal(1)))

        moving = asyncio.create_task(move())
        found: list[Difference] = []

        async def consent(difference: Difference) -> bool:
            found.append(difference)
            stop.set()
            await moving
            return True

        await declare(rig)
        await Rebuild(view_of(rig)).run(consent, lambda done, total: None)
    difference: Any = found[0]
    assert (difference.differing, difference.only_new, difference.only_live) == (1, 1, 0)
    assert sorted(difference.examples) == ["a0007", "a1199"]
    assert difference.rows_new >= 1_199
    assert difference.checksum_live != difference.checksum_new
    assert (await rig.view.get("a1199")) == rig.recomputed(client)["a1199"]
