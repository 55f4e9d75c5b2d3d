"""Publishing with `durability`: what is confirmed, what is not, and that a confirmation is about this very write."""

import asyncio
from collections.abc import Callable

import pytest
import redis

from streamlib.errors import NotConfirmed, RedisUnfit
from streamlib.redisio.durability import DurableLane, check_durability
from streamlib.redisio.publisher import Sent
from tests.helpers.proxy import ChaosProxy
from tests.helpers.publishing import made, open_door, open_publisher, topic
from tests.helpers.servers import RedisProc, available_kinds
from tests.helpers.waiting import eventually, wait_until

SYNCED = topic(durability="fsync")
COPIED = topic(durability="replicas:1")

Servers = Callable[..., RedisProc]


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


@pytest.mark.row(39)
@pytest.mark.parametrize("kind", available_kinds())
async def test_fsync_is_refused_where_the_server_cannot(own_server: Servers, kind: str) -> None:
    async with open_door(own_server(kind=kind).url) as door:
        await check_durability(door, topic())
        with pytest.raises(RedisUnfit, match=r"durability='fsync'.*appendonly yes"):
            await check_durability(door, SYNCED)


@pytest.mark.row(39)
@pytest.mark.parametrize("kind", [kind for kind in available_kinds() if kind != "redis7"])
async def test_an_fsynced_event_is_confirmed(own_server: Servers, kind: str) -> None:
    server = own_server(kind=kind, aof=True, conf={"appendfsync": "everysec"})
    async with open_door(server.url) as door:
        await check_durability(door, SYNCED)
    async with open_publisher(server.url) as publisher:
        results = await publisher.send(SYNCED, [made(number, SYNCED) for number in range(1_200)])
    assert all(isinstance(result, Sent) for result in results)
    with server.client() as client:
        assert client.xlen("orders") == 1_200
        assert client.info("commandstats")["cmdstat_waitaof"]["calls"] >= 3


@pytest.mark.row(39)
async def test_what_is_never_fsynced_is_not_confirmed(own_server: Servers) -> None:
    server = own_server(kind="valkey", aof=True, conf={"appendfsync": "no"})
    async with open_publisher(server.url, timeout_s=0.5) as publisher:
        with pytest.raises(NotConfirmed, match=r"stored as orders \d+-\d+ .*not fsynced") as raised:
            await publisher.publish(SYNCED, made(1, SYNCED))
    with server.client() as client:
        ((entry_id, _),) = client.xrange("orders")
    assert entry_id.decode() in str(raised.value)


@pytest.mark.row(48)
@pytest.mark.parametrize("kind", available_kinds())
async def test_replicas_confirm_or_the_publish_says_so(own_server: Servers, kind: str) -> None:
    primary, replica = await asyncio.to_thread(with_replica, own_server, kind)
    async with open_publisher(primary.url) as publisher, open_publisher(primary.url, timeout_s=0.5) as hasty:
        await publisher.publish(COPIED, made(1, COPIED))
        replica.stop()
        with pytest.raises(NotConfirmed, match="0 of 1 replicas"):
            await hasty.publish(COPIED, made(2, COPIED))
        replica.cont()
        await publisher.publish(COPIED, made(3, COPIED))
    with replica.client() as client:
        assert client.xlen("orders") == 3


@pytest.mark.parametrize("kind", available_kinds())
async def test_a_resent_event_is_not_confirmed_by_a_fresh_connection(own_server: Servers, kind: str) -> None:
    """WAIT on a connection that wrote nothing succeeds at once, whatever the replicas have."""
    primary, replica = await asyncio.to_thread(with_replica, own_server, kind)
    with ChaosProxy(primary.url) as proxy:
        async with open_publisher(proxy.url, timeout_s=0.5) as publisher:
            replica.stop()
            proxy.drop_next_reply(b"o-2")
            with pytest.raises(NotConfirmed, match="0 of 1 replicas"):
                await publisher.publish(COPIED, made(2, COPIED))
        replica.cont()
        assert proxy.struck == 1
    with primary.client() as client:
        assert client.xlen("orders") == 1


async def test_a_connection_replaced_before_its_wait_confirms_nothing(redis_url: str, client: redis.Redis) -> None:
    async with open_door(redis_url) as door:
        lane = DurableLane(door.lane(), "replicas:1", 100)
        await lane.begin()
        await lane.execute("SET", "written", 1)
        client.client_kill_filter(_id=str(await lane.execute("CLIENT", "ID")))
        lost = (redis.exceptions.ConnectionError, OSError)
        await eventually(lambda: lane.execute("PING"), what="the lane has another connection", ignore=lost)
        with pytest.raises(ConnectionResetError, match="replaced"):
            await lane.confirm()
        await lane.begin()
        await lane.execute("SET", "written", 1)
        assert "0 of 1 replicas" in await lane.confirm()
        await lane.close()
    client.delete("written")
