"""What one silent server costs: our clients beside redis-py's own, on real servers.

`python -m benchmarks.lost_nodes [--rounds K]`. Each round of each case has a fresh topology:

- frozen, killed: one of a cluster's three primaries is away for `LOST_S` while commands for keys of all three go on,
  one at a time for each node. Figures: the longest time that a command for a key of the other two took, and how many
  of those failed.
- sentinel: a reader waits for events with XREAD BLOCK; the primary is frozen, so it never says goodbye, and the
  sentinels promote a replica. Figure: seconds from the freeze until the reader has read an event from the new primary,
  and how many stale replies it got.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import redis.asyncio
import redis.exceptions
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from streamlib.redisio.connection import RedisDoor
from streamlib.settings import RedisSettings
from tests.helpers.cluster import ClusterTopology
from tests.helpers.sentinel import SentinelTopology
from tests.helpers.servers import HOST

TIMEOUT_S = 5.0
"""Of a command, as in the default settings of a worker."""
LOST_S = 8.0
BLOCK_MS = 60_000
_PAUSE_S = 0.002
_GIVE_UP_S = 120.0
FAILED = (redis.exceptions.RedisError, OSError)

Send = Callable[..., Awaitable[Any]]


async def cluster_case(directory: Path, ours: bool, *, killed: bool = False) -> dict[str, float]:
    with ClusterTopology(directory, full_coverage=False, node_timeout_ms=60_000) as cluster:
        seed = cluster.nodes[0]
        door = RedisDoor.open(RedisSettings(url=cluster.url, timeout_s=TIMEOUT_S))
        theirs = redis.asyncio.RedisCluster(
            host=HOST, port=seed.port, protocol=2, socket_timeout=TIMEOUT_S, require_full_coverage=False,
            retry=Retry(NoBackoff(), 0),
        )  # fmt: skip
        send: Send = door.execute if ours else theirs.execute_command
        keys = {cluster.node_of(f"key-{n}").port: f"key-{n}" for n in range(40)}
        lost = cluster.nodes[1]
        for key in keys.values():
            await send("SET", key, "x")
        stop = asyncio.Event()
        loads = {port: asyncio.create_task(_load(send, key, stop)) for port, key in keys.items()}
        await asyncio.sleep(1.0)
        lost.kill9() if killed else lost.stop()
        await asyncio.sleep(LOST_S)
        lost.start() if killed else lost.cont()
        stop.set()
        found = {port: await load for port, load in loads.items()}
        await door.close()
        await theirs.aclose()
    others = [found[port] for port in found if port != lost.port]
    return {"longest_s": max(one[0] for one in others), "failed": float(sum(one[1] for one in others))}


async def _load(send: Send, key: str, stop: asyncio.Event) -> tuple[float, int]:
    """The longest time a command took, and how many failed."""
    longest, failed = 0.0, 0
    while not stop.is_set():
        started = time.perf_counter()
        try:
            await send("GET", key)
        except FAILED:
            failed += 1
        longest = max(longest, time.perf_counter() - started)
        await asyncio.sleep(_PAUSE_S)
    return longest, failed


async def sentinel_case(directory: Path, ours: bool) -> dict[str, float]:
    with SentinelTopology(directory) as topology:
        door = RedisDoor.open(RedisSettings(url=topology.url, timeout_s=TIMEOUT_S))
        sentinels = Sentinel([(HOST, one.port) for one in topology.sentinels], socket_timeout=1.0)
        blocking = BLOCK_MS / 1000 + TIMEOUT_S
        theirs = sentinels.master_for(  # type: ignore[no-untyped-call]
            topology.name, socket_timeout=blocking, retry=Retry(NoBackoff(), 0)
        )
        lane = door.blocking(BLOCK_MS)
        send: Send = lane.execute if ours else theirs.execute_command
        await door.execute("XADD", "events", "*", "n", "0")
        reader = asyncio.create_task(_read(send))
        await asyncio.sleep(1.0)
        started = time.perf_counter()
        await asyncio.to_thread(topology.stop_primary)
        with topology.primary() as client:
            while not reader.done() and time.perf_counter() - started < _GIVE_UP_S:
                client.xadd("events", {"n": "1"})
                await asyncio.sleep(0.05)
        seconds = time.perf_counter() - started
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        await lane.close()
        await door.close()
        await theirs.aclose()
    return {"reads_again_s": seconds}


async def _read(send: Send) -> Any:
    """Read on behind the last entry until there is a new one, through every error."""
    while True:
        with contextlib.suppress(*FAILED):
            if found := await send("XREAD", "BLOCK", BLOCK_MS, "STREAMS", "events", "$"):
                return found
        await asyncio.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    killed = partial(cluster_case, killed=True)
    for name, case in (("frozen", cluster_case), ("killed", killed), ("sentinel", sentinel_case)):
        figures: dict[str, list[dict[str, float]]] = {"streamlib": [], "redis-py": []}
        for number in range(rounds):
            for who in sorted(figures, reverse=bool(number % 2)):
                with tempfile.TemporaryDirectory() as directory:
                    figures[who].append(asyncio.run(case(Path(directory), who == "streamlib")))
        for who, rows in figures.items():
            told = ", ".join(f"{key} {median(row[key] for row in rows):.2f}" for key in rows[0])
            print(f"{name:9} {who:10} {told}")


if __name__ == "__main__":
    main()
