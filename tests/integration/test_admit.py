"""The script that gives permits away: what it promises to many workers, one request at a time."""

import random
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest

from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.limits import Grant, Limits, Rate, Request, admit, keep_share
from tests.helpers.publishing import open_door
from tests.helpers.waiting import eventually

KEY = "streamlib:limit:jobs:g"
LEASE_MS = 60_000


class Desk:
    """Workers that exist in name only, asking for permits."""

    def __init__(self, door: RedisDoor, client: Any) -> None:
        self.door = door
        self.client = client
        self.limits = Limits(concurrency=5)
        self._numbers: dict[str, int] = {}

    async def ask(
        self, worker: str, want: int, busy: int = 0, *, left: int = 0, lease_ms: int = LEASE_MS, number: int = 0
    ) -> Grant:
        self._numbers[worker] = number or self._numbers.get(worker, 0) + 1
        request = Request(self._numbers[worker], busy, want, left)
        grant = await admit(self.door, KEY, self.limits, request, worker_id=worker, lease_ms=lease_ms)
        assert grant is not None
        return grant

    async def permits(self, worker: str, want: int, busy: int = 0, **options: Any) -> int:
        return (await self.ask(worker, want, busy, **options)).permits


@pytest.fixture
async def desk(redis_url: str, client: Any) -> AsyncIterator[Desk]:
    async with open_door(redis_url) as door:
        yield Desk(door, client)


async def test_the_sum_never_exceeds_the_limit_whatever_they_ask(desk: Desk) -> None:
    rng = random.Random(7)
    held = dict.fromkeys("abcd", 0)
    for _ in range(2_000):
        worker = rng.choice("abcd")
        busy = rng.randint(0, held[worker])
        held[worker] = busy + await desk.permits(worker, rng.randint(0, 4), busy)
        assert sum(held.values()) <= 5


async def test_who_waits_longer_goes_first(desk: Desk) -> None:
    assert await desk.permits("a", 5) == 5
    assert await desk.permits("b", 2) == 0
    assert await desk.permits("c", 5) == 0
    assert await desk.permits("a", 5, busy=3) == 0, "it gave two back, which are for those who wait"
    assert await desk.permits("c", 5) == 0
    assert await desk.permits("b", 2) == 2
    assert await desk.permits("a", 5, busy=0) == 0
    assert await desk.permits("c", 5) == 3, "a part"
    assert await desk.permits("b", 5) == 0, "it waits behind `a` and the rest of `c`"


async def test_what_waits_no_more_stands_in_nobodys_way(desk: Desk) -> None:
    assert await desk.permits("a", 5) == 5
    assert await desk.permits("b", 5) == 0
    assert await desk.permits("b", 0) == 0
    assert await desk.permits("a", 5) == 5
    assert desk.client.hkeys(KEY) == [b"w:a"]
    assert await desk.permits("a", 0) == 0
    assert not desk.client.exists(KEY)


async def test_a_waiting_worker_that_is_gone_is_forgotten_soon(desk: Desk) -> None:
    assert await desk.permits("a", 5) == 5
    assert await desk.permits("dead", 5) == 0
    assert await desk.permits("a", 0, busy=4) == 0
    assert await desk.permits("b", 1) == 0

    async def served() -> bool:
        return await desk.permits("b", 1) == 1

    await eventually(served)


async def test_what_a_dead_worker_held_is_free_after_its_lease(desk: Desk) -> None:
    assert await desk.permits("dead", 5, lease_ms=300) == 5
    assert await desk.permits("a", 1, lease_ms=300) == 0

    async def served() -> bool:
        return await desk.permits("a", 1) == 1

    await eventually(served)
    assert desk.client.hkeys(KEY) == [b"w:a"]


async def test_a_share_is_kept_from_a_thread(desk: Desk, redis_url: str) -> None:
    assert await desk.permits("a", 5, lease_ms=500) == 5
    connection = desk.door.sync_client()
    keep_share(connection, KEY, desk.limits, worker_id="a", lease_ms=LEASE_MS)
    keep_share(connection, KEY, desk.limits, worker_id="unknown", lease_ms=LEASE_MS)
    connection.close()
    assert int(desk.client.hget(KEY, "w:a").split()[2]) > desk.client.time()[0] * 1000 + 30_000
    assert desk.client.hkeys(KEY) == [b"w:a"]


async def test_a_request_that_arrives_late_changes_nothing(desk: Desk) -> None:
    assert await desk.permits("a", 4) == 4
    assert await desk.permits("a", 0, busy=4) == 0
    request = Request(1, 0, 1, 0)
    assert await admit(desk.door, KEY, desk.limits, request, worker_id="a", lease_ms=LEASE_MS) is None
    assert await desk.permits("b", 5) == 1


async def test_start_times_keep_their_distance_over_all_workers(desk: Desk) -> None:
    desk.limits = Limits(rate=Rate(100, 1))
    rate = Rate(100, 1)
    rng, times = random.Random(3), list[float]()
    for _ in range(400):
        grant = await desk.ask(rng.choice("abc"), rng.randint(1, 6))
        assert grant.permits == grant.slots
        if grant.slots:
            assert grant.first_s <= 0.1
            first_us = float(desk.client.hget(KEY, "tat")) - grant.slots * rate.interval_us
            times += [first_us + n * rate.interval_us for n in range(grant.slots)]
    assert len(times) > 10
    assert min(later - earlier for earlier, later in pairwise(times)) > rate.interval_us - 2


async def test_start_times_that_are_left_are_used_first(desk: Desk) -> None:
    desk.limits = Limits(rate=Rate(100, 1))
    first = await desk.ask("a", 3)
    assert (first.permits, first.slots) == (3, 3)
    again = await desk.ask("a", 3, left=3)
    assert (again.permits, again.slots) == (3, 0)


async def test_a_rate_of_days_is_kept_over_nights(desk: Desk) -> None:
    desk.limits = Limits(rate=Rate(1, 86_400))
    assert await desk.permits("a", 5) == 1
    refused = await desk.ask("a", 5)
    assert refused.permits == 0
    assert 86_000_000 < refused.again_ms <= 86_400_050
    assert desk.client.pttl(KEY) > 86_400_000


async def test_both_limits_give_the_smaller_number(desk: Desk) -> None:
    desk.limits = Limits(rate=Rate(10, 1), concurrency=5)
    assert await desk.permits("a", 5) <= 2
    desk.limits = Limits(rate=Rate(1_000, 1), concurrency=2)
    assert await desk.permits("b", 50) <= 2


@pytest.mark.row(44)
async def test_a_clock_that_went_back_stops_nothing(desk: Desk) -> None:
    """Another primary may be an hour behind."""
    desk.limits = Limits(rate=Rate(100, 1))
    await desk.ask("a", 1)
    desk.client.hincrbyfloat(KEY, "tat", 3.6e9)
    grant = await desk.ask("a", 1)
    assert grant.permits == 1
    assert grant.first_s < 0.1
