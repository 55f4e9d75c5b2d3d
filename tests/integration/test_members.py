"""The register of living workers: who beats is seen, who leaves or falls silent is not, and rubbish harms nobody."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from streamlib.keys import Keys
from streamlib.redisio import members
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.failures import CLIENT_ERRORS
from streamlib.redisio.members import Member, Seen
from tests.helpers.publishing import open_door
from tests.helpers.servers import connect

KEYS = Keys()
LIVE_MS = 10_000


def member(worker_id: str, **groups: list[int]) -> Member:
    return Member(worker_id=worker_id, host="h", pid=7, started_ms=1, groups=groups)


class Register:
    """The register, and a hand in it."""

    def __init__(self, door: RedisDoor, client: Any) -> None:
        self.door = door
        self.client = client

    async def beat(self, *workers: str, live_ms: int = LIVE_MS) -> list[str]:
        """Each beats once; who the last of them sees."""
        seen: list[Seen] = []
        for worker in workers:
            seen = await members.beat(self.door, KEYS, member(worker), live_ms)
        return [one.member.worker_id for one in seen]

    async def changes(self) -> int:
        return await members.changes(self.door, KEYS)

    async def living(self, live_ms: int = LIVE_MS) -> list[str]:
        return [one.member.worker_id for one in await members.members(self.door, KEYS, live_ms)]

    def age(self, worker: str, by_ms: int) -> None:
        """Let the last beat of a worker lie so far back."""
        beat_ms, _, told = self.client.hget(KEYS.workers(), worker).partition(b" ")
        self.client.hset(KEYS.workers(), worker, str(int(beat_ms) - by_ms).encode() + b" " + told)

    def put(self, field: str | bytes, value: str | bytes) -> None:
        self.client.hset(KEYS.workers(), field, value)

    @property
    def fields(self) -> set[str]:
        return {name.decode(errors="replace") for name in self.client.hkeys(KEYS.workers())}


@pytest.fixture
async def register(redis_url: str) -> AsyncIterator[Register]:
    async with open_door(redis_url) as door:
        with connect(redis_url) as client:
            yield Register(door, client)


async def test_who_beats_sees_all_who_live_itself_included(register: Register) -> None:
    assert await register.beat("w2") == ["w2"]
    assert await register.beat("w1") == ["w1", "w2"]
    assert await register.living() == ["w1", "w2"]
    assert await members.members(register.door, Keys("other"), LIVE_MS) == []


async def test_what_a_worker_tells_arrives_as_it_was(register: Register) -> None:
    told = Member(worker_id="w1", host="ü\n", pid=1, started_ms=2, groups={"orders:email": [], "orders:view": [0, 3]})
    [seen] = await members.beat(register.door, KEYS, told, LIVE_MS)
    assert seen == Seen(told, 0)
    [found] = await members.members(register.door, KEYS, LIVE_MS)
    assert found.member == told


async def test_changes_count_arrivals_departures_and_news_but_no_beats(register: Register) -> None:
    assert await register.changes() == 0
    await register.beat("w1")
    assert await register.changes() == 1
    await register.beat("w1", "w1", "w1")
    assert await register.changes() == 1
    await register.beat("w2")
    assert await register.changes() == 2
    found = await members.snapshot(register.door, KEYS, member("w1", **{"orders:view": [1]}), LIVE_MS)
    assert found.changes == await register.changes() == 3
    await members.leave(register.door, KEYS, "w2")
    assert await register.changes() == 4


async def test_who_leaves_twice_is_counted_once_and_seen_no_more(register: Register) -> None:
    await register.beat("w1", "w2")
    for _ in range(2):
        await members.leave(register.door, KEYS, "w1")
        assert (await register.changes(), await register.living()) == (3, ["w2"])
    assert await register.beat("w2") == ["w2"]
    await members.leave(register.door, KEYS, "nobody")
    assert await register.changes() == 3


async def test_who_is_silent_is_dead_and_later_forgotten(register: Register) -> None:
    await register.beat("w1", "w2")
    register.age("w1", LIVE_MS + 1)
    assert await register.beat("w2") == ["w2"]
    assert await register.living() == ["w2"]
    assert "w1" in register.fields, "it may only have been slow"
    assert await register.beat("w1") == ["w1", "w2"]
    register.age("w1", LIVE_MS * 10 + 1_000)
    await register.beat("w2")
    assert register.fields == {"w2", "changes"}


async def test_the_age_of_a_beat_is_the_servers(register: Register) -> None:
    await register.beat("w1", "w2")
    register.age("w1", 5_000)
    ages = {one.member.worker_id: one.ago_ms for one in await members.beat(register.door, KEYS, member("w2"), LIVE_MS)}
    assert ages["w2"] == 0
    assert ages["w1"] >= 5_000
    looked = {one.member.worker_id: one.ago_ms for one in await members.members(register.door, KEYS, LIVE_MS)}
    assert looked["w1"] >= ages["w1"]


async def test_to_look_writes_nothing(register: Register) -> None:
    await register.beat("w1")
    before = register.client.dump(KEYS.workers())
    await register.living()
    await register.changes()
    assert register.client.dump(KEYS.workers()) == before


async def test_a_thread_beats_alike(register: Register) -> None:
    client = register.door.sync_client()
    try:
        await asyncio.to_thread(members.beat_sync, client, KEYS, member("w1"), LIVE_MS)
    finally:
        client.close()
    assert await register.living() == ["w1"]


async def test_two_hundred_workers_see_each_other(register: Register) -> None:
    names = [f"w{n:03}" for n in range(200)]
    assert await register.beat(*names) == names
    assert await register.changes() == 200


RUBBISH = {
    "empty": b"",
    "no time": b"hello",
    "no json": b"1700000000000 {",
    "another version's": b'1700000000000 {"worker_id": "x"}',
    "no number": b"soon {}",
    "bytes": b"\xff\xfe \x00",
    "half a json": b"17 \xff",
    "long": b"9" * 5_000 + b" {}",
}


@pytest.mark.parametrize("value", RUBBISH.values(), ids=RUBBISH.keys())
async def test_what_no_worker_wrote_takes_no_share_and_harms_nobody(register: Register, value: bytes) -> None:
    await register.beat("w1")
    register.put(b"rubbish\xff", value)
    register.put("fresh", _stamped(register, value.partition(b" ")[2]))
    assert await register.living() == ["w1"]
    assert await register.beat("w2") == ["w1", "w2"]


async def test_a_worker_that_speaks_for_another_is_not_believed(register: Register) -> None:
    await register.beat("w1")
    register.put("liar", _stamped(register, msgspec.json.encode(member("w1", **{"orders:view": [0]}))))
    assert await register.beat("w2") == ["w1", "w2"]
    assert all(seen.member.groups == {} for seen in await members.members(register.door, KEYS, LIVE_MS))


@pytest.mark.parametrize("count", ["rubbish", "", "1.5", "0x10", "-3", "9" * 400, "1e300", "inf"])
async def test_a_count_of_changes_that_is_none_begins_anew(register: Register, count: str) -> None:
    await register.beat("w1")
    register.put("changes", count)
    looked = await register.changes()
    assert (await members.snapshot(register.door, KEYS, member("w1"), LIVE_MS)).changes == looked == 0
    assert await register.beat("w2") == ["w1", "w2"]
    assert await register.changes() == 1
    register.put("changes", count)
    await members.leave(register.door, KEYS, "w2")
    assert await register.changes() == 1


async def test_a_register_of_another_type_is_said_to_be_one(register: Register) -> None:
    register.client.set(KEYS.workers(), "somebody's", px=60_000)
    for asking in (register.beat("w1"), register.living(), register.changes()):
        with pytest.raises(CLIENT_ERRORS, match="WRONGTYPE"):
            await asking


def _stamped(register: Register, told: bytes) -> bytes:
    seconds, _ = register.client.time()
    return f"{seconds}000 ".encode() + told
