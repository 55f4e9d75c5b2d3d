"""Loops on plain redis-py that read 500 entries at a time: how fast Redis and asyncio are without a platform.

`raw_claimed` is the measure for the worker: it does by hand, once per batch, what makes a handler idempotent under a
lease, and nothing else: no metrics, retries, renewal, dead letters or reclaiming.
"""

import asyncio
import uuid
from typing import Any

import msgspec
import redis
import redis.asyncio

from benchmarks import checks
from benchmarks.case import Case, Run, Size
from benchmarks.clock import Clock
from benchmarks.payload import GROUP, STREAM, WINDOW_MS, OrderCreated, fill

COUNT, LOOP_COUNT = 500, 100
LEASE_MS = 30_000
BLOCK_MS = 2_000

CLAIM = """
local answer = {}
for i = 1, #KEYS do
    answer[i] = redis.call("SET", KEYS[i], ARGV[1], "NX", "PX", ARGV[2]) and 1 or 0
end
return answer
"""

SETTLE = """
local ids = {}
for i = 2, #KEYS do
    if redis.call("GET", KEYS[i]) == ARGV[2] then
        redis.call("SET", KEYS[i], "d", "PX", ARGV[3])
        ids[#ids + 1] = ARGV[i + 2]
    end
end
if #ids > 0 then
    redis.call("XACK", KEYS[1], ARGV[1], unpack(ids))
end
return #ids
"""

Entries = list[tuple[bytes, dict[bytes, bytes]]]


class Loop:
    """A hand-written consumer with the idempotency keys of `{S}:idem:<group>:<event id>`."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client
        self._claim = client.register_script(CLAIM)
        self._settle = client.register_script(SETTLE)
        self._token = uuid.uuid4().hex

    async def read(self) -> Entries:
        reply: Any = await self._client.xreadgroup(GROUP, "c", {STREAM: ">"}, count=COUNT, block=BLOCK_MS)
        entries: Entries = reply[0][1] if reply else []
        return entries

    async def claim(self, entries: Entries) -> tuple[list[str], Entries]:
        """The idempotency keys that are ours now, and their entries."""
        keys = [_idem(fields) for _, fields in entries]
        ours: Any = await self._claim(keys, [self._token, LEASE_MS])
        fresh = [(key, entry) for key, entry, mine in zip(keys, entries, ours, strict=True) if mine]
        return [key for key, _ in fresh], [entry for _, entry in fresh]

    async def settle(self, keys: list[str], entries: Entries) -> None:
        ids = [entry_id for entry_id, _ in entries]
        await self._settle([STREAM, *keys], [GROUP, self._token, WINDOW_MS, *ids])

    async def close(self) -> None:
        await self._client.aclose()


async def opened(url: str) -> redis.asyncio.Redis:
    client = redis.asyncio.Redis.from_url(url, protocol=2)
    await client.xgroup_create(STREAM, GROUP, "0", mkstream=True)
    return client


async def raw_batch(url: str, size: Size) -> Run:
    client, decoder, clock = await opened(url), msgspec.json.Decoder(OrderCreated), Clock(url, size)

    async def handle(event: OrderCreated) -> None:
        clock.tick()

    while not clock.finished.is_set():
        reply: Any = await client.xreadgroup(GROUP, "c", {STREAM: ">"}, count=COUNT)
        entries: Entries = reply[0][1]
        for _, fields in entries:
            await handle(decoder.decode(fields[b"data"]))
        await client.xack(STREAM, GROUP, *(entry_id for entry_id, _ in entries))
    await client.aclose()
    return clock.run()


async def raw_claimed(url: str, size: Size) -> Run:
    loop, decoder, clock = Loop(await opened(url)), msgspec.json.Decoder(OrderCreated), Clock(url, size)

    async def handle(event: OrderCreated) -> None:
        clock.tick()

    while not clock.finished.is_set():
        keys, entries = await loop.claim(await loop.read())
        for _, fields in entries:
            await handle(decoder.decode(fields[b"data"]))
        await loop.settle(keys, entries)
    await loop.close()
    return clock.run()


async def raw_ahead(url: str, size: Size) -> Run:
    """Reads the next batch while one is handled, and handles that while one is settled: all that a loop can overlap."""
    loop, decoder, clock = Loop(await opened(url)), msgspec.json.Decoder(OrderCreated), Clock(url, size)

    async def handle(event: OrderCreated) -> None:
        clock.tick()

    settling: asyncio.Task[None] | None = None
    reading = asyncio.create_task(loop.read())
    while not clock.finished.is_set():
        entries = await reading
        reading = asyncio.create_task(loop.read())
        keys, entries = await loop.claim(entries)
        for _, fields in entries:
            await handle(decoder.decode(fields[b"data"]))
        if settling is not None:
            await settling
        settling = asyncio.create_task(loop.settle(keys, entries))
    if settling is not None:
        await settling
    reading.cancel()
    await asyncio.wait({reading})
    await loop.close()
    return clock.run()


# --- what many write first: one round trip after another; what is marked before a crash is lost


async def loop(url: str, size: Size) -> Run:
    client, decoder, clock = await opened(url), msgspec.json.Decoder(OrderCreated), Clock(url, size)
    while not clock.finished.is_set():
        reply: Any = await client.xreadgroup(GROUP, "c", {STREAM: ">"}, count=LOOP_COUNT)
        for entry_id, fields in reply[0][1]:
            decoder.decode(fields[b"data"])
            if await client.set(_idem(fields), "d", nx=True, px=WINDOW_MS):
                clock.tick()
            await client.xack(STREAM, GROUP, entry_id)
    await client.aclose()
    return clock.run()


async def loop_sync(url: str, size: Size) -> Run:
    client, decoder, clock = redis.Redis.from_url(url, protocol=2), msgspec.json.Decoder(OrderCreated), Clock(url, size)
    client.xgroup_create(STREAM, GROUP, "0", mkstream=True)
    left = size.total
    while left:
        reply: Any = client.xreadgroup(GROUP, "c", {STREAM: ">"}, count=LOOP_COUNT)
        for entry_id, fields in reply[0][1]:
            decoder.decode(fields[b"data"])
            if client.set(_idem(fields), "d", nx=True, px=WINDOW_MS):
                clock.tick()
            client.xack(STREAM, GROUP, entry_id)
        left -= len(reply[0][1])
    client.close()
    return clock.run()


def _idem(fields: dict[bytes, bytes]) -> str:
    return "{orders}:idem:email:" + fields[b"id"].decode()


def filled(client: redis.Redis, size: Size) -> None:
    fill(client, size.total)


def all_acknowledged(client: redis.Redis, size: Size, run: Run) -> list[str]:
    return checks.acknowledged(client, run, size.total)


def all_settled(client: redis.Redis, size: Size, run: Run) -> list[str]:
    return checks.settled(client, run, size.total)


CASES = [
    Case(
        "raw_batch",
        "redis-py on asyncio: XREADGROUP 500, decode, handler, XACK; no idempotency",
        raw_batch,
        all_acknowledged,
        filled,
        base="raw_claimed",
    ),
    Case(
        "raw_claimed",
        "the same with a Lua script that claims 500 idempotency keys and one that settles them",
        raw_claimed,
        all_settled,
        filled,
    ),
    Case("raw_ahead", "the same, overlapped as far as a loop can", raw_ahead, all_settled, filled, base="raw_claimed"),
    Case("loop", "redis-py on asyncio: per event SET NX, handler, XACK", loop, all_settled, filled, base="raw_claimed"),
    Case("loop_sync", "the same with the blocking client", loop_sync, all_settled, filled, base="raw_claimed"),
]
