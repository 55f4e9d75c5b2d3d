"""Owners are killed, frozen, cut off and robbed of their server: a view still equals the fold of its stream."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest
import redis

from streamlib.message import Position
from streamlib.redisio.commits import Batch, IndexChange, Verdict, commit
from streamlib.redisio.indexes import ViewKeys
from streamlib.redisio.ownership import release, renew, take
from tests.helpers.processes import end_process, stop_process
from tests.helpers.projecting import TOPIC, VIEW, Closed, Moved, Opened, Rig
from tests.helpers.proxy import ChaosProxy
from tests.helpers.servers import RedisProc
from tests.helpers.waiting import eventually, wait_until
from tests.helpers.workers import ROOT

LEASE_MS = 1_500
HEAD = f"{{{TOPIC}}}:view:{VIEW}:1"
OWNER = f"{{{TOPIC}}}:owner:{VIEW}"


@pytest.fixture
async def rig(redis_url: str) -> AsyncIterator[Rig]:
    async with Rig(redis_url, lease_ms=LEASE_MS) as rig:
        yield rig


@contextlib.contextmanager
def process(url: str, worker: str, *, owns: bool = True) -> Iterator[subprocess.Popen[bytes]]:
    """A projector in a process of its own; with `owns`, it has taken the partition."""
    started = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.projecting", url, worker, str(LEASE_MS), "1"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    )
    try:
        if owns:
            assert started.stdout is not None
            assert started.stdout.readline() == b"owns\n"
        yield started
    finally:
        end_process(started)
        if started.stdout is not None:
            started.stdout.close()


async def load(rig: Rig, client: redis.Redis, rounds: range) -> Position:
    """Open, move and close accounts, some of it twice; in a thread, so that projectors here can renew."""
    return await asyncio.to_thread(_load, rig, client, rounds)


def _load(rig: Rig, client: redis.Redis, rounds: range) -> Position:
    for n in rounds:
        account = f"a{n % 50}"
        rig.publish(client, Opened(account=account, owner=f"o{n % 4}"), f"open-{n}")
        for _ in range(2):
            rig.publish(client, Moved(account=account, amount=Decimal(n) / 3), f"move-{n}")
        if n % 7 == 0:
            rig.publish(client, Closed(account=account), f"close-{n}")
    return rig.publish(client, Opened(account="last", owner="o9"))


async def assert_view_is_right(rig: Rig, client: redis.Redis) -> None:
    """Rows, counter and indexes equal a recomputation from the stream."""
    expected = rig.recomputed(client)
    assert await rig.stored(client) == expected
    assert await rig.view.count() == len(expected)
    for owner in {row.owner for row in expected.values()} | {"o0", "o1", "o2", "o3"}:
        named = sorted(row.account for row in expected.values() if row.owner == owner)
        assert [row.account for row in await rig.view.find(owner=owner)] == named
        assert await rig.view.count(owner=owner) == len(named)
    by_balance = sorted(expected.values(), key=lambda row: (row.balance, row.account))
    assert await rig.view.between("balance", None, None, limit=1000) == by_balance
    assert client.zcard(f"{HEAD}:by:balance") == len(expected)


@pytest.mark.row(1)
@pytest.mark.chaos
async def test_owners_killed_in_mid_load_lose_and_double_nothing(rig: Rig, redis_url: str, client: redis.Redis) -> None:
    for n in range(4):
        before = client.hget(HEAD, "checkpoint")
        with process(redis_url, f"victim-{n}") as victim:
            await load(rig, client, range(n * 300, n * 300 + 300))
            wait_until(lambda before=before: client.hget(HEAD, "checkpoint") != before, what="it projects")  # type: ignore[misc]
            victim.kill()
            victim.wait()
    last = await load(rig, client, range(2000, 2010))
    async with rig.running("survivor"):
        await rig.view.wait_for(last, timeout=30)
        await assert_view_is_right(rig, client)


@pytest.mark.chaos
async def test_a_standby_goes_on_when_the_owner_dies(rig: Rig, redis_url: str, client: redis.Redis) -> None:
    with process(redis_url, "owner") as owner:
        async with rig.running("standby") as (standby,):
            await rig.view.wait_for(await load(rig, client, range(20)), timeout=10)
            assert not standby.owned
            owner.kill()
            owner.wait()
            await rig.view.wait_for(await load(rig, client, range(20, 40)), timeout=10)
            assert standby.owned == {0}
            await assert_view_is_right(rig, client)


@pytest.mark.row(4)
@pytest.mark.chaos
async def test_an_owner_frozen_past_its_lease_is_fenced(rig: Rig, redis_url: str, client: redis.Redis) -> None:
    with process(redis_url, "frozen") as frozen:
        await rig.view.wait_for(await load(rig, client, range(20)), timeout=10)
        stop_process(frozen)
        async with rig.running("standby") as (standby,):
            await rig.view.wait_for(await load(rig, client, range(20, 400)), timeout=20)
            epoch = client.hget(OWNER, "epoch")
            frozen.send_signal(signal.SIGCONT)
            await rig.view.wait_for(await load(rig, client, range(400, 800)), timeout=20)
            assert standby.owned == {0}
            assert client.hget(OWNER, "epoch") == epoch
            await assert_view_is_right(rig, client)
        await eventually(
            lambda: client.hget(OWNER, "owner") == b"frozen", what="the thawed one takes the released partition"
        )
        await rig.view.wait_for(await load(rig, client, range(800, 810)), timeout=10)
        await assert_view_is_right(rig, client)


@pytest.mark.row(21)
async def test_lost_replies_double_nothing(redis_url: str, client: redis.Redis, proxy: ChaosProxy) -> None:
    async with Rig(proxy.url, lease_ms=5_000) as rig, Rig(redis_url) as plain:
        async with rig.running():
            for n in range(10):
                proxy.drop_next_reply(b"EVALSHA")
                await plain.view.wait_for(await load(rig, client, range(n * 20, n * 20 + 20)), timeout=20)
        await assert_view_is_right(plain, client)
        assert proxy.struck >= 5


def small_batch(keys: ViewKeys, old: str, new: str) -> Batch:
    return Batch(
        old=old,
        new=new,
        entries=1,
        marks={"e": "d", "bad": "x"},
        rows={"r": {b"account": b"r", b"owner": b"o"}},
        row_delta=1,
        indexes={keys.exact("owner", "o"): IndexChange([b"gone"], [b"r"], [0.0])},
        inexact=["balance"],
        dead=[[b"id", b"bad", b"dl-at", b"0"]],
    )


def everything(client: redis.Redis) -> dict[Any, Any]:
    return {key: (client.dump(key), client.pttl(key) > 0) for key in client.keys("*")}


@pytest.mark.row(21)
async def test_a_commit_sent_twice_writes_once(rig: Rig, client: redis.Redis) -> None:
    keys = ViewKeys(rig.keys.stream(TOPIC, 0, 1), VIEW, 1)
    position = rig.publish(client, Opened(account="r", owner="o"))
    lease = await take(rig.door, OWNER, "me", 60_000)
    batch = small_batch(keys, "0-0", position.entry_id)
    given: dict[str, Any] = {"owner": "me", "epoch": lease.epoch, "window_ms": 60_000}
    assert (await commit(rig.door, keys, VIEW, batch=batch, **given)).verdict is Verdict.OK
    after = everything(client)
    assert (await commit(rig.door, keys, VIEW, batch=batch, **given)).verdict is Verdict.OK
    assert everything(client) == after
    for wrong in ({"owner": "other"}, {"epoch": lease.epoch - 1}):
        later = small_batch(keys, position.entry_id, rig.publish(client, Closed(account="r")).entry_id)
        before = everything(client)
        assert (await commit(rig.door, keys, VIEW, batch=later, **given | wrong)).verdict is Verdict.FENCED
        assert everything(client) == before
    stale = small_batch(keys, "1-0", rig.publish(client, Closed(account="r")).entry_id)
    assert (await commit(rig.door, keys, VIEW, batch=stale, **given)).verdict is Verdict.FENCED


@pytest.mark.row(73)
@pytest.mark.allow_keys("*")
@pytest.mark.parametrize("part", ["owner", "head", "dead", "row", "index", "stream"])
async def test_a_commit_that_meets_a_wrong_type_writes_nothing(rig: Rig, client: redis.Redis, part: str) -> None:
    keys = ViewKeys(rig.keys.stream(TOPIC, 0, 1), VIEW, 1)
    position = rig.publish(client, Opened(account="r", owner="o"))
    lease = await take(rig.door, OWNER, "me", 60_000)
    bad = {
        "owner": OWNER,
        "head": keys.head,
        "dead": keys.stream.dead(VIEW),
        "row": keys.row("r"),
        "index": keys.exact("owner", "o"),
        "stream": TOPIC,
    }[part]
    client.delete(bad)
    client.set(bad, "mine")
    before = everything(client)
    answer = await commit(
        rig.door,
        keys,
        VIEW,
        owner="me",
        epoch=lease.epoch,
        window_ms=1000,
        batch=small_batch(keys, "0-0", position.entry_id),
    )
    assert (answer.verdict, answer.detail) == (Verdict.WRONG_TYPE, bad)
    assert everything(client) == before


@pytest.mark.row(31)
async def test_a_commit_larger_than_one_call_can_unpack(rig: Rig, client: redis.Redis) -> None:
    keys = ViewKeys(rig.keys.stream(TOPIC, 0, 1), VIEW, 1)
    position = rig.publish(client, Opened(account="r", owner="o"))
    lease = await take(rig.door, OWNER, "me", 60_000)
    members = [b"m%d" % n for n in range(30_000)]
    batch = Batch(
        old="0-0",
        new=position.entry_id,
        entries=1,
        marks={f"e{n}": "d" for n in range(500)},
        rows={"wide": {b"f%d" % n: b"%d" % n for n in range(20_000)}},
        row_delta=1,
        indexes={keys.sorted_by("balance"): IndexChange(members, members, [float(n) for n in range(30_000)])},
        inexact=[],
        dead=[],
    )
    answer = await commit(rig.door, keys, VIEW, owner="me", epoch=lease.epoch, window_ms=60_000, batch=batch)
    assert answer.verdict is Verdict.OK
    assert client.hlen(keys.row("wide")) == 20_000
    assert client.zcard(keys.sorted_by("balance")) == 30_000


async def test_ownership_passes_on_and_its_epoch_only_grows(rig: Rig, client: redis.Redis) -> None:
    first = await take(rig.door, OWNER, "a", 60_000)
    assert first.ours
    assert (await take(rig.door, OWNER, "a", 60_000)).epoch == first.epoch  # sent twice
    refused = await take(rig.door, OWNER, "b", 60_000)
    assert not refused.ours
    assert 0 < refused.ms_left <= 60_000
    assert (await renew(rig.door, OWNER, "a", first.epoch, 60_000)).ours
    assert not (await renew(rig.door, OWNER, "b", first.epoch, 60_000)).ours
    assert (await release(rig.door, OWNER, "a", first.epoch)).ours
    second = await take(rig.door, OWNER, "b", 60_000)
    assert second.ours
    assert second.epoch > first.epoch
    assert not (await renew(rig.door, OWNER, "a", first.epoch, 60_000)).ours
    assert not (await release(rig.door, OWNER, "a", first.epoch)).ours
    assert client.hget(OWNER, "owner") == b"b"
    client.hset(OWNER, mapping={"deadline": "0", "epoch": str(2**52)})  # a clock that went back
    assert (await take(rig.door, OWNER, "a", 1000)).epoch == 2**52 + 1
    assert client.ttl(OWNER) == -1


@pytest.mark.row(33)
async def test_a_flushed_server_is_projected_from_its_start(
    rig: Rig, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    async with rig.running():
        await rig.view.wait_for(await load(rig, client, range(20)), timeout=10)
        client.flushall()
        last = await load(rig, client, range(100, 120))
        await rig.view.wait_for(last, timeout=10)
        await assert_view_is_right(rig, client)
    assert "source_rolled_back" in caplog.messages


@pytest.mark.row(40)
async def test_a_view_ahead_of_its_stream_stands_still(
    rig: Rig, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    async with rig.running("one") as (projector,):
        await rig.view.wait_for(await load(rig, client, range(20)), timeout=10)
        rows = await rig.stored(client)
        client.delete(TOPIC)
        await eventually(lambda: projector.problems, what="it notices")
        assert "rebuild the view" in projector.problems[0]
    async with Rig(rig.settings.redis.url, lease_ms=LEASE_MS) as later:
        async with later.running("two") as (projector,):  # and no restart goes on behind it
            later.publish(client, Closed(account="last"))
            await eventually(lambda: projector.problems, what="it still stands")
            assert await later.stored(client) == rows
        assert "source_rolled_back" in caplog.messages


@pytest.mark.row(32)
@pytest.mark.chaos
async def test_a_server_that_comes_back_with_its_data_is_projected_on(
    own_server: Callable[..., RedisProc],
) -> None:
    server = own_server(aof=True)
    async with Rig(server.url, lease_ms=LEASE_MS) as rig, rig.running():
        with server.client() as client:
            await load(rig, client, range(50))
        server.kill9()
        server.restart()
        with server.client() as client:
            await rig.view.wait_for(await load(rig, client, range(50, 100)), timeout=20)
            await assert_view_is_right(rig, client)


@pytest.mark.row(36)
async def test_a_full_server_delays_the_view_and_corrupts_nothing(
    own_server: Callable[..., RedisProc],
) -> None:
    server = own_server()
    async with Rig(server.url, lease_ms=LEASE_MS) as rig:
        with server.client() as client:
            last = await load(rig, client, range(100))
            client.config_set("maxmemory", "1mb")
            async with rig.running():
                with pytest.raises(TimeoutError):
                    await rig.view.wait_for(last, timeout=0.5)
                assert not client.exists(HEAD)
                client.config_set("maxmemory", "0")
                await rig.view.wait_for(last, timeout=10)
                await assert_view_is_right(rig, client)
