"""Who works on which partition: workers that live share them out; refusing, draining, dying and leaving move them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from streamlib import App, Event, Settings
from streamlib.keys import Keys
from streamlib.metrics.worker import WorkerMetrics
from streamlib.redisio import members
from streamlib.redisio.connection import RedisDoor
from streamlib.settings import WorkerSettings
from streamlib.topic import TopicSpec
from streamlib.worker.loops import end, repeat
from streamlib.worker.ownership import Ownership, Shares
from streamlib.worker.partition_lease import PartitionLease
from tests.helpers.publishing import open_door
from tests.helpers.waiting import eventually

KEYS = Keys()
PARTITIONS = 4
ALL = frozenset(range(PARTITIONS))
PLACE = "orders:ledger"


class Placed(Event):
    order_id: str


def topic() -> TopicSpec:
    return App("shop", settings=Settings()).topic("orders", Placed, key="order_id", partitions=PARTITIONS).spec


async def nothing() -> None:
    """Nothing is healed here."""


class Process:
    """One worker process, as far as partitions are concerned: it beats, owns what is its share, and gives it up."""

    def __init__(self, door: RedisDoor, worker_id: str, lease_ms: int) -> None:
        self.ownership = Ownership(
            door, KEYS, WorkerSettings(lease_ms=lease_ms), worker_id=worker_id, metrics=WorkerMetrics()
        )
        self.shares: Shares = self.ownership.shares(topic(), "ledger", "ordered")
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> "Process":
        beating = repeat("membership", self.ownership.run_once, heal=nothing, on_error=lambda kind, error: None)
        self._tasks = [
            asyncio.create_task(beating),
            *(asyncio.create_task(self._own(one)) for one in self.shares.leases),
        ]
        return self

    async def _own(self, lease: PartitionLease) -> None:
        while await lease.acquire(self._stop):
            await lease.leaving.wait()
            await lease.release()

    @property
    def owned(self) -> frozenset[int]:
        return self.shares.owned

    async def die(self) -> None:
        """It stops without a word."""
        await end(self._tasks)

    async def stop(self) -> None:
        self.ownership.drain()
        await eventually(lambda: not self.owned)
        await end(self._tasks)
        await self.ownership.leave()


Start = Callable[..., Process]


@pytest.fixture
async def start(redis_url: str) -> AsyncIterator[Start]:
    async with open_door(redis_url) as door:
        started: list[Process] = []

        def one(worker_id: str, *, lease_ms: int = 4_000) -> Process:
            started.append(Process(door, worker_id, lease_ms).start())
            return started[-1]

        yield one
        for process in started:
            await process.die()


async def even(*processes: Process) -> list[frozenset[int]]:
    """Wait until every partition has one owner and nobody has more than one above another."""

    def shared_out() -> list[frozenset[int]]:
        owned = [process.owned for process in processes]
        sizes = [len(one) for one in owned]
        fits = sum(sizes) == PARTITIONS and frozenset().union(*owned) == ALL and max(sizes) - min(sizes) <= 1
        return owned if fits else []

    return await eventually(shared_out)


async def test_one_worker_owns_all_and_two_have_half_each(start: Start) -> None:
    first = start("w1")
    await eventually(lambda: first.owned == ALL)
    second = start("w2")
    await even(first, second)
    assert first.shares.mine == first.owned
    assert second.shares.mine == second.owned


async def test_more_workers_than_partitions_leave_some_without(start: Start) -> None:
    processes = [start(f"w{n}") for n in range(6)]
    await even(*processes)
    assert sorted(len(one.owned) for one in processes) == [0, 0, 1, 1, 1, 1]


async def test_who_drains_gives_all_to_the_others(start: Start) -> None:
    first, second = start("w1"), start("w2")
    await even(first, second)
    await first.stop()
    await eventually(lambda: second.owned == ALL)
    assert first.owned == frozenset()


@pytest.mark.row(3)
async def test_who_dies_is_missed_and_its_partitions_are_taken(start: Start) -> None:
    first, second = start("w1", lease_ms=1_000), start("w2", lease_ms=1_000)
    await even(first, second)
    await first.die()
    await eventually(lambda: second.owned == ALL)
    assert second.shares.mine == ALL


async def test_what_one_refuses_another_takes_and_accepted_it_comes_back(start: Start) -> None:
    first, second = start("w1"), start("w2")
    before = await even(first, second)
    number = min(first.owned)
    first.shares.refuse(number)
    assert first.shares.partition(number).leaving.is_set(), "at once, before anybody else knows"
    await eventually(lambda: number in second.owned)
    assert number not in first.owned
    await even(first, second)
    first.shares.accept(number)
    await eventually(lambda: [first.owned, second.owned] == before)


async def test_what_all_refuse_nobody_owns_until_one_accepts(start: Start) -> None:
    first, second = start("w1"), start("w2")
    await even(first, second)
    for process in (first, second):
        process.shares.refuse(2)
    await eventually(lambda: first.owned | second.owned == ALL - {2})
    assert first.shares.partition(2).standby, "nothing is left to do there: a burst may end"
    second.shares.accept(2)
    await eventually(lambda: 2 in second.owned)


async def test_refused_twice_and_accepted_unasked_nothing_is_told_anew(redis_url: str) -> None:
    async with open_door(redis_url) as door:
        ownership = Ownership(door, KEYS, WorkerSettings(), worker_id="w1", metrics=WorkerMetrics())
        shares = ownership.shares(topic(), "ledger", "ordered")
        await ownership.run_once()

        async def changes_after(act: Callable[[int], None]) -> int:
            act(1)
            await ownership.run_once()
            return await members.changes(door, KEYS)

        assert [await changes_after(act) for act in (shares.accept, shares.refuse, shares.refuse, shares.accept)] == [
            1, 2, 2, 3,
        ]  # fmt: skip
        await ownership.leave()


async def test_a_worker_tells_its_groups_and_what_it_cannot_serve(redis_url: str) -> None:
    async with open_door(redis_url) as door:
        ownership = Ownership(door, KEYS, WorkerSettings(), worker_id="w1", metrics=WorkerMetrics())
        shares = ownership.shares(topic(), "ledger", "ordered")
        assert ownership.shares(topic(), "ledger", "ordered") is shares
        ownership.appear("orders", "email")
        shares.refuse(3)
        shares.refuse(1)
        assert ownership.member().groups == {"orders:email": [], PLACE: [1, 3]}
        await ownership.run_once()
        [seen] = await members.members(door, KEYS, 60_000)
        assert seen.member == ownership.member()
        assert shares.mine == ALL - {1, 3}
        ownership.drain()
        assert ownership.member().groups[PLACE] == sorted(ALL)
        assert shares.mine == frozenset()
        await ownership.leave()
        assert await members.members(door, KEYS, 60_000) == []


async def test_a_worker_without_the_group_gets_none_of_its_partitions(start: Start, redis_url: str) -> None:
    async with open_door(redis_url) as door:
        other = members.Member(worker_id="w0", host="h", pid=1, started_ms=1, groups={"orders:other": []})
        await members.beat(door, KEYS, other, 60_000)
        process = start("w1")
        await eventually(lambda: process.owned == ALL)
        assert process.shares.mine == ALL


async def test_the_renewal_thread_is_given_what_is_held_and_a_beat_that_is_overdue(redis_url: str) -> None:
    async with open_door(redis_url) as door:
        settings = WorkerSettings(lease_ms=8_000)
        ownership = Ownership(door, KEYS, settings, worker_id="w1", metrics=WorkerMetrics())
        shares = ownership.shares(topic(), "ledger", "ordered")
        assert ownership.renewals() == []
        await ownership.run_once()
        stop = asyncio.Event()
        for number in (0, 2):
            assert await shares.partition(number).acquire(stop)
        owner_keys = [shares.partition(number).owner_key for number in (0, 2)]
        assert [key for key, _ in ownership.renewals() if key != KEYS.workers()] == owner_keys
        # Nobody beats from here on, as while a handler blocks the event loop.
        await eventually(lambda: any(key == KEYS.workers() for key, _ in ownership.renewals()))
        await _renew_all(door, ownership)
        assert [key for key, _ in ownership.renewals()] == owner_keys, "it has beaten"
        assert [seen.member.worker_id for seen in await members.members(door, KEYS, 60_000)] == ["w1"]
        for number in (0, 2):
            await shares.partition(number).release()
        await ownership.leave()
        await eventually(lambda: ownership.renewals() == [], 5)


async def _renew_all(door: RedisDoor, ownership: Ownership) -> None:
    client: Any = door.sync_client()
    try:
        for _, renew in ownership.renewals():
            await asyncio.to_thread(renew, client)
    finally:
        client.close()


async def test_after_a_standstill_the_silent_are_not_taken_for_dead_at_once(redis_url: str) -> None:
    """When the server or this process stood still, nobody could beat; whoever is silent after that too is gone."""
    async with open_door(redis_url) as door:
        ownership = Ownership(door, KEYS, WorkerSettings(lease_ms=4_000), worker_id="w1", metrics=WorkerMetrics())
        shares = ownership.shares(topic(), "ledger", "ordered")
        other = members.Member(worker_id="w0", host="h", pid=1, started_ms=1, groups={PLACE: []})
        await members.beat(door, KEYS, other, ownership.live_ms)
        await ownership.run_once()
        mine = shares.mine
        assert len(mine) == PARTITIONS / 2

        async def all_silent() -> bool:
            return await members.members(door, KEYS, ownership.live_ms) == []

        await eventually(all_silent)
        await ownership.run_once()
        assert shares.mine == mine

        async def missed() -> bool:
            await ownership.run_once()
            return shares.mine == ALL

        await eventually(missed)
        await ownership.leave()


async def test_one_worker_leads_each_partition_of_those_that_have_a_group_of_its_topic(start: Start) -> None:
    """What one worker is enough for is done by one; a worker of another app is not counted on."""
    spec = topic()
    first = start("a" * 16)
    assert all(first.ownership.leads(spec, number) for number in ALL), "alone, and not even known yet"
    second = start("b" * 16)

    def led(one: Process) -> set[int]:
        return {number for number in ALL if one.ownership.leads(spec, number)}

    await eventually(lambda: len(led(first)) == len(led(second)) == 2, what="each knows of the other")
    assert led(first) | led(second) == ALL
    other = msgspec.structs.replace(spec, name="invoices")
    assert all(one.ownership.leads(other, number) for one in (first, second) for number in ALL)
    await second.die()
    await eventually(lambda: all(first.ownership.leads(spec, number) for number in ALL))
