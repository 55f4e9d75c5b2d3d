"""A partition's lease in one process: waited for, taken, kept by a thread, lost, left, released."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from streamlib.metrics.worker import WorkerMetrics
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.failures import CLIENT_ERRORS
from streamlib.redisio.ownership import release, take
from streamlib.worker.partition_lease import PartitionLease
from tests.helpers.publishing import open_door
from tests.helpers.servers import connect
from tests.helpers.waiting import eventually

KEY = "{orders}:owner:ledger"
LEASE_MS = 60_000


class Rig:
    """Leases of several workers on one partition."""

    def __init__(self, door: RedisDoor, client: Any) -> None:
        self.door = door
        self.client = client
        self.stop = asyncio.Event()
        self.metrics = WorkerMetrics()

    def lease(self, worker: str = "w1", *, lease_ms: int = LEASE_MS, wanted: bool = True) -> PartitionLease:
        lease = PartitionLease(
            self.door,
            KEY,
            worker_id=worker,
            lease_ms=lease_ms,
            loop=asyncio.get_running_loop(),
            metrics=self.metrics.group("orders", "ledger"),
            log_fields={},
        )
        lease.want(wanted)
        return lease

    async def owned(self, worker: str = "w1", **options: Any) -> PartitionLease:
        lease = self.lease(worker, **options)
        assert await lease.acquire(self.stop) == lease.epoch != 0
        return lease

    async def renew(self, lease: PartitionLease) -> None:
        """As the renewal thread does, and what it asks of the loop is done."""
        client = self.door.sync_client()
        try:
            await asyncio.to_thread(lease.renew, client)
        finally:
            client.close()
        await asyncio.sleep(0)

    async def rob(self, worker: str = "w2") -> int:
        """Another worker takes the partition, as after a lease that ended; its epoch."""
        self.client.hset(KEY, "deadline", "1")
        return (await take(self.door, KEY, worker, LEASE_MS)).epoch

    def stored(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.client.hgetall(KEY).items()}

    def changes(self) -> dict[str, int]:
        found = {}
        for family in self.metrics.registry.collect():
            for sample in family.samples:
                if sample.name == "streamlib_ownership_changes_total":
                    found[sample.labels["change"]] = int(sample.value)
                elif sample.name == "streamlib_partitions_owned":
                    found["owned"] = int(sample.value)
        return found


@pytest.fixture
async def rig(redis_url: str) -> AsyncIterator[Rig]:
    async with open_door(redis_url) as door:
        with connect(redis_url) as client:
            rig = Rig(door, client)
            yield rig
            rig.stop.set()  # ends what waits for it


async def test_taken_it_is_held_fresh_and_counted(rig: Rig) -> None:
    lease = await rig.owned()
    assert (lease.held, lease.fresh(), lease.standby) == (True, True, False)
    assert not lease.lost.is_set()
    assert not lease.leaving.is_set()
    assert rig.stored()["epoch"] == str(lease.epoch)
    assert rig.changes() == {"taken": 1, "released": 0, "lost": 0, "owned": 1}
    await lease.release()
    assert (lease.epoch, lease.held) == (0, False)
    assert rig.stored()["deadline"] == "0"
    assert rig.changes() == {"taken": 1, "released": 1, "lost": 0, "owned": 0}
    await lease.release()
    assert rig.changes()["released"] == 1, "there is nothing to release any more"


async def test_it_is_not_taken_before_it_is_this_workers_share(rig: Rig) -> None:
    lease = rig.lease(wanted=False)
    assert lease.standby
    acquiring = asyncio.create_task(lease.acquire(rig.stop))
    await rig.door.execute("PING")
    assert not acquiring.done()
    assert not rig.client.exists(KEY)
    lease.want(True)
    assert await asyncio.wait_for(acquiring, 10) == lease.epoch


@pytest.mark.parametrize("wanted", [True, False])
async def test_waiting_ends_with_the_stop_and_takes_nothing(rig: Rig, wanted: bool) -> None:
    other = await rig.owned("other")
    lease = rig.lease(wanted=wanted)
    acquiring = asyncio.create_task(lease.acquire(rig.stop))
    await eventually(lambda: lease.standby)
    rig.stop.set()
    assert await asyncio.wait_for(acquiring, 10) is None
    assert rig.stored()["owner"] == other.worker_id
    assert await rig.lease().acquire(rig.stop) is None


async def test_while_another_has_it_one_waits_and_takes_it_as_it_is_released(rig: Rig) -> None:
    first = await rig.owned("first")
    second = rig.lease("second")
    acquiring = asyncio.create_task(second.acquire(rig.stop))
    await eventually(lambda: second.standby)
    assert not second.held
    epoch = first.epoch
    await first.release()
    assert await asyncio.wait_for(acquiring, 10) == second.epoch > epoch
    assert not second.standby


async def test_what_is_not_its_share_any_more_is_left_not_lost(rig: Rig) -> None:
    lease = await rig.owned()
    lease.want(False)
    assert lease.leaving.is_set()
    assert (lease.held, lease.fresh(), lease.standby) == (True, True, False), "it is still the owner, and may settle"
    await lease.release()
    assert lease.standby
    lease.want(True)
    assert await lease.acquire(rig.stop)
    assert not lease.leaving.is_set()


async def test_the_stop_lets_it_leave(rig: Rig) -> None:
    lease = await rig.owned()
    rig.stop.set()
    await asyncio.wait_for(lease.leaving.wait(), 10)
    assert lease.held
    await lease.release()


async def test_a_share_that_went_elsewhere_during_the_take_is_given_back(rig: Rig) -> None:
    """The answer came, so nobody waits a lease for a partition that nobody works on."""
    other = await rig.owned("other")
    lease = rig.lease()
    acquiring = asyncio.create_task(lease.acquire(rig.stop))
    await eventually(lambda: lease.standby)
    asked = rig.door.execute

    async def slow(*command: Any) -> Any:
        found = await asked(*command)
        if "take" in command:
            lease.want(False)
        return found

    rig.door.execute = slow  # type: ignore[method-assign]
    await release(rig.door, KEY, other.worker_id, other.epoch)
    await eventually(lambda: rig.stored().get("owner") == "w1" and rig.stored()["deadline"] == "0")
    assert (lease.held, acquiring.done()) == (False, False)
    assert rig.changes()["taken"] == 1, "of the other only"


async def test_a_renewal_by_a_thread_keeps_it(rig: Rig) -> None:
    lease = await rig.owned()
    before = int(rig.stored()["deadline"])
    await eventually(lambda: _renewed(rig, lease, before))
    assert (lease.held, lease.fresh()) == (True, True)


async def _renewed(rig: Rig, lease: PartitionLease, before: int) -> bool:
    await rig.renew(lease)
    return int(rig.stored()["deadline"]) > before


async def test_a_renewal_that_finds_another_owner_is_the_loss(rig: Rig) -> None:
    lease = await rig.owned()
    theirs = await rig.rob()
    await rig.renew(lease)
    await asyncio.wait_for(lease.lost.wait(), 10)
    assert (lease.held, lease.fresh(), lease.standby) == (False, False, True)
    assert lease.epoch, "what still writes in this epoch is fenced"
    stored = rig.stored()
    await rig.renew(lease)
    await lease.release()
    assert rig.stored() == stored, "a lost partition is not ours to release"
    assert stored["epoch"] == str(theirs)
    assert rig.changes() == {"taken": 1, "released": 0, "lost": 1, "owned": 0}


async def test_told_that_it_was_fenced_it_is_lost_once(rig: Rig) -> None:
    lease = await rig.owned()
    for _ in range(3):
        lease.fenced()
    assert lease.lost.is_set()
    await rig.renew(lease)
    assert rig.changes()["lost"] == 1
    await lease.release()


async def test_after_a_loss_it_is_taken_again_under_a_new_epoch(rig: Rig) -> None:
    lease = await rig.owned()
    first = lease.epoch
    theirs = await rig.rob()
    lease.fenced()
    await lease.release()
    acquiring = asyncio.create_task(lease.acquire(rig.stop))
    await release(rig.door, KEY, "w2", theirs)
    assert await asyncio.wait_for(acquiring, 10) == lease.epoch > theirs > first
    assert not lease.lost.is_set()
    assert rig.changes() == {"taken": 2, "released": 0, "lost": 1, "owned": 1}


async def test_a_loss_of_an_epoch_that_is_over_takes_nothing_away(rig: Rig) -> None:
    """The renewal thread may hear of the old epoch after the partition was taken again."""
    lease = await rig.owned()
    before, client = lease.epoch, rig.door.sync_client()
    await rig.rob()
    lease.renew(client)  # its word to the loop is on the way
    rig.client.hset(KEY, "deadline", "1")
    lease.epoch = 0
    again = asyncio.create_task(lease.acquire(rig.stop))
    await asyncio.wait_for(again, 10)
    client.close()
    assert lease.epoch > before
    assert lease.held


async def test_past_its_end_by_our_own_clock_nothing_more_is_started(rig: Rig) -> None:
    """A process that was frozen must not start anything, though nobody has told it yet."""
    lease = await rig.owned(lease_ms=50)
    await eventually(lambda: not lease.fresh())
    assert lease.held
    await rig.renew(lease)
    assert lease.held, "nobody took it"
    await lease.release()


async def test_of_eight_workers_that_want_it_each_has_it_once_and_alone(rig: Rig) -> None:
    leases = [rig.lease(f"w{n}") for n in range(8)]
    holding: list[str] = []
    epochs: list[int] = []

    async def work(lease: PartitionLease) -> None:
        epochs.append(await lease.acquire(rig.stop) or 0)
        holding.append(lease.worker_id)
        assert holding == [lease.worker_id]
        await rig.door.execute("PING")
        holding.remove(lease.worker_id)
        await lease.release()

    await asyncio.wait_for(asyncio.gather(*map(work, leases)), 30)
    assert epochs == sorted(set(epochs))
    assert len(epochs) == 8


async def test_where_waiting_does_not_help_it_says_so(rig: Rig) -> None:
    rig.client.set(KEY, "somebody's", px=60_000)
    lease = rig.lease()
    with pytest.raises(CLIENT_ERRORS, match="WRONGTYPE"):
        await asyncio.wait_for(lease.acquire(rig.stop), 10)
    rig.client.delete(KEY)
    assert await lease.acquire(rig.stop)
