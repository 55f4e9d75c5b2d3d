"""An app, and what its producers, workers, projectors and readers do: deeds for tests of rights."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
from msgspec import Struct

from streamlib import App, Context, Event, Exact, Ordered, Prefix, ReadModel, Reject, Retry
from streamlib.errors import NotConfirmed, RedisUnfit, SchemaError, WrongKeyType
from streamlib.keys import Keys
from streamlib.ops.comparing import Difference
from streamlib.ops.dropping import drop
from streamlib.ops.inspect import inspect
from streamlib.ops.rebuild import Rebuild
from streamlib.ops.views import View
from streamlib.redisio.retention import trim_once
from streamlib.redisio.scripts import Script
from streamlib.settings import IdempotencySettings, LimitSettings, RedisSettings, RetentionSettings
from tests.helpers.delivering import burst, running, settings
from tests.helpers.publishing import open_door
from tests.helpers.waiting import eventually

JOBS, BOARD = "jobs", "board"


class Stage(Struct, frozen=True):
    """A server: as somebody with all rights sees it, and as the user does whose rights are looked at."""

    admin: Any
    url: str
    user_url: str


Deed = Callable[[Stage], Awaitable[None]]


class Job(Event):
    n: int
    job: str = "j"


class Row(ReadModel):
    job: str
    n: int
    total: int = 0
    tag: str = "t"


class Shop:
    """An app with a handler group, a view and aggregates on one topic."""

    def __init__(
        self,
        url: str,
        *,
        durability: str = "primary",
        ordering: Any = "none",
        on_dead: Any = "continue",
        store: Any = "keys",
    ) -> None:
        self.app = App(
            "shop",
            settings=settings(
                url,
                lease_ms=600,
                reclaim_ms=100,
                sections={
                    "redis": RedisSettings(url=url, retry_s=0.5),
                    "limits": LimitSettings(topic_len=100_000),
                    "idempotency": IdempotencySettings(store=store),
                },
            ),
        )
        self.jobs = self.app.topic(JOBS, Job, key="job", dedup_window_s=60, durability=durability)
        self.runs: list[int] = []

        @self.app.handler(
            self.jobs, group="g", ordering=ordering, on_dead=on_dead, retry=Retry(max_attempts=2, base=0.001)
        )
        async def handle(event: Job, ctx: Context) -> None:
            self.runs.append(event.n)
            if event.n == 1 and ctx.attempt == 1:
                raise ValueError("once")
            if event.n == 2:
                raise Reject("never")
            if event.n == 3:
                ctx.publish(self.jobs, Job(n=4))
            if event.n == 5:
                await asyncio.sleep(1.0)  # longer than a lease

        board = self.app.projection(
            BOARD, self.jobs, Row, key="job", indexes=[Exact("n"), Exact("tag"), Ordered("total"), Prefix("job")]
        )

        @board.on(Job)
        def fold(row: Row | None, event: Job) -> Row | None:
            if event.n == 2:
                raise ValueError("never")
            return None if event.n == 9 else Row(job=event.job, n=event.n)

        self.board = board


# -- who publishes -----------------------------------------------------------------------------------------------


async def publishes(stage: Stage) -> None:
    shop = Shop(stage.user_url)
    async with shop.app:
        await shop.jobs.publish(Job(n=0), id="a")
        await shop.jobs.publish(Job(n=0), id="a")
        for _ in range(2):
            await shop.jobs.publish(Job(n=0), id="later", delay=3600)
    assert stage.admin.xlen(JOBS) == 1
    assert stage.admin.zcard(f"{{{JOBS}}}:later") == 1


@contextmanager
def each_script_sent_twice() -> Iterator[None]:
    """As after a lost reply."""
    run = Script.run

    async def twice(script: Script, *args: Any) -> Any:
        await run(script, *args)
        return await run(script, *args)

    with mock.patch.object(Script, "run", twice):
        yield


async def publishes_twice(stage: Stage) -> None:
    with each_script_sent_twice():
        await publishes(stage)


async def names_a_wrong_type(stage: Stage) -> None:
    stage.admin.set(f"{{{JOBS}}}:producers", "text")
    shop = Shop(stage.user_url)
    async with shop.app:
        with pytest.raises(WrongKeyType):
            await shop.jobs.publish(Job(n=0))


async def opens_where_a_group_was_lost(stage: Stage) -> None:
    stage.admin.hset(Keys().group(JOBS, "g"), "pos:0", "5-0")
    stage.admin.xadd(JOBS, {"id": "x"}, id="7-0")
    async with Shop(stage.user_url).app:
        groups = {row["name"].decode(): row["last-delivered-id"] for row in stage.admin.xinfo_groups(JOBS)}
    assert groups["g"] == b"5-0"


async def confirms(stage: Stage) -> None:
    fsynced = Shop(stage.user_url, durability="fsync")
    async with fsynced.app:
        assert (await fsynced.jobs.publish(Job(n=0))).entry_id
    copied = Shop(stage.user_url, durability="replicas:1")
    async with copied.app:
        with pytest.raises(NotConfirmed, match="0 of 1 replicas"):
            await copied.jobs.publish(Job(n=0))


async def refuses_a_server_that_evicts(stage: Stage) -> None:
    stage.admin.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(RedisUnfit):
            async with Shop(stage.user_url).app:
                pass
    finally:
        stage.admin.config_set("maxmemory-policy", "noeviction")


# -- who works ---------------------------------------------------------------------------------------------------


async def handles(stage: Stage) -> None:
    shop = Shop(stage.user_url)
    async with shop.app:
        await shop.jobs.publish_many([Job(n=n, job=str(n)) for n in (0, 1, 2, 3, 5)])
        await shop.jobs.publish(Job(n=6), delay=0.05)
        assert await burst(shop.app, ["g"]) == 0
        await eventually(lambda: 6 in shop.runs or stage.admin.xlen(JOBS) == 7)
        assert await burst(shop.app, ["g"]) == 0
    assert sorted(shop.runs) == [0, 1, 1, 2, 3, 4, 5, 6]
    assert stage.admin.xlen(f"{{{JOBS}}}:dead:g") == 1
    assert stage.admin.xinfo_consumers(JOBS, "g") == []


async def takes_over(stage: Stage) -> None:
    """An event that was read and never claimed, and one whose worker died with it."""
    shop = Shop(stage.user_url)
    async with shop.app:
        await shop.jobs.publish(Job(n=0), id="unclaimed")
        await shop.jobs.publish(Job(n=7), id="claimed")
        read = stage.admin.xreadgroup("g", "dead", {JOBS: ">"})
        last = read[0][1][-1][0].decode()
        stage.admin.set(f"{{{JOBS}}}:idem:g:claimed", f"c1:dead:{last}", px=60_000)
        async with running(shop.app, ["g"]):
            await eventually(lambda: {0, 7} <= {*shop.runs})
            await eventually(lambda: stage.admin.xpending(JOBS, "g")["pending"] == 0)


async def keeps_order(stage: Stage) -> None:
    shop = Shop(stage.user_url, ordering="key")
    async with shop.app, running(shop.app, ["g"]):
        await shop.jobs.publish_many([Job(n=n) for n in (0, 1, 2, 6)])
        await eventually(lambda: 6 in shop.runs)
        await asyncio.sleep(0.2)
        await shop.jobs.publish(Job(n=7))
        await eventually(lambda: 7 in shop.runs)
    assert shop.runs == [0, 1, 1, 2, 6, 7]


async def keeps_marks_compactly(stage: Stage) -> None:
    shop = Shop(stage.user_url, store="compact")
    async with shop.app:
        await shop.jobs.publish_many([Job(n=0, job=str(n)) for n in range(20)])
        assert await burst(shop.app, ["g"]) == 0
        stage.admin.xadd(JOBS, {**stage.admin.xrange(JOBS, count=1)[0][1]})
        assert await burst(shop.app, ["g"]) == 0
    assert len(shop.runs) == 20
    assert [*stage.admin.scan_iter("*:done:g:*:*")], "marks are members of sets"


async def trims_and_looks(stage: Stage) -> None:
    shop = Shop(stage.user_url)
    async with shop.app:
        await shop.jobs.publish_many([Job(n=0) for _ in range(5)])
        await shop.jobs.publish(Job(n=0), delay=3600)
        stage.admin.xgroup_setid(JOBS, BOARD, "$")
        stage.admin.xreadgroup("g", "c", {JOBS: ">"}, count=2)
        (seen,) = await inspect(shop.app.redis, shop.app.keys)
        assert (seen.length, seen.delayed) == (5, 1)
        stage.admin.xgroup_setid(JOBS, "g", "$")
        for entry in stage.admin.xpending_range(JOBS, "g", "-", "+", 10):
            stage.admin.xack(JOBS, "g", entry["message_id"])
        done = await trim_once(shop.app.redis, shop.app.keys, shop.jobs.spec, RetentionSettings(max_len=1))
        assert done.trimmed == 4


# -- who keeps and reads views -----------------------------------------------------------------------------------


async def projects(stage: Stage) -> None:
    source = Shop(stage.url)
    async with source.app:
        await source.jobs.publish(Job(n=9, job="x"), delay=0.05)
        some = [Job(n=n, job=str(n)) for n in (0, 1, 2)]
        await source.jobs.publish_many([*some, Job(n=9, job="0"), Job(n=3, job="1")])
        shop = Shop(stage.user_url)
        async with shop.app:
            assert await burst(shop.app, [BOARD]) == 0
            assert [row.n for row in await source.board.rows()] == [3]
            await source.jobs.publish(Job(n=9, job="1"))
            assert await burst(shop.app, [BOARD]) == 0
        assert await source.board.rows() == []
    assert stage.admin.xlen(f"{{{JOBS}}}:dead:{BOARD}") == 1
    assert {row["name"].decode(): row["lag"] for row in stage.admin.xinfo_groups(JOBS)}[BOARD] == 0


async def reads(stage: Stage) -> None:
    source = Shop(stage.url)
    async with source.app:
        await source.jobs.publish_many([Job(n=n, job=str(n)) for n in (0, 1, 3)])
        assert await burst(source.app, [BOARD]) == 0
        position = await source.jobs.publish(Job(n=4, job="4"))
        assert await burst(source.app, [BOARD]) == 0
    shop = Shop(stage.user_url)
    async with shop.app:
        row = await shop.board.get("1")
        assert row is not None
        assert [one.job for one in await shop.board.find(n=3, tag="t")] == ["3"]
        assert [one.job for one in await shop.board.prefix("job", "3")] == ["3"]
        assert len(await shop.board.between("total", 0, 9)) == 4
        assert (await shop.board.count(n=3), await shop.board.count()) == (1, 4)
        await shop.board.wait_for(position, timeout=5)
        stage.admin.set(f"{{{JOBS}}}:view:{BOARD}:1:row:9", "text")
        with pytest.raises(SchemaError, match="not a hash"):
            await shop.board.get("9")


async def rebuilds(stage: Stage) -> None:
    source = Shop(stage.url)
    shop = Shop(stage.user_url)
    async with source.app, shop.app:
        await source.jobs.publish_many([Job(n=n, job=str(n)) for n in (0, 1, 3)])
        assert await burst(source.app, [BOARD]) == 0
        view = View(projection=shop.board, redis=shop.app.redis, keys=shop.app.keys, settings=shop.app.settings)
        result = await Rebuild(view).run(_yes, lambda done, total: None)
        assert (result.switched, result.events) == (True, 3)
        await drop(view, await view.standing(), result.kept)
        assert len(await source.board.rows()) == 3
    assert not [*stage.admin.scan_iter(f"*:view:{BOARD}:1*")]


async def _yes(_: Difference) -> bool:
    return True


async def looks_at_groups(stage: Stage) -> None:
    """As every worker does, for its gauges."""
    shop = Shop(stage.url)
    async with shop.app:
        await shop.jobs.publish_many([Job(n=0) for _ in range(3)])
        stage.admin.xreadgroup("g", "c", {JOBS: ">"}, count=1)
    async with open_door(stage.user_url) as door:
        (seen,) = await inspect(door, Keys())
    assert seen.length == 3
