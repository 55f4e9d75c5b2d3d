"""Every script on a cluster, each with the line that makes the server refuse keys of another slot."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import streamlib.redisio
from streamlib import (
    Aggregate,
    App,
    Command,
    Context,
    Event,
    Exact,
    Ordered,
    Prefix,
    ReadModel,
    Reject,
    Retry,
    applies,
)
from streamlib.ops.dead_letters import DeadLetters, Filters
from streamlib.ops.pace import Pace
from streamlib.ops.ranges import BEGIN, Asked
from streamlib.ops.removal import remove
from streamlib.ops.replay import Replay as RangeReplay
from streamlib.redisio.connection import SyncClient
from streamlib.redisio.failures import CLIENT_ERRORS
from streamlib.redisio.generations import ViewName, begin
from streamlib.redisio.key_states import halted_count, resume, skip
from streamlib.redisio.retention import trim_once
from streamlib.redisio.scripts import Arg, Executes, Script
from streamlib.settings import RetentionSettings
from streamlib.worker.projection import Projection
from tests.helpers.by_hand import read_bounded, read_by_hand
from tests.helpers.cluster import ClusterTopology
from tests.helpers.delivering import outcomes, running, settings
from tests.helpers.waiting import eventually

PARTITIONS = 3
EVENTS = 60
ALL = {path.stem for path in (Path(streamlib.redisio.__file__).parent / "lua").glob("*.lua")}

pytestmark = pytest.mark.timeout(120)


class Moved(Event):
    account: str
    n: int


class Balance(ReadModel):
    account: str
    moves: int
    total: Decimal


class Account(Aggregate):
    total: int = 0

    @applies(Moved)
    def moved(self, event: Moved) -> None:
        self.total += event.n


class Move(Command):
    account: str
    n: int


@pytest.fixture(scope="module")
def cluster(server_kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterTopology]:
    with ClusterTopology(tmp_path_factory.mktemp("cluster"), kind=server_kind) as started:
        yield started


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The scripts that ran. From now on the server looks at the slot of each key that they touch."""
    found: set[str] = set()

    def command(script: Script, keys: Sequence[str], args: Sequence[Arg]) -> tuple[Any, ...]:
        found.add(script.name)
        return ("EVAL", b"#!lua\n" + script._body, len(keys), *keys, *args)

    async def run(script: Script, redis: Executes, keys: Sequence[str], args: Sequence[Arg]) -> Any:
        return await redis.execute(*command(script, keys, args))

    def run_sync(script: Script, redis: SyncClient, keys: Sequence[str], args: Sequence[Arg]) -> Any:
        return redis.execute(*command(script, keys, args))

    monkeypatch.setattr(Script, "run", run)
    monkeypatch.setattr(Script, "run_sync", run_sync)
    return found


@pytest.mark.row(55)
async def test_a_script_that_reaches_into_another_slot_is_refused(cluster: ClusterTopology, used: set[str]) -> None:
    """What the other test relies on."""
    app = App("bank", settings=settings(cluster.url))
    wrong = Script("scan")
    wrong._body = b"return redis.call('GET', 'elsewhere')"
    async with app:
        with pytest.raises(CLIENT_ERRORS, match=r"do not hash to the same slot|non local key"):
            await wrong.run(app.redis, ["orders"], [])


async def has_moves(view: Projection[Balance], number: int) -> bool:
    return sum(row.moves for row in await view.between("total", 0, 10_000)) == number


async def commands_are_answered(url: str) -> None:
    """The scripts of aggregates and of the answers of commands."""
    app = App("teller", settings=settings(url))
    accounts = app.repository(Account, app.topic("saves", Moved, key="account", partitions=PARTITIONS))

    @app.command_handler
    async def move(command: Move) -> int:
        account = await accounts.load_or_new(command.account)
        account.record(Moved(account=account.id, n=command.n))
        await accounts.save(account)
        return account.total

    async with app:
        for n in range(PARTITIONS * 2):
            answers = [await app.dispatch(Move(account=f"a{n}", n=7), idempotency_key=f"key-{n}") for _ in range(2)]
            assert [answer.value for answer in answers] == [7, 7]
            assert (await accounts.load(f"a{n}")).total == 7


@pytest.mark.row(55, 74)
async def test_every_script_keeps_to_its_slot(cluster: ClusterTopology, used: set[str]) -> None:
    app = App("bank", settings=settings(cluster.url, lease_ms=1_000))
    moves = app.topic("moves", Moved, key="account", partitions=PARTITIONS, dedup_window_s=60)
    view = app.projection(
        "balances", moves, Balance, key="account", indexes=[Exact("moves"), Ordered("total"), Prefix("account")]
    )
    failed: set[str] = set()
    mended = False

    @view.on(Moved)
    def fold(row: Balance | None, event: Moved) -> Balance:
        before = row or Balance(account=event.account, moves=0, total=Decimal(0))
        return Balance(account=event.account, moves=before.moves + 1, total=before.total + event.n)

    @app.handler(moves, group="mail", retry=Retry(base=0.01, cap=0.02), rate="10000/s", group_concurrency=50)
    async def mail(event: Moved, ctx: Context) -> None:
        if event.n % 10 == 3 and not mended:
            raise Reject("not yet")
        if event.n % 10 == 5 and ctx.event_id not in failed:
            failed.add(ctx.event_id)
            raise ValueError("once")
        while event.n == EVENTS - 1 and "renew" not in used:  # it is held until its claim has been renewed
            await asyncio.sleep(0.01)

    @app.handler(moves, group="ledger", ordering="key", on_dead="block", retry=Retry(base=0.01, cap=0.02))
    async def ledger(event: Moved) -> None:
        if event.account in ("a0", "a1") and event.n < 10 and not mended:
            raise Reject("not yet")

    async with app:
        places = await moves.publish_many([Moved(account=f"a{n % 10}", n=n) for n in range(EVENTS - 1)])
        assert len(places) == EVENTS - 1
        async with running(app):
            await moves.publish(Moved(account="a9", n=EVENTS - 1), delay=0.2)
            await eventually(lambda: outcomes(app, "mail").get("ok") == EVENTS - 6)
            await eventually(lambda: outcomes(app, "ledger").get("halted") == 2)
            letters = DeadLetters(app.redis, app.keys, window_s=60)
            mended = True
            found = [one async for one in letters.find(Filters(topic="moves", group="mail"))]
            assert len(found) == 6
            await letters.replay(found)
            await eventually(lambda: outcomes(app, "mail").get("ok") == EVENTS)
            streams = [app.keys.stream("moves", number, PARTITIONS) for number in range(PARTITIONS)]
            assert sum([await halted_count(app.redis, one, "ledger") for one in streams]) == 2
            assert [await resume(app.redis, one, "ledger", "a0") for one in streams].count(True) == 1
            assert [await skip(app.redis, one, "ledger", "a1", window_ms=60_000) for one in streams].count(True) == 1
            await eventually(lambda: outcomes(app, "ledger").get("ok") == EVENTS - 1)
            await eventually(lambda: has_moves(view, EVENTS))
            replay = RangeReplay(app.redis, app.keys, Asked(topic="moves", start=BEGIN), "mail", window_s=60)
            await replay.check()
            assert (await replay.run(Pace(), lambda n: None)).replayed == EVENTS
            await eventually(lambda: outcomes(app, "mail").get("ok") == 2 * EVENTS)
        assert await read_by_hand(app.redis, streams[0])
        assert await read_bounded(app.redis, streams[0].stream)
        await trim_once(app.redis, app.keys, moves.spec, RetentionSettings(max_len=1))
        await remove(app.redis, app.keys, "moves", "mail")
        assert await begin(app.redis, app.keys, ViewName("moves", "balances"), 1, 2, "a fingerprint")
    await commands_are_answered(cluster.url)
    assert used == ALL, f"not run: {sorted(ALL - used)}"
