"""A whole run: what is checked before, the rounds, and what came out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from msgspec import Struct
from msgspec.structs import replace

from streamlib.bench.clock import Size
from streamlib.bench.consumers import CONSUMERS
from streamlib.bench.events import BYTES_EACH
from streamlib.bench.figures import Figures, Line, lines, quantile
from streamlib.bench.passing import Pass
from streamlib.bench.rights import check_rights
from streamlib.errors import RedisUnfit, Refused
from streamlib.keys import Keys
from streamlib.ops.scratch import scratch
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.counting import info_numbers
from streamlib.redisio.server import check, probe
from streamlib.settings import Settings, redact

BASES = {"round_trip": "", "publish_many": "", "raw_loop": "", "worker": "raw_loop"}
"""The cases in the order of the table, and what each is set in relation to."""
_WARM_UP = Size(events=500, warm=50, paced=50)
_PINGS = 50
_WATCHED_S = 0.5
_BUSY = 0.05
_MIB = 1024 * 1024

Tell = Callable[[str], None]


class Report(Struct, frozen=True):
    """What came out. With `problems` (case -> what is wrong with its result) no figure counts."""

    server: str
    lines: list[Line]
    problems: dict[str, list[str]]


async def measure(redis: RedisDoor, events: int, rounds: int, tell: Tell) -> Report:
    """Measure in a scratch namespace that is removed at the end; the order of the consumers changes with each round.

    Workers run with default settings. Raises RedisUnfit, RedisUnavailable, Refused when there is no room,
    StreamlibError when nothing moves any more, and what the client raises.
    """
    server = await _fit(redis)
    size = Size.of(events)
    await check_rights(redis)
    await _check_room(redis, size)
    async with scratch(redis) as keys:
        settings = Settings(redis=replace(redis.settings, namespace=keys.namespace))
        _announce(redis, keys, size, server, tell)
        await _look_for_others(redis, tell)
        found: list[dict[str, Figures]] = []
        for number in range(rounds + 1):
            tell(f"round {number} of {rounds}" if number else "warming up")
            figures = {"round_trip": await _round_trip(redis)}
            for case in list(CONSUMERS) if number % 2 else reversed(CONSUMERS):
                passed = await Pass(redis, keys, settings, size if number else _WARM_UP).run(case)
                if passed.problems:
                    return Report(server, [], {case: passed.problems})
                figures[case] = passed.consuming
                figures["publish_many"] = passed.publishing
            found.append(figures)
    return Report(server, lines(found[1:], BASES), {})


async def _fit(redis: RedisDoor) -> str:
    """What the servers are; raises RedisUnfit where no worker would start."""
    servers = await probe(redis)
    fatal = [one for one in check(servers, Settings(redis=redis.settings)) if one.fatal and not one.ok]
    if fatal:
        raise RedisUnfit("; ".join(one.detail for one in fatal))
    return ", ".join(sorted({f"{one.kind} {one.version}".strip() for one in servers}))


def _announce(redis: RedisDoor, keys: Keys, size: Size, server: str, tell: Tell) -> None:
    tell(
        f"measuring {redact(redis.settings.url)} ({server}): this loads that server as hard as it can; on a production "
        "server others will notice"
    )
    tell(
        f"creates a stream of {size.total:,} events and as many keys at a time, about {_needed(size) / _MIB:,.1f} MiB, "
        f"all with {keys.namespace} in their names; they are removed at the end, also after Ctrl-C"
    )


def _needed(size: Size) -> int:
    return size.total * BYTES_EACH


async def _check_room(redis: RedisDoor, size: Size) -> None:
    """A server that fills up takes nobody's writes any more."""
    for told in await _of_every_node(redis, "memory"):
        limit, used = told.get("maxmemory", 0), told.get("used_memory", 0)
        if limit and used + 2 * _needed(size) > limit:
            raise Refused(
                f"Redis at {redact(redis.settings.url)} has {(limit - used) / _MIB:,.0f} MiB left of its maxmemory, "
                f"and this needs {_needed(size) / _MIB:,.0f} MiB and as much to spare; take fewer --events, or raise "
                "maxmemory"
            )


async def _look_for_others(redis: RedisDoor, tell: Tell) -> None:
    """Tell when a server works although we are silent: its CPU time is that of the whole process."""
    before, started_s = await _of_every_node(redis, "cpu"), time.monotonic()
    await asyncio.sleep(_WATCHED_S)
    after, seconds = await _of_every_node(redis, "cpu"), time.monotonic() - started_s
    if not all([*before, *after]):
        tell("INFO is denied: what the server spends is not known")
        return
    cpu = ("used_cpu_user", "used_cpu_sys")
    spent_s = max(sum(now[name] - then[name] for name in cpu) for then, now in zip(before, after, strict=False))
    if (share := spent_s / seconds) > _BUSY:
        tell(f"the server is {share:.0%} busy with the work of others: what it spends per event contains that")


async def _of_every_node(redis: RedisDoor, section: str) -> list[dict[str, float]]:
    """That section of INFO, {} where it is denied, in the order of the nodes' addresses."""
    async with redis.nodes() as lanes:
        return [await info_numbers(lane, section) for _, lane in sorted(lanes.items())]


async def _round_trip(redis: RedisDoor) -> Figures:
    ms = []
    for _ in range(_PINGS):
        started_s = time.perf_counter()
        await redis.execute("PING")
        ms.append((time.perf_counter() - started_s) * 1000)
    return {"p50_ms": quantile(ms, 0.5), "p99_ms": quantile(ms, 0.99)}
