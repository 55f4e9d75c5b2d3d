"""Renewal keeps what is ours and takes nothing; promotion moves every due retry once."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from streamlib.redisio.claims import Held, renew
from streamlib.redisio.connection import SyncClient
from streamlib.redisio.consumers import remove, remove_idle
from streamlib.redisio.delivery import Delivery
from streamlib.redisio.failures import CLIENT_ERRORS
from streamlib.redisio.retries import promote
from streamlib.redisio.settler import done, give_back, retry
from streamlib.settings import WorkerSettings
from streamlib.worker.inflight import InFlight
from streamlib.worker.loops import end, repeat
from streamlib.worker.promoter import Promoter
from streamlib.worker.renewer import Renewer
from tests.helpers.delivering import GROUP, LEASE_MS, WINDOW_MS, Partition, a_partition
from tests.helpers.servers import RedisProc
from tests.helpers.waiting import eventually


@contextmanager
def a_thread_of(p: Partition) -> Iterator[SyncClient]:
    client = p.door.sync_client()
    yield client
    client.close()


def _held(p: Partition, deliveries: list[Delivery]) -> list[Held]:
    return [Held(p.keys, GROUP, one.again, one.ref, one.event_id) for one in deliveries]


def renewed(p: Partition, deliveries: list[Delivery], worker: str = "w1", lease_ms: int = LEASE_MS) -> list[str]:
    """The refs that were lost."""
    with a_thread_of(p) as client:
        return renew(
            client, _held(p, deliveries), consumer=worker, worker_id=worker, lease_ms=lease_ms, window_ms=WINDOW_MS
        )


async def _scheduled(p: Partition, *event_ids: str, delay_ms: int = 0) -> None:
    held = await p.held(*event_ids)
    await p.settle([retry(one, delay_ms=delay_ms, attempts=1) for one in held])


# -- renewal ------------------------------------------------------------------------------------------------------


@pytest.mark.row(8)
async def test_twenty_renewals_leave_the_delivery_counter_alone(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        deliveries = await p.held("e-1", "e-2")
        before = p.pending()
        for _ in range(20):
            assert renewed(p, deliveries) == []
        assert p.pending() == before == {one.entry_id: ("w1", 1) for one in deliveries}


async def test_renewal_moves_the_deadline_and_resets_the_idle_time(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        [held] = await p.held("e-1", lease_ms=1)
        assert renewed(p, [held], lease_ms=60_000) == []
        assert await p.take_over("w2", idle_ms=30_000) == []
        [taken] = await p.take_over("w2")
        [(verdict, left_ms)] = await p.claim([taken], "w2")
        assert verdict == "BUSY"
        assert left_ms > 30_000


async def test_an_expired_claim_that_nobody_took_is_renewed(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        [held] = await p.held("e-1")
        p.expire("e-1")
        assert renewed(p, [held]) == []
        assert (await p.claim(await p.take_over("w2"), "w2", suspects=True))[0][0] == "BUSY"


async def test_renewal_brings_an_entry_back_that_others_only_looked_at(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        [held] = await p.held("e-1")
        await p.take_over("w2")
        assert p.pending()[held.entry_id][0] == "w2"
        assert renewed(p, [held]) == []
        assert p.pending()[held.entry_id][0] == "w1"


@pytest.mark.row(8)
async def test_renewal_never_takes_a_lost_entry_again(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        mine, lost = await p.held("e-1", "e-2")
        p.expire("e-2")
        assert (await p.claim([one for one in await p.take_over("w2") if one.event_id == "e-2"], "w2", suspects=True))[
            0
        ] == ("RUN", 1)
        before = p.everything()
        assert renewed(p, [lost]) == [lost.ref]
        assert p.everything() == before
        assert renewed(p, [mine, lost]) == [lost.ref], "one that is lost keeps no other from being renewed"
        assert p.pending()[lost.entry_id][0] == "w2"


@pytest.mark.parametrize("ending", ["done", "back"])
async def test_what_was_settled_meanwhile_is_lost_and_stays_settled(redis_url: str, ending: str) -> None:
    async with a_partition(redis_url) as p:
        [held] = await p.held("e-1")
        await p.settle([done(held) if ending == "done" else give_back(held, claimed=True)])
        assert renewed(p, [held]) == [held.ref]
        assert p.pending() == {}
        assert p.state("e-1") == ("d" if ending == "done" else "r")


async def test_entries_of_the_returning_stream_are_renewed_there(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        [held] = await p.held("e-1")
        await p.settle([give_back(held, claimed=True)])
        [again] = await p.take()
        await p.claim([again])
        assert renewed(p, [again]) == []
        assert p.pending() == {again.ref: ("w1", 1)}
        assert p.state("e-1") == f"c w1:{again.ref}"


@pytest.mark.row(31, 36)
async def test_five_hundred_claims_are_renewed_in_one_script_also_when_redis_is_full(
    own_server: Callable[..., RedisProc],
) -> None:
    server = own_server()
    async with a_partition(server.url) as p:
        deliveries = await p.held(*(f"e-{n}" for n in range(500)))
        p.client.config_set("maxmemory", "1")
        with pytest.raises(CLIENT_ERRORS, match="maxmemory"):
            p.add("one more")
        assert renewed(p, deliveries) == []
        assert set(p.pending().values()) == {("w1", 1)}


async def test_one_stream_that_cannot_be_renewed_keeps_no_other_from_it(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        [held] = await p.held("e-1")
        broken = Partition.__new__(Partition)
        broken.keys = type(p.keys)("broken")
        p.client.set("broken", "no stream", px=60_000)
        p.client.set(broken.keys.idem(GROUP, "e-1"), f"c1:w1:{held.ref}", px=60_000)
        inflight, errors = InFlight(), list[str]()
        inflight.add(_like(held, broken), GROUP, lambda delivery: None)
        inflight.add(held, GROUP, lambda delivery: None)
        p.expire("e-1")
        renewer = Renewer(
            p.door, inflight, WorkerSettings(lease_ms=LEASE_MS), consumer="w1", worker_id="w1", window_ms=WINDOW_MS,
            loop=asyncio.get_running_loop(), on_error=lambda kind, error: errors.append(kind),
        )  # fmt: skip
        with a_thread_of(p) as client, pytest.raises(CLIENT_ERRORS, match="WRONGTYPE"):
            renewer.run_once(client)
        [taken] = await p.take_over("w2")
        assert (await p.claim([taken], "w2", suspects=True))[0][0] == "BUSY", "it was renewed"


def _like(delivery: Delivery, p: Partition) -> Delivery:
    values = {name: getattr(delivery, name) for name in delivery.__struct_fields__}
    return Delivery(**{**values, "keys": p.keys})


# -- promotion ----------------------------------------------------------------------------------------------------


async def test_a_due_retry_comes_back_with_its_attempts(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        await _scheduled(p, "e-1")
        assert await promote(p.door, p.keys, GROUP) == (1, -1)
        [again] = await p.take()
        assert (again.again, again.event_id, again.attempts) == (True, "e-1", 1)
        assert await p.claim([again]) == [("RUN", 0)]
        assert not p.client.exists(p.keys.retry(GROUP), p.keys.retry_body(GROUP))


async def test_what_is_not_due_stays_and_the_wait_is_told(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        await _scheduled(p, "e-1", delay_ms=60_000)
        moved, next_ms = await promote(p.door, p.keys, GROUP)
        assert moved == 0
        assert 0 < next_ms <= 60_000
        assert p.client.zcard(p.keys.retry(GROUP)) == 1


@pytest.mark.row(65)
async def test_ten_promoters_at_once_promote_each_retry_once(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        await _scheduled(p, *(f"e-{n}" for n in range(450)))

        async def promoter() -> int:
            moved, next_ms = 0, 0
            while next_ms == 0:
                count, next_ms = await promote(p.door, p.keys, GROUP)
                moved += count
            return moved

        assert sum(await asyncio.gather(*(promoter() for _ in range(10)))) == 450
        returned: Any = p.client.xrange(p.again)
        assert sorted(fields[b"id"] for _, fields in returned) == sorted(f"e-{n}".encode() for n in range(450))
        assert not p.client.exists(p.keys.retry(GROUP), p.keys.retry_body(GROUP))


@pytest.mark.row(36)
async def test_when_redis_is_full_a_retry_stays_until_it_can_be_moved(own_server: Callable[..., RedisProc]) -> None:
    server = own_server()
    async with a_partition(server.url) as p:
        await _scheduled(p, "e-1", "e-2")
        before = p.everything()
        p.client.config_set("maxmemory", "1")
        with pytest.raises(CLIENT_ERRORS, match="maxmemory"):
            await promote(p.door, p.keys, GROUP)
        assert p.everything() == before
        p.client.config_set("maxmemory", "0")
        assert await promote(p.door, p.keys, GROUP) == (2, -1)


def the_promoter(p: Partition) -> tuple[Promoter, asyncio.Task[None]]:
    """One at work on the partition, with its task."""
    promoter = Promoter(p.door, [p.keys], GROUP)

    async def nothing() -> None: ...

    loop = repeat("promoter", partial(promoter.run_once, 0), heal=nothing, on_error=lambda kind, error: None)
    return promoter, asyncio.create_task(loop)


async def test_who_scheduled_a_retry_promotes_it_without_looking_again_and_again(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamlib.worker.promoter.IDLE_S", 3_600.0)
    async with a_partition(redis_url) as p:
        promoter, task = the_promoter(p)
        await _scheduled(p, "e-1", "e-2", delay_ms=100)
        promoter.expect(0, 0.1)
        await eventually(lambda: p.client.xlen(p.keys.again(GROUP)) == 2)
        await _scheduled(p, "e-3", delay_ms=200)
        promoter.expect(0, 3_600)
        promoter.expect(0, 0.2)
        await eventually(lambda: p.client.xlen(p.keys.again(GROUP)) == 3)
        await end([task])


@pytest.mark.row(3, 65)
async def test_a_retry_of_a_worker_that_is_gone_is_promoted_by_others(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamlib.worker.promoter.IDLE_S", 0.2)
    async with a_partition(redis_url) as p:
        _, task = the_promoter(p)
        await _scheduled(p, "e-1", delay_ms=50)
        await eventually(lambda: p.client.xlen(p.keys.again(GROUP)) == 1)
        await end([task])


@pytest.mark.row(73)
async def test_a_wrong_type_on_any_key_of_promotion_changes_nothing(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        await _scheduled(p, "e-1")
        for key in (p.keys.retry(GROUP), p.keys.retry_body(GROUP), p.again):
            p.client.rename(key, "kept")
            p.client.set(key, "somebody's")
            before = p.everything()
            with pytest.raises(CLIENT_ERRORS, match="WRONGTYPE") as caught:
                await promote(p.door, p.keys, GROUP)
            assert key in str(caught.value)
            assert p.everything() == before
            p.client.rename("kept", key)
        assert await promote(p.door, p.keys, GROUP) == (1, -1)


# -- consumers ----------------------------------------------------------------------------------------------------


@pytest.mark.row(11)
async def test_a_consumer_with_something_pending_is_not_removed(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        [held] = await p.held("e-1")
        assert await remove(p.door, p.keys.stream, GROUP, "w1") is False
        assert await remove_idle(p.door, p.keys.stream, GROUP, 0) == 0
        await p.settle([done(held)])
        assert await remove(p.door, p.keys.stream, GROUP, "w1") is True
        assert await remove(p.door, p.keys.stream, GROUP, "w1") is False, "sent twice it finds nothing"
        assert p.client.xinfo_consumers(p.keys.stream, GROUP) == []


@pytest.mark.row(11)
async def test_removal_races_reads_and_no_entry_is_lost(redis_url: str) -> None:
    rounds = 300
    async with a_partition(redis_url) as p:
        removed = 0
        for n in range(rounds):
            entry_id = p.add(f"e-{n}")
            reading, removing = p.take(), remove(p.door, p.keys.stream, GROUP, "w1")
            if n % 2:
                taken, was_removed = await asyncio.gather(reading, removing)
            else:
                was_removed, taken = await asyncio.gather(removing, reading)
            removed += was_removed
            assert [one.entry_id for one in taken] == [entry_id]
            assert list(p.pending()) == [entry_id], "what was read is in somebody's pending list"
            p.client.xack(p.keys.stream, GROUP, entry_id)
        assert removed > 0
