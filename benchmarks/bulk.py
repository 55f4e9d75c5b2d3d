"""Flat cost: a worker beside large backlogs, many pending entries, many dead letters, many groups and partitions."""

import resource
import sys
from pathlib import Path

import redis
from msgspec.structs import replace

from benchmarks import checks
from benchmarks.case import Case, Run, Size
from benchmarks.clock import Clock
from benchmarks.payload import GROUP, STREAM, OrderCreated, fill
from benchmarks.working import drain, drain_groups, opened_app, worker
from streamlib import Context

OTHER = "other"
READ = 10_000
GROUPS, GROUP_ENTRIES = 100, 500
PARTITIONS = 64
EARLY = 10_000
DEAD_FIELDS = {
    "id": "x" * 36,
    "type": "OrderCreated",
    "data": "x" * 100,
    "dl-reason": "max_attempts",
    "dl-error": "x" * 60,
}


# --- a backlog: what lies ahead is not read, so the worker hands back what it had fetched


async def flat_backlog(url: str, size: Size) -> Run:
    (app, topic), clock = opened_app(url), Clock(url, size)

    @app.handler(topic, group=GROUP)
    async def handle(event: OrderCreated, ctx: Context) -> None:
        clock.tick()

    async def enough() -> bool:
        return True

    async with app:
        await drain(app, clock.finished, enough)
    return clock.run()


def with_backlog(client: redis.Redis, size: Size) -> None:
    fill(client, size.total + size.backlog)


def backlog_is_right(client: redis.Redis, size: Size, run: Run) -> list[str]:
    """All that ran is marked as done, nothing is pending, and the rest still lies ahead."""
    return [
        *([] if run.handled >= size.total else [f"handled: {run.handled:,}, expected {size.total:,} or more"]),
        *checks.counted("done marks", checks.done_marks(client), run.handled),
        *checks.counted("pending", checks.pending(client, STREAM, GROUP), 0),
        *([] if checks.unread(client, STREAM, GROUP) else ["the backlog is used up: nothing was measured beside it"]),
    ]


# --- entries that another consumer holds


async def flat_pending(url: str, size: Size) -> Run:
    (app, topic), clock = opened_app(url), Clock(url, size)

    @app.handler(topic, group=GROUP)
    async def handle(event: OrderCreated, ctx: Context) -> None:
        clock.tick()

    async def acknowledged() -> bool:
        told = await app.redis.execute("XPENDING", STREAM, GROUP)
        return bool(told[0] == size.pile)

    async with app:
        await drain(app, clock.finished, acknowledged)
    return clock.run()


def with_pending(client: redis.Redis, size: Size) -> None:
    fill(client, size.pile)
    client.xgroup_create(STREAM, GROUP, "0")
    while client.xreadgroup(GROUP, OTHER, {STREAM: ">"}, count=READ):
        pass
    fill(client, size.total)


def pending_is_right(client: redis.Redis, size: Size, run: Run) -> list[str]:
    return [
        *checks.counted("handled", run.handled, size.total),
        *checks.counted("done marks", checks.done_marks(client), size.total),
        *checks.counted("pending of the other consumer", checks.pending(client, STREAM, GROUP), size.pile),
        *checks.counted("unread", checks.unread(client, STREAM, GROUP), 0),
    ]


# --- dead letters


def with_dead_letters(client: redis.Redis, size: Size) -> None:
    dead = "{orders}:dead:email"
    for start in range(0, size.pile, READ):
        with client.pipeline(transaction=False) as batch:
            for _ in range(min(READ, size.pile - start)):
                batch.xadd(dead, DEAD_FIELDS)  # type: ignore[arg-type]
            batch.execute()
    fill(client, size.total)


def dead_letters_are_right(client: redis.Redis, size: Size, run: Run) -> list[str]:
    found = client.xlen("{orders}:dead:email")
    return [*checks.settled(client, run, size.total), *checks.counted("dead letters", found, size.pile)]


# --- groups and partitions


def _groups() -> list[str]:
    return [f"group-{number}" for number in range(GROUPS)]


async def flat_groups(url: str, size: Size) -> Run:
    """All groups in one worker; what is counted is an event in a group."""
    pairs = GROUPS * GROUP_ENTRIES
    (app, topic), clock = opened_app(url), Clock(url, replace(size, events=pairs * 8 // 10, warm=pairs // 10))

    async def handle(event: OrderCreated, ctx: Context) -> None:
        clock.tick()

    for group in _groups():
        app.handler(topic, group=group)(handle)
    return await drain_groups(app, clock, [STREAM], _groups())


def for_groups(client: redis.Redis, size: Size) -> None:
    fill(client, GROUP_ENTRIES)


def groups_are_right(client: redis.Redis, size: Size, run: Run) -> list[str]:
    problems = checks.counted("handled", run.handled, GROUPS * GROUP_ENTRIES)
    for group in _groups():
        problems += checks.settled(client, replace(run, handled=GROUP_ENTRIES), GROUP_ENTRIES, group=group)
    return problems


def _streams() -> list[str]:
    return [f"{STREAM}.{number}" for number in range(PARTITIONS)]


async def flat_partitions(url: str, size: Size) -> Run:
    (app, topic), clock = opened_app(url, partitions=PARTITIONS), Clock(url, _even(size))

    @app.handler(topic, group=GROUP)
    async def handle(event: OrderCreated, ctx: Context) -> None:
        clock.tick()

    return await drain_groups(app, clock, _streams(), [GROUP])


def _even(size: Size) -> Size:
    """As many events for each partition."""
    each = size.total // PARTITIONS
    return replace(size, events=each * PARTITIONS - 2 * size.warm)


def for_partitions(client: redis.Redis, size: Size) -> None:
    for number, stream in enumerate(_streams()):
        each = size.total // PARTITIONS
        fill(client, each, stream, number * each)


def partitions_are_right(client: redis.Redis, size: Size, run: Run) -> list[str]:
    return checks.settled(client, run, _even(size).total, streams=_streams())


# --- memory


async def memory(url: str, size: Size) -> Run:
    """The worker's resident memory, early and late."""
    (app, topic), clock = opened_app(url), Clock(url, _long(size))
    handled, early_mb = 0, 0.0

    @app.handler(topic, group=GROUP)
    async def handle(event: OrderCreated, ctx: Context) -> None:
        nonlocal handled, early_mb
        handled += 1
        if handled == EARLY:
            early_mb = rss_mb()
        clock.tick()

    run = await drain_groups(app, clock, [STREAM], [GROUP])
    late_mb = rss_mb()
    return replace(run, figures={"rss_10k_mb": early_mb, "rss_end_mb": late_mb, "grown_mb": late_mb - early_mb})


def _long(size: Size) -> Size:
    return replace(size, events=max(size.backlog, 2 * EARLY), warm=EARLY)


def for_memory(client: redis.Redis, size: Size) -> None:
    fill(client, _long(size).total)


def memory_run_is_right(client: redis.Redis, size: Size, run: Run) -> list[str]:
    return checks.settled(client, run, _long(size).total)


def rss_mb() -> float:
    """Resident memory of this process; its peak where there is no /proc."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


CASES = [
    Case("flat_backlog", "worker, with --backlog events ahead", flat_backlog, backlog_is_right, with_backlog, "worker"),
    Case("flat_pending", "with as many pending elsewhere", flat_pending, pending_is_right, with_pending, "worker"),
    Case("flat_dead", "with as many dead letters", worker, dead_letters_are_right, with_dead_letters, "worker"),
    Case(
        "flat_groups",
        "100 groups in one worker",
        flat_groups,
        groups_are_right,
        for_groups,
        "worker",
    ),
    Case("flat_partitions", "64 partitions", flat_partitions, partitions_are_right, for_partitions, "worker"),
    Case("memory", "resident MB, early and after --backlog events", memory, memory_run_is_right, for_memory),
]
