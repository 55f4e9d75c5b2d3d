"""What the server spends on one event, step by step: `python -m benchmarks.server_cost [--events N] [--rounds K]`.

Each step does one thing alone: publish, read, claim, settle, as a worker does them, in batches of `--batch`. Figures:
microseconds that Redis counts for the commands themselves (INFO commandstats; a script's include those of its calls),
the CPU time of the whole server process, which also receives, parses and answers, memory gained, bytes in and out.
"""

import argparse
import asyncio
import json
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any

import redis

from benchmarks.payload import GROUP, STREAM, WINDOW_MS, OrderCreated, order
from streamlib import NativeCodec
from streamlib.embedded import open_embedded
from streamlib.event import Registry
from streamlib.keys import Keys
from streamlib.redisio.claims import claim
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.delivery import Delivery
from streamlib.redisio.publisher import Publisher
from streamlib.redisio.reader import Reader
from streamlib.redisio.settler import done, settle
from streamlib.settings import LimitSettings, RedisSettings
from streamlib.topic import TopicSpec

STEPS = ("publish", "read", "claim", "settle")
WORKER, LEASE_MS = "0123456789abcdef", 30_000
TOPIC = TopicSpec(name=STREAM, registry=Registry((OrderCreated,)), key="order_id")
Row = dict[str, float]


class Meter:
    """Reads off what the server spent between two looks."""

    def __init__(self, client: redis.Redis, events: int) -> None:
        self._client = client
        self._events = events

    async def step(self, work: Callable[[], Awaitable[Any]]) -> Row:
        self._client.config_resetstat()
        before = self._looked()
        await work()
        after, stats = self._looked(), self._stats()
        spent = {name: (after[name] - before[name]) / self._events for name in after}
        return {"commands_us": sum(stats.values()) / self._events, **spent}

    def _stats(self) -> dict[str, float]:
        """Without what scripts call: their own time includes it; nor what this meter asks for."""
        found: Any = self._client.info("commandstats")
        ours = ("cmdstat_evalsha", "cmdstat_eval", "cmdstat_xreadgroup")
        return {name: found[name]["usec"] for name in ours if name in found}

    def _looked(self) -> dict[str, float]:
        info: Any = self._client.info()
        return {
            "process_us": (info["used_cpu_user"] + info["used_cpu_sys"]) * 1e6,
            "memory_bytes": info["used_memory"],
            "in_bytes": info["total_net_input_bytes"],
            "out_bytes": info["total_net_output_bytes"],
        }


async def measure(client: redis.Redis, url: str, events: int, batch: int) -> dict[str, Row]:
    """One round on an empty database."""
    client.flushall()
    door, keys = RedisDoor.open(RedisSettings(url=url)), Keys()
    names = keys.stream(STREAM, 0, 1)
    for stream in (names.stream, names.again(GROUP)):
        client.xgroup_create(stream, GROUP, "0", mkstream=True)
    publisher = Publisher(door, keys, LimitSettings())
    reader = Reader({0: names}, GROUP, "worker", NativeCodec())
    taken: list[list[Delivery]] = []

    async def publish() -> None:
        for start in range(0, events, batch):
            await publisher.send(TOPIC, [TOPIC.message(order(n)) for n in range(start, start + batch)])

    async def read() -> None:
        while received := await reader.read(door, count=batch, block_ms=None):
            taken.append([one.delivery for one in received])

    async def claims() -> None:
        for some in taken:
            await claim(door, some, group=GROUP, worker_id=WORKER, lease_ms=LEASE_MS, window_ms=WINDOW_MS)

    async def settles() -> None:
        for some in taken:
            outcomes = [done(one) for one in some]
            await settle(door, outcomes, group=GROUP, worker_id=WORKER, window_ms=WINDOW_MS, resent=False)

    meter = Meter(client, events)
    found = {}
    for name, work in zip(STEPS, (publish, read, claims, settles), strict=True):
        found[name] = await meter.step(work)
    if client.exists(*(names.idem(GROUP, one.event_id) for one in taken[0])) != len(taken[0]):
        raise RuntimeError("the events were not settled")
    await publisher.close()
    await door.close()
    return found


def run(events: int, rounds: int, batch: int) -> dict[str, Row]:
    """Medians over the rounds, per step."""
    with tempfile.TemporaryDirectory() as directory, open_embedded(Path(directory)) as server:
        client = redis.Redis.from_url(server.url)
        asyncio.run(measure(client, server.url, min(events, 5 * batch), batch))  # warms up
        found = [asyncio.run(measure(client, server.url, events, batch)) for _ in range(rounds)]
        client.close()
    return {
        step: {name: round(median(one[step][name] for one in found), 2) for name in found[0][step]} for step in STEPS
    }


def main() -> None:
    about = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.server_cost", description=about)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=100, help="events per command, at most 500")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    table = run(given.events - given.events % given.batch, given.rounds, given.batch)
    if given.json:
        print(json.dumps(table))
        return
    columns = list(table["publish"])
    print(f"{'per event':<10}" + "".join(f"{name:>14}" for name in columns))
    for step, row in table.items():
        print(f"{step:<10}" + "".join(f"{row[name]:>14,.2f}" for name in columns))
    print(f"{'together':<10}" + "".join(f"{sum(row[name] for row in table.values()):>14,.2f}" for name in columns))


if __name__ == "__main__":
    main()
