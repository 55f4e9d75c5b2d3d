"""How the owner of a partition reads: in batches, also while more waits in memory than can run."""

import asyncio
from typing import Any

import pytest
import redis

from streamlib import App, Event, Reject
from streamlib.errors import StreamlibError
from streamlib.worker.partition_lease import PartitionLease
from streamlib.worker.unit import GroupUnit
from tests.helpers.delivering import Running, burst, running, settings
from tests.helpers.waiting import eventually

EVENTS, BATCH = 2_000, 100


class Moved(Event):
    account: str
    n: int


async def test_a_backlog_is_read_in_batches_and_not_by_ones(redis_url: str, client: redis.Redis) -> None:
    app = App("bank", settings=settings(redis_url, batch=BATCH))
    moves = app.topic("moves", Moved, key="account")
    done: list[int] = []

    @app.handler(moves, group="ledger", ordering="key")
    async def move(event: Moved) -> None:
        done.append(event.n)

    def reads() -> int:
        stats: Any = client.info("commandstats")
        found: int = stats.get("cmdstat_xautoclaim", {"calls": 0})["calls"] // 2  # a read looks into both streams
        return found

    async with app:
        await moves.publish_many([Moved(account=f"a{n % 16}", n=n) for n in range(EVENTS)])
        before = reads()
        async with running(app):
            await eventually(lambda: len(done) == EVENTS, timeout=60)
        assert reads() - before < 6 * EVENTS / BATCH


async def unit_of(one: Running) -> GroupUnit:
    """The only group that this worker works for."""
    await eventually(lambda: one.worker._units)
    (unit,) = one.worker._units
    return unit


async def test_what_waited_for_a_renewal_starts_after_it_though_there_is_no_room_to_read(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the lease may have run out nothing starts; nothing but time tells when it was renewed."""
    app = App("bank", settings=settings(redis_url, batch=8))
    moves = app.topic("moves", Moved, key="account")
    done: list[int] = []
    renewed = False
    monkeypatch.setattr(PartitionLease, "fresh", lambda lease: lease.held and renewed)

    @app.handler(moves, group="ledger", ordering="key")
    async def move(event: Moved) -> None:
        done.append(event.n)

    async with app:
        await moves.publish_many([Moved(account=f"a{n}", n=n) for n in range(20)])
        async with running(app) as one:
            unit = await unit_of(one)
            await eventually(lambda: len(unit.intake.inbox or ()) == 8, what="as many as a batch are read")
            await eventually(lambda: unit.polled_within(0.0), what="there is no room to read more")
            assert not done
            renewed = True
            await eventually(lambda: sorted(done) == list(range(20)))


async def test_an_owner_whose_handlers_are_slow_is_ready_though_it_reads_nothing(redis_url: str) -> None:
    app = App("bank", settings=settings(redis_url, batch=4, concurrency=2))
    moves = app.topic("moves", Moved, key="account")
    may_end = asyncio.Event()
    done: list[int] = []

    @app.handler(moves, group="ledger", ordering="key")
    async def move(event: Moved) -> None:
        await may_end.wait()
        done.append(event.n)

    async with app:
        await moves.publish_many([Moved(account=f"a{n}", n=n) for n in range(20)])
        async with running(app) as one:
            unit = await unit_of(one)
            await eventually(lambda: len(unit.intake.inbox or ()) == 4, what="as many as a batch are read")
            await eventually(lambda: unit.polled_within(0.0), what="it does not want to read")
            assert not done
            may_end.set()
            await eventually(lambda: len(done) == 20)
            await eventually(lambda: not unit.polled_within(0.0), what="it reads again")


async def test_a_burst_ends_though_more_waits_behind_a_halted_key_than_is_read(redis_url: str) -> None:
    app = App("bank", settings=settings(redis_url, parked=50, batch=20))
    moves = app.topic("moves", Moved, key="account", partitions=2)
    done: list[int] = []

    @app.handler(moves, group="ledger", ordering="key", on_dead="block")
    async def move(event: Moved) -> None:
        if event.account == "bad":
            raise Reject("cannot be")
        done.append(event.n)

    async with app:
        await moves.publish_many([Moved(account=f"a{n}", n=n) for n in range(30)])
        await moves.publish_many([Moved(account="bad", n=n) for n in range(200)])
        with pytest.raises(StreamlibError, match=r"key 'bad' of partition . is halted"):
            await burst(app, timeout_s=20)
    assert sorted(done) == list(range(30))
