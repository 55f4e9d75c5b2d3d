"""What each role does, as deeds that fail visibly when the role's user is refused a command that it needs."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest

from streamlib import Aggregate, App, Command, applies
from streamlib.errors import StreamlibError
from streamlib.keys import Keys
from streamlib.ops import halted
from streamlib.ops.check import Declared, check
from streamlib.ops.dead_letters import DeadLetters, Filters
from streamlib.ops.groups import change, create, rows
from streamlib.ops.halted import failing_keys, halted_key
from streamlib.ops.inspect import inspect
from streamlib.ops.pace import Pace
from streamlib.ops.ranges import BEGIN, Asked
from streamlib.ops.removal import archive, remove
from streamlib.ops.replay import Replay as RangeReplay
from streamlib.ops.workers import live_workers
from streamlib.settings import LimitSettings
from tests.helpers.acl_shop import (
    BOARD,
    JOBS,
    Deed,
    Job,
    Shop,
    Stage,
    confirms,
    each_script_sent_twice,
    handles,
    keeps_marks_compactly,
    keeps_order,
    looks_at_groups,
    names_a_wrong_type,
    opens_where_a_group_was_lost,
    projects,
    publishes,
    publishes_twice,
    reads,
    rebuilds,
    refuses_a_server_that_evicts,
    takes_over,
    trims_and_looks,
)
from tests.helpers.delivering import burst, running, settings
from tests.helpers.publishing import open_door
from tests.helpers.waiting import eventually

# -- who keeps aggregates ----------------------------------------------------------------------------------------


class Counter(Aggregate):
    n: int = 0

    @applies(Job)
    def _counted(self, event: Job) -> None:
        self.n += event.n


class Count(Command):
    job: str
    n: int


def counting(url: str) -> tuple[App, Any]:
    app = App(JOBS, settings=settings(url, sections={"limits": LimitSettings(topic_len=100_000)}))
    counters = app.repository(Counter, app.topic(JOBS, Job, key="job"), snapshot_every=2)

    @app.command_handler
    async def count(command: Count) -> int:
        counter = await counters.load_or_new(command.job)
        counter.record(Job(job=counter.id, n=command.n))
        await counters.save(counter)
        return counter.n

    return app, counters


async def saves(stage: Stage) -> None:
    app, counters = counting(stage.user_url)
    async with app:
        for _ in range(5):
            answers = [await app.dispatch(Count(job="a", n=1), idempotency_key="k") for _ in range(2)]
            assert {answer.value for answer in answers} == {1}
            counter = await counters.load_or_new("b")
            counter.record(Job(job="b", n=1))
            await counters.save(counter)
        assert (await counters.load("b")).n == 5
        assert len(await counters.history("b")) == 5
        assert stage.admin.get(f"{{{JOBS}}}:snap:b") is not None
        ticket = await app.send(Count(job="c", n=2))
        there, _ = counting(stage.url)
        async with there:
            assert await burst(there) == 0
        assert (await ticket.wait_for(timeout=10)).value == 2


async def answers_twice(stage: Stage) -> None:
    app, _ = counting(stage.user_url)
    async with app:
        with each_script_sent_twice():
            assert (await app.dispatch(Count(job="a", n=1), idempotency_key="k")).value == 1
    assert stage.admin.xlen(JOBS) == 1


async def takes_back_what_the_stream_refuses(stage: Stage) -> None:
    app, counters = counting(stage.user_url)
    async with app:
        stage.admin.xadd(JOBS, {"id": "x"}, id="18446744073709551615-18446744073709551614")
        counter = Counter("a")
        counter.record(Job(job="a", n=1))
        counter.record(Job(job="a", n=1))
        with pytest.raises(StreamlibError, match="last possible"):
            await counters.save(counter)
    assert stage.admin.xlen(JOBS) == 1
    assert not stage.admin.exists(f"{{{JOBS}}}:agg:a")


# -- who looks, and who operates ---------------------------------------------------------------------------------


async def _something_failed(stage: Stage, store: str = "keys") -> None:
    shop = Shop(stage.url, store=store)
    async with shop.app:
        await shop.jobs.publish_many([Job(n=n, job=str(n)) for n in (0, 2)])
        assert await burst(shop.app, ["g"]) == 0


async def looks(stage: Stage) -> None:
    await _something_failed(stage)
    async with open_door(stage.user_url) as door:
        await door.execute("PING")
        letters = DeadLetters(door, Keys(), window_s=3600)
        (letter,) = await letters.newest(Filters())
        assert (await letters.get(letter.id)).event_id == letter.event_id
        assert await live_workers(door, Keys(), 600) == []
        assert [row.group for row in await rows(door, Keys(), JOBS, 600)] == [BOARD, "g"]
        shop = Shop(stage.url)
        groups = [Declared(spec.topic, spec.group, spec.kind) for spec in shop.app.groups.values()]
        found = await check(door, Keys(), shop.app.settings, [shop.jobs.spec], groups)
        assert all(one.ok for one in found if one.fatal)
        assert next(one for one in found if one.check == "version").ok


async def _a_key_halted(stage: Stage, *jobs: str) -> None:
    shop = Shop(stage.url, ordering="key", on_dead="block")
    async with shop.app, running(shop.app, ["g"]):
        await shop.jobs.publish_many([Job(n=2, job=job) for job in jobs])
        await eventually(lambda: stage.admin.hlen(f"{{{JOBS}}}:keys:g") == len(jobs))


async def looks_at_keys(stage: Stage) -> None:
    await _a_key_halted(stage, "a")
    stage.admin.script_flush()
    async with open_door(stage.user_url) as door:
        (failing,) = await failing_keys(door, Keys(), None, None)
        (seen,) = await inspect(door, Keys())
    assert failing.state.key == "a"
    assert [group.halted_keys for group in seen.groups] == [0, 1]


async def mends_keys(stage: Stage) -> None:
    await _a_key_halted(stage, "a", "b")
    async with open_door(stage.user_url) as door:
        await halted.resume(door, await halted_key(door, Keys(), JOBS, "g", "a"))
        await halted.skip(door, await halted_key(door, Keys(), JOBS, "g", "b"), window_s=60)
    assert stage.admin.xlen(f"{{{JOBS}}}:dead:g") == 1


async def replays_letters(stage: Stage, store: str = "keys") -> None:
    await _something_failed(stage, store)
    async with open_door(stage.user_url) as door:
        letters = DeadLetters(door, Keys(), window_s=3600)
        found = await letters.newest(Filters())
        if store == "compact":  # its mark has run out, so the sets are looked into
            stage.admin.delete(f"{{{JOBS}}}:idem:g:{found[0].event_id}")
        await letters.replay(found)
        assert stage.admin.xlen(f"{{{JOBS}}}:again:g") == 1
        shop = Shop(stage.url, store=store)
        async with shop.app:
            assert await burst(shop.app, ["g"]) == 0
        assert await letters.purge(await letters.newest(Filters())) == 1


async def replays_compact_marks(stage: Stage) -> None:
    await replays_letters(stage, "compact")


async def replays_a_range(stage: Stage) -> None:
    await _something_failed(stage)
    (_, first), *_ = stage.admin.xrange(JOBS)
    stage.admin.delete(f"{{{JOBS}}}:idem:g:{first[b'id'].decode()}")  # it has run out: a retry may be waiting
    async with open_door(stage.user_url) as door:
        for _ in range(2):
            replay = RangeReplay(door, Keys(), Asked(topic=JOBS, start=BEGIN), "g", window_s=60)
            await replay.check()
            await replay.run(Pace(), lambda n: None)
    assert stage.admin.xlen(f"{{{JOBS}}}:again:g") == 1


async def changes_groups(stage: Stage) -> None:
    await _something_failed(stage)
    async with open_door(stage.user_url) as door:
        await create(door, Keys(), JOBS, "audit", "handler", "end")
        assert await change(door, Keys(), JOBS, "g", "pause")
        assert await change(door, Keys(), JOBS, "g", "resume")
        with tempfile.TemporaryDirectory() as directory:
            assert await archive(door, Keys(), JOBS, "g", Path(directory) / "g.jsonl") == 1
        await remove(door, Keys(), JOBS, "g")
        await remove(door, Keys(), JOBS, BOARD)
    assert [row["name"] for row in stage.admin.xinfo_groups(JOBS)] == [b"audit"]


PUBLISHES: tuple[Deed, ...] = (
    publishes, publishes_twice, names_a_wrong_type, opens_where_a_group_was_lost, confirms,
    refuses_a_server_that_evicts,
)  # fmt: skip
OPENS: tuple[Deed, ...] = (opens_where_a_group_was_lost, refuses_a_server_that_evicts)
DEEDS: dict[str, tuple[Deed, ...]] = {
    "producer": PUBLISHES,
    "worker": (
        handles,
        takes_over,
        keeps_order,
        keeps_marks_compactly,
        trims_and_looks,
        looks_at_keys,
        *PUBLISHES,
    ),
    "projector": (projects, rebuilds, looks_at_groups, looks_at_keys, *OPENS),
    "aggregates": (saves, answers_twice, takes_back_what_the_stream_refuses, *PUBLISHES),
    "reader": (reads, *OPENS),
    "observer": (looks, looks_at_groups, looks_at_keys),
    "operator": (
        looks,
        looks_at_groups,
        looks_at_keys,
        mends_keys,
        replays_letters,
        replays_a_range,
        replays_compact_marks,
        changes_groups,
    ),
}
