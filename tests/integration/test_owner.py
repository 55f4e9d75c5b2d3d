"""The owner of a partition: one at a time, epochs that only grow, and every step safe to send twice."""

import asyncio
from typing import Any

import pytest

from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.failures import CLIENT_ERRORS
from streamlib.redisio.ownership import Lease, release, renew, renew_sync, take
from tests.helpers.publishing import open_door
from tests.helpers.servers import connect

KEY = "{orders}:owner:ledger"
LEASE_MS = 10_000


class Owner:
    """The key of one partition's owner, and the server's clock."""

    def __init__(self, door: RedisDoor, client: Any) -> None:
        self.door = door
        self.client = client

    async def take(self, worker: str, lease_ms: int = LEASE_MS) -> Lease:
        return await take(self.door, KEY, worker, lease_ms)

    async def renew(self, worker: str, epoch: int, lease_ms: int = LEASE_MS) -> Lease:
        return await renew(self.door, KEY, worker, epoch, lease_ms)

    async def release(self, worker: str, epoch: int) -> Lease:
        return await release(self.door, KEY, worker, epoch)

    def now_ms(self) -> int:
        seconds, micros = self.client.time()
        return int(seconds) * 1000 + int(micros) // 1000

    def stored(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.client.hgetall(KEY).items()}

    def end_lease(self) -> None:
        self.client.hset(KEY, "deadline", self.now_ms() - 1)


@pytest.fixture
async def owner(redis_url: str) -> Any:
    async with open_door(redis_url) as door:
        with connect(redis_url) as client:
            yield Owner(door, client)


async def test_a_partition_that_nobody_owned_begins_at_the_servers_time(owner: Owner) -> None:
    before = owner.now_ms()
    lease = await owner.take("w1")
    assert (lease.ours, lease.ms_left) == (True, LEASE_MS)
    assert before <= lease.epoch <= owner.now_ms()
    stored = owner.stored()
    assert (stored["owner"], stored["epoch"]) == ("w1", str(lease.epoch))
    assert before + LEASE_MS <= int(stored["deadline"]) <= owner.now_ms() + LEASE_MS
    assert set(stored) == {"owner", "epoch", "deadline"}
    assert owner.client.ttl(KEY) == -1, "it must outlive every lease: the epoch only grows"


async def test_taken_twice_the_epoch_stays(owner: Owner) -> None:
    first = await owner.take("w1")
    assert await owner.take("w1") == first


async def test_while_a_lease_holds_others_hear_how_long(owner: Owner) -> None:
    first = await owner.take("w1")
    stored = owner.stored()
    other = await owner.take("w2")
    assert (other.ours, other.epoch) == (False, first.epoch)
    assert 0 < other.ms_left <= LEASE_MS
    assert owner.stored() == stored


async def test_a_lease_that_ended_goes_to_the_next_with_a_higher_epoch(owner: Owner) -> None:
    first = await owner.take("w1")
    owner.end_lease()
    second = await owner.take("w2")
    assert second.ours
    assert second.epoch > first.epoch
    assert not (await owner.renew("w1", first.epoch)).ours
    assert owner.stored()["owner"] == "w2"


async def test_its_own_ended_lease_taken_again_is_a_new_epoch(owner: Owner) -> None:
    """Meanwhile others may have owned it: what it had in flight then must be fenced."""
    first = await owner.take("w1")
    owner.end_lease()
    assert (await owner.take("w1")).epoch > first.epoch


@pytest.mark.row(44)
async def test_the_epoch_grows_also_where_the_clock_went_back(owner: Owner) -> None:
    ahead = owner.now_ms() + 3_600_000
    owner.client.hset(KEY, mapping={"owner": "w1", "epoch": ahead, "deadline": 0})
    assert (await owner.take("w2")).epoch == ahead + 1
    assert owner.stored()["epoch"] == str(ahead + 1)


async def test_released_it_may_be_taken_at_once_and_the_epoch_is_kept(owner: Owner) -> None:
    first = await owner.take("w1")
    assert await owner.release("w1", first.epoch) == Lease(True, first.epoch, 0)
    assert owner.stored() == {"owner": "w1", "epoch": str(first.epoch), "deadline": "0"}
    second = await owner.take("w2")
    assert second.ours
    assert second.epoch > first.epoch


async def test_released_twice_answers_the_same(owner: Owner) -> None:
    first = await owner.take("w1")
    assert await owner.release("w1", first.epoch) == await owner.release("w1", first.epoch)


async def test_a_release_whose_answer_was_lost_harms_no_later_owner(owner: Owner) -> None:
    first = await owner.take("w1")
    await owner.release("w1", first.epoch)
    second = await owner.take("w2")
    stored = owner.stored()
    late = await owner.release("w1", first.epoch)
    assert (late.ours, late.epoch) == (False, second.epoch)
    assert owner.stored() == stored
    third = await owner.take("w1")
    assert not third.ours


async def test_a_renewal_moves_the_end_and_nothing_else(owner: Owner) -> None:
    first = await owner.take("w1", 1_000)
    before = owner.stored()
    assert await owner.renew("w1", first.epoch, LEASE_MS) == Lease(True, first.epoch, LEASE_MS)
    assert await owner.renew("w1", first.epoch, LEASE_MS) == Lease(True, first.epoch, LEASE_MS)
    after = owner.stored()
    assert int(after.pop("deadline")) > int(before.pop("deadline"))
    assert after == before


async def test_a_lease_that_ended_and_nobody_took_may_be_renewed(owner: Owner) -> None:
    first = await owner.take("w1")
    owner.end_lease()
    assert await owner.renew("w1", first.epoch) == Lease(True, first.epoch, LEASE_MS)
    assert not (await owner.take("w2")).ours


async def test_what_was_released_cannot_be_renewed(owner: Owner) -> None:
    """A renewal that was under way meanwhile must not keep the next owner out."""
    first = await owner.take("w1")
    await owner.release("w1", first.epoch)
    stored = owner.stored()
    assert await owner.renew("w1", first.epoch) == Lease(False, first.epoch, 0)
    assert owner.stored() == stored


@pytest.mark.parametrize(("worker", "by"), [("w2", 0), ("w1", 1), ("w1", -1), ("", 0)])
async def test_who_does_not_own_it_in_this_epoch_neither_renews_nor_releases(
    owner: Owner, worker: str, by: int
) -> None:
    first = await owner.take("w1")
    stored = owner.stored()
    for answer in (await owner.renew(worker, first.epoch + by), await owner.release(worker, first.epoch + by)):
        assert (answer.ours, answer.epoch) == (False, first.epoch)
        assert 0 < answer.ms_left <= LEASE_MS
    assert owner.stored() == stored


async def test_what_nobody_ever_owned_is_neither_renewed_nor_released(owner: Owner) -> None:
    assert await owner.renew("w1", 0) == Lease(False, 0, 0)
    assert await owner.release("w1", 0) == Lease(False, 0, 0)
    assert not owner.client.exists(KEY)


async def test_a_thread_renews_alike(owner: Owner) -> None:
    first = await owner.take("w1")
    client = owner.door.sync_client()
    try:
        assert await asyncio.to_thread(renew_sync, client, KEY, "w1", first.epoch, LEASE_MS) == first
        assert not (await asyncio.to_thread(renew_sync, client, KEY, "w2", first.epoch, LEASE_MS)).ours
    finally:
        client.close()


async def test_of_twenty_workers_one_gets_it_and_epochs_never_repeat(owner: Owner) -> None:
    epochs = []
    for _ in range(10):
        answers = await asyncio.gather(*(owner.take(f"w{n}") for n in range(20)))
        [mine] = {answer.epoch for answer in answers if answer.ours}
        assert sum(answer.ours for answer in answers) == 1
        epochs.append(mine)
        owner.end_lease()
    assert epochs == sorted(set(epochs))


@pytest.mark.parametrize("field", ["epoch", "deadline"])
async def test_rubbish_in_the_hash_is_replaced_by_the_next_owner(owner: Owner, field: str) -> None:
    owner.client.hset(KEY, mapping={"owner": "w1", "epoch": 5, "deadline": 0} | {field: "rubbish"})
    lease = await owner.take("w2")
    assert lease.ours
    assert (await owner.renew("w2", lease.epoch)).ours


async def test_a_key_of_another_type_is_said_to_be_one(owner: Owner) -> None:
    owner.client.set(KEY, "somebody's", px=60_000)
    with pytest.raises(CLIENT_ERRORS, match="WRONGTYPE"):
        await owner.take("w1")
