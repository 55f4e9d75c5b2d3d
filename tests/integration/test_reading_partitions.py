"""Reads of many partitions: a backlog in some keeps nobody waiting in others, and comes in pieces worth a script."""

from collections import Counter
from collections.abc import AsyncIterator, Iterable

import pytest
import redis

from streamlib.codec import NativeCodec
from streamlib.keys import Keys, StreamKeys
from streamlib.redisio.reader import Reader, Received
from tests.helpers.delivering import GROUP, STREAM
from tests.helpers.publishing import open_door

PARTITIONS, COUNT = 40, 500
KEYS = {number: Keys().stream(STREAM, number, PARTITIONS) for number in range(PARTITIONS)}


class Reading:
    """A reader of all partitions, and what it has read."""

    def __init__(self, client: redis.Redis, reader: Reader, door: object) -> None:
        self.client = client
        self.reads: list[list[Received]] = []
        self._reader = reader
        self._door = door

    def fill(self, partition: int, entries: int, stream: str = "") -> None:
        pipe = self.client.pipeline(transaction=False)
        for n in range(entries):
            fields = {"id": f"{partition}-{n}", "type": "T", "v": "1", "key": "", "data": "{}"}
            pipe.xadd(stream or KEYS[partition].stream, fields)  # type: ignore[arg-type]
        pipe.execute()

    async def read(self) -> list[Received]:
        self.reads.append(await self._reader.read(self._door, count=COUNT, block_ms=10))  # type: ignore[arg-type]
        return self.reads[-1]

    async def read_all(self) -> None:
        while await self.read():
            pass

    def partitions(self, read: Iterable[Received]) -> Counter[int]:
        return Counter(one.delivery.partition for one in read)


@pytest.fixture
async def reading(redis_url: str, client: redis.Redis) -> AsyncIterator[Reading]:
    for keys in KEYS.values():
        for stream in (keys.stream, keys.again(GROUP)):
            client.xgroup_create(stream, GROUP, "0", mkstream=True)
    async with open_door(redis_url) as door:
        yield Reading(client, Reader(KEYS, GROUP, "c", NativeCodec()), door)


async def test_everything_is_read_once_and_in_order(reading: Reading) -> None:
    for number in KEYS:
        reading.fill(number, 10 * number)
    await reading.read_all()
    read = [(one.delivery.partition, one.delivery.event_id) for some in reading.reads for one in some]
    assert len(read) == len(set(read)) == sum(10 * number for number in KEYS)
    for number in KEYS:
        assert [event for partition, event in read if partition == number] == [
            f"{number}-{n}" for n in range(10 * number)
        ]


async def test_a_backlog_in_many_partitions_comes_in_large_pieces(reading: Reading) -> None:
    for number in KEYS:
        reading.fill(number, 500)
    await reading.read_all()
    pieces = [size for some in reading.reads for size in reading.partitions(some).values()]
    assert sum(pieces) == 500 * PARTITIONS
    assert len(pieces) <= 7 * PARTITIONS, "each piece is a script for the claim and one for the settle"
    assert max(map(len, reading.reads)) <= COUNT, "a read brings about as much as there is room for"


async def test_an_event_elsewhere_does_not_wait_for_the_backlog(reading: Reading) -> None:
    for number in range(PARTITIONS - 1):
        reading.fill(number, 1_000)
    for _ in range(5):
        await reading.read()
    quiet = PARTITIONS - 1
    reading.fill(quiet, 1)
    reads = 0
    while not reading.partitions(await reading.read())[quiet]:
        reads += 1
    assert reads <= PARTITIONS / (COUNT / 100) + 1, "one turn of those under backlog"


async def test_what_comes_again_does_not_wait_for_the_backlog_of_its_partition(reading: Reading) -> None:
    for number in KEYS:
        reading.fill(number, 1_000)
    for _ in range(5):
        await reading.read()
    returned = _again(KEYS[3], reading.client)
    reads = 0
    while not any(one.delivery.entry_id == returned for one in await reading.read()):
        reads += 1
    assert reads <= PARTITIONS / (COUNT / 100) + 1


async def test_once_the_backlog_is_read_a_read_waits_again(reading: Reading) -> None:
    for number in KEYS:
        reading.fill(number, 150)
    await reading.read_all()
    before = reading.client.info("commandstats")["cmdstat_xreadgroup"]["calls"]
    assert await reading.read() == []
    assert reading.client.info("commandstats")["cmdstat_xreadgroup"]["calls"] == before + 1


def _again(keys: StreamKeys, client: redis.Redis) -> str:
    added: bytes = client.xadd(keys.again(GROUP), {"id": "e", "body": "unreadable"})  # type: ignore[assignment]
    return added.decode()
