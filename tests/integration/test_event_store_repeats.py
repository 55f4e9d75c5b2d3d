"""An append that is sent again, because its reply was lost or to be confirmed, is stored once."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import redis

from streamlib.errors import ConcurrencyConflict, NotConfirmed
from streamlib.redisio.event_store import Answer
from tests.helpers.accounts import ACCOUNTS, LIST, STREAM, deposits, elements, everything, open_store, topic
from tests.helpers.proxy import ChaosProxy
from tests.helpers.servers import RedisProc, available_kinds
from tests.helpers.waiting import eventually, wait_until

SYNCED = topic(durability="fsync")
COPIED = topic(durability="replicas:1")
ANSWER = Answer("req-1", b"=42", 60_000)

Servers = Callable[..., RedisProc]


@pytest.mark.row(21)
@pytest.mark.parametrize("count", [1, 500])
async def test_a_lost_reply_is_sent_again_and_stored_once(
    proxy: ChaosProxy, redis_url: str, client: redis.Redis, count: int
) -> None:
    async with open_store(proxy.url) as store:
        await store.append(ACCOUNTS, "a", 0, deposits("a"))
        proxy.drop_next_reply(b"again-and-again")
        appended = await store.append(ACCOUNTS, "a", 1, deposits("a", count), commit_id="again-and-again")
    assert proxy.struck == 1
    assert appended.repeated
    ids = [position.entry_id for position in appended.positions]
    assert elements(client, "a")[1:] == [(entry_id, "again-and-again") for entry_id in ids]
    assert len(ids) == count
    assert client.xlen(STREAM) == client.llen(f"{LIST}a") == count + 1


async def test_a_reply_cut_in_the_middle_gives_the_first_answer_again(
    proxy: ChaosProxy, redis_url: str, client: redis.Redis
) -> None:
    async with open_store(proxy.url) as store:
        await store.append(ACCOUNTS, "b", 0, deposits("b"))
        proxy.cut_replies_after(1_000)
        appended = await store.append(ACCOUNTS, "a", 0, deposits("a", 300))
    assert proxy.struck == 1
    assert [position.entry_id for position in appended.positions] == [entry for entry, _ in elements(client, "a")]
    assert client.xlen(STREAM) == 301


async def test_a_repeat_is_known_whatever_others_have_appended_since(redis_url: str, client: redis.Redis) -> None:
    """Looked for at the head it would be a conflict with its own events."""
    async with open_store(redis_url) as store:
        await store.append(ACCOUNTS, "a", 0, deposits("a"))
        first = await store.append(ACCOUNTS, "a", 1, deposits("a", 3), commit_id="mine", answer=ANSWER)
        await store.append(ACCOUNTS, "a", 4, deposits("a", 5), commit_id="theirs")
        before = everything(client)
        again = await store.append(ACCOUNTS, "a", 1, deposits("a", 3), commit_id="mine", answer=ANSWER)
    assert (again.version, again.positions, again.repeated) == (first.version, first.positions, True)
    assert {key: value for key, value in everything(client).items() if b":cmd:" not in key} == {
        key: value for key, value in before.items() if b":cmd:" not in key
    }
    assert client.ttl(f"{LIST}a") == -1


async def test_a_commit_is_known_at_its_own_version_only(redis_url: str) -> None:
    async with open_store(redis_url) as store:
        await store.append(ACCOUNTS, "a", 0, deposits("a"), commit_id="one")
        await store.append(ACCOUNTS, "a", 1, deposits("a"), commit_id="one")
        assert (await store.append(ACCOUNTS, "a", 1, deposits("a"), commit_id="one")).repeated
        await store.append(ACCOUNTS, "a", 2, deposits("a"), commit_id="two")
        with pytest.raises(ConcurrencyConflict, match="expected version 2, but it has version 3"):
            await store.append(ACCOUNTS, "a", 2, deposits("a"), commit_id="one")
        assert not (await store.append(ACCOUNTS, "b", 0, deposits("b"), commit_id="one")).repeated


async def test_an_append_that_arrives_late_conflicts_and_writes_nothing(redis_url: str, client: redis.Redis) -> None:
    """A packet of a connection that was given up is carried out after another writer has taken the version."""
    async with open_store(redis_url) as store:
        await store.append(ACCOUNTS, "a", 0, deposits("a"), commit_id="theirs")
        before = everything(client)
        with pytest.raises(ConcurrencyConflict):
            await store.append(ACCOUNTS, "a", 0, deposits("a"), commit_id="late", answer=ANSWER)
    assert everything(client) == before


async def test_the_server_may_forget_its_scripts_between_two_appends(redis_url: str, client: redis.Redis) -> None:
    async with open_store(redis_url) as store:
        for version in range(3):
            client.script_flush()
            await store.append(ACCOUNTS, "a", version, deposits("a"))
            client.script_flush()
            assert await store.length(ACCOUNTS, "a") == len([one async for one in store.read(ACCOUNTS, "a")])


# -- durability


@pytest.mark.parametrize("kind", [kind for kind in available_kinds() if kind != "redis7"])
async def test_an_fsynced_append_is_confirmed(own_server: Servers, kind: str) -> None:
    server = own_server(kind=kind, aof=True, conf={"appendfsync": "everysec"})
    async with open_store(server.url) as store:
        await store.append(SYNCED, "a", 0, deposits("a", 3, SYNCED), commit_id="c")
        with server.client() as client:
            assert client.info("commandstats")["cmdstat_waitaof"]["calls"] == 1
            with pytest.raises(ConcurrencyConflict):
                await store.append(SYNCED, "a", 0, deposits("a", 3, SYNCED))
            assert client.info("commandstats")["cmdstat_waitaof"]["calls"] == 1, "nothing was written to be confirmed"


async def test_what_is_never_fsynced_is_not_confirmed_and_may_be_appended_again(own_server: Servers) -> None:
    server = own_server(kind="valkey", aof=True, conf={"appendfsync": "no"})
    async with open_store(server.url, timeout_s=0.5) as store:
        for _ in range(2):
            with pytest.raises(NotConfirmed, match=r"aggregate 'a': version 2 is stored .*not fsynced"):
                await store.append(SYNCED, "a", 0, deposits("a", 2, SYNCED), commit_id="c")
        with server.client() as client:
            assert client.llen(f"{LIST}a") == client.xlen(STREAM) == 2
            client.config_set("appendfsync", "always")
        appended = await store.append(SYNCED, "a", 0, deposits("a", 2, SYNCED), commit_id="c")
        assert appended.repeated


@pytest.mark.parametrize("kind", available_kinds())
async def test_a_repeated_append_is_not_confirmed_by_a_fresh_connection(own_server: Servers, kind: str) -> None:
    """WAIT on a connection that wrote nothing succeeds at once, whatever the replicas have."""
    primary, replica = await asyncio.to_thread(with_replica, own_server, kind)
    with ChaosProxy(primary.url) as proxy:
        async with open_store(proxy.url, timeout_s=0.5) as store:
            replica.stop()
            proxy.drop_next_reply(b"mine")
            with pytest.raises(NotConfirmed, match="0 of 1 replicas"):
                await store.append(COPIED, "a", 0, deposits("a", of=COPIED), commit_id="mine")
            assert proxy.struck == 1
            replica.cont()
            with replica.client() as other:
                await eventually(lambda: other.llen(f"{LIST}a") == 1, what="the replica goes on")
            assert (await store.append(COPIED, "a", 0, deposits("a", of=COPIED), commit_id="mine")).repeated
    with primary.client() as client, replica.client() as other:
        found: Any = other.lrange(f"{LIST}a", 0, -1)
        assert found == client.lrange(f"{LIST}a", 0, -1)
        assert len(found) == 1


async def test_many_appends_at_once_are_each_confirmed(own_server: Servers) -> None:
    primary, _ = await asyncio.to_thread(with_replica, own_server, "valkey")
    async with open_store(primary.url) as store:
        names = [f"a{number}" for number in range(20)]
        await asyncio.gather(*(store.append(COPIED, name, 0, deposits(name, of=COPIED)) for name in names))
    with primary.client() as client:
        assert client.info("commandstats")["cmdstat_wait"]["calls"] >= 20


def with_replica(own_server: Servers, kind: str) -> tuple[RedisProc, RedisProc]:
    """A primary and its replica, in sync."""
    primary = own_server(kind=kind, conf={"repl-diskless-sync-delay": "0"})
    replica = own_server(kind=kind)
    with primary.client() as client, replica.client() as other:
        other.replicaof("127.0.0.1", str(primary.port))
        client.set("seed", 1)
        wait_until(lambda: client.wait(1, 100) == 1, what="the replica is in sync")
        client.delete("seed")
    return primary, replica
