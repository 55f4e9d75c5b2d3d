"""The door to Redis: addresses, TLS, users, no command sent twice in secret, and no password shown anywhere."""

import asyncio
import logging
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis
import uvloop

from streamlib import App
from streamlib.errors import ConfigError, RedisUnavailable
from streamlib.redisio.clients import MAX_CONNECTIONS
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.failures import CLIENT_ERRORS, translate
from streamlib.redisio.packing import TcpConnection
from streamlib.redisio.plain_client import PlainPool
from streamlib.settings import RedisSettings, Settings
from tests.helpers.proxy import ChaosProxy
from tests.helpers.publishing import open_door
from tests.helpers.servers import HOST, RedisProc
from tests.helpers.waiting import eventually

Servers = Callable[..., RedisProc]
CANARY = "c4n@ry/w?rd#%"
WRONG = "n0t-the-c4n@ry/"


# --- addresses


async def test_a_database_is_named_in_the_path(own_server: Servers) -> None:
    server = own_server()
    async with open_door(f"{server.url}/3") as door:
        await door.execute("SET", "here", "3")
    with server.client() as client:
        client.select(3)
        assert client.get("here") == b"3"


async def test_a_unix_socket(own_server: Servers, tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    own_server(conf={"unixsocket": str(path)})
    async with open_door(f"unix://{path}?db=2") as door:
        assert await door.execute("PING") == b"PONG"
        assert b" db=2 " in await door.execute("CLIENT", "INFO")
        lane, client = door.lane(), door.sync_client()
        assert await lane.execute("PING") == client.execute("PING") == b"PONG"
        await lane.close()
        client.close()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "no address of Redis"),
        ("127.0.0.1:6379", "no address of Redis"),
        ("redis//127.0.0.1", "no address of Redis"),
        ("http://127.0.0.1", "no address of Redis"),
        ("REDIS://127.0.0.1", "no address of Redis"),
        ("redis://[::1", "the host is malformed"),
        ("redis://127.0.0.1:port", "the port is no number"),
        ("redis://127.0.0.1:65536", "the port is no number"),
        ("redis://127.0.0.1:0", "the port is no number"),
        ("redis://127.0.0.1/notes", "the database is a number, not 'notes'"),
        ("redis://127.0.0.1/0/1", "the database is a number, not '0/1'"),
        ("redis://127.0.0.1?decode_responses=true", "unknown option 'decode_responses'"),
        ("redis://127.0.0.1?protocol=3", "unknown option 'protocol'"),
        ("redis://127.0.0.1?retry_on_timeout=true", "unknown option 'retry_on_timeout'"),
        ("redis://127.0.0.1?ssl_cert_reqs=none", "unknown option 'ssl_cert_reqs'"),
        ("unix://", "the path of a socket is absolute"),
        ("unix://run/redis.sock", "the path of a socket is absolute"),
        ("redis://127.0.0.1:1,127.0.0.1:2", "several are sentinel:// or cluster://"),
        ("sentinel://127.0.0.1:26379", "the name under which they know the primary"),
        ("sentinel://127.0.0.1:26379/a/b", "the name under which they know the primary"),
        ("sentinel://127.0.0.1:1,127.0.0.1:1/streams", "a host stands there twice"),
        ("sentinel://127.0.0.1:1,,127.0.0.1:2/streams", "a host is missing"),
        ("sentinel://127.0.0.1/streams?db=x", "the database (db=) is a number"),
        ("cluster://", "a host is missing"),
        ("cluster://127.0.0.1:7000/0", "a cluster has one database"),
        ("cluster://127.0.0.1:7000?db=1", "a cluster has one database"),
        ("cluster://127.0.0.1:7000?tls=maybe", "tls is 1 or 0"),
        ("cluster://127.0.0.1:7000?ssl_cert_reqs=none", "is for tls=1"),
    ],
)
def test_an_address_that_means_nothing_is_refused_with_the_forms_there_are(url: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(reason)) as raised:
        RedisDoor.open(RedisSettings(url=url))
    assert "use redis://host:port/db, rediss://" in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:half/other@127.0.0.1/0",
        "redis://user:half?other@127.0.0.1/0",
        "redis://user:half#other@127.0.0.1/0",
        "redis://user:12/half@127.0.0.1/0",
        "redis://user:12?half@127.0.0.1/0",
        "redis://127.0.0.1:1/0?ssl_password=half",
        "cluster://user:half/other@127.0.0.1",
        "sentinel://user:half@127.0.0.1",
    ],
)
def test_a_refused_address_shows_no_part_of_its_password(url: str) -> None:
    """Not percent-encoded, "user" would be taken for the host and "12" for the port."""
    with pytest.raises(ConfigError) as raised:
        RedisDoor.open(RedisSettings(url=url))
    shown = "".join(traceback.format_exception(raised.value))
    assert "half" not in shown
    assert "other" not in shown


# --- replies


async def test_replies_come_as_bytes_in_the_shapes_of_the_protocol(client: redis.Redis, redis_url: str) -> None:
    async with open_door(redis_url) as door:
        await door.execute("HSET", "h", "a", "1")
        await door.execute("XADD", "s", "1-1", "f", "\u00e9")
        assert await door.execute("HGETALL", "h") == [b"a", b"1"]
        assert await door.execute("XRANGE", "s", "-", "+") == [[b"1-1", [b"f", "\u00e9".encode()]]]
        assert (await door.execute("XINFO", "STREAM", "s"))[:2] == [b"length", 1]
        assert await door.execute("SET", "t", b"\xff\x00") == b"OK"
        assert await door.execute("GET", "t") == b"\xff\x00"
        assert await door.execute("GET", "absent") is None
        await door.execute("DEL", "h", "s", "t")


async def test_what_is_sent_arrives_as_it_was_on_every_way(client: redis.Redis, redis_url: str) -> None:
    values: list[Any] = [b"", b"\r\n$3\r\n", "\u00e9\U0001f600", "x" * 100_000, b"\xff" * 100_000, 0, -1, 2**60, 0.5]
    stored = [value if isinstance(value, bytes) else str(value).encode() for value in values]
    async with open_door(redis_url) as door:
        lane, blocking, thread = door.lane(), door.blocking(10), door.sync_client()
        try:
            for execute in (door.execute, lane.execute, blocking.execute):
                await execute("RPUSH", "l", *values)
                assert client.lrange("l", 0, -1) == stored
                await execute("DEL", "l")
            thread.execute("RPUSH", "l", *values)
            assert client.lrange("l", 0, -1) == stored
            thread.execute("DEL", "l")
        finally:
            await lane.close()
            await blocking.close()
            thread.close()


@pytest.mark.parametrize("value", [None, True, [], {}, object()])
async def test_a_value_that_redis_cannot_hold_is_refused_and_the_connection_goes_on(
    redis_url: str, value: object
) -> None:
    async with open_door(redis_url) as door:
        with pytest.raises(redis.exceptions.DataError):
            await door.execute("SET", "k", value)
        assert await door.execute("EXISTS", "k") == 0


# --- nothing is sent twice in secret


def calls(client: redis.Redis, command: str) -> int:
    stats: Any = client.info("commandstats")
    found: int = stats.get(f"cmdstat_{command}", {}).get("calls", 0)
    return found


@pytest.mark.parametrize("way", ["shared", "lane", "blocking", "thread"])
async def test_a_lost_reply_is_an_error_and_not_a_second_command(own_server: Servers, way: str) -> None:
    server = own_server()
    with server.client() as client, ChaosProxy(server.url) as proxy:
        async with open_door(proxy.url) as door:
            lane, blocking, thread = door.lane(), door.blocking(100), door.sync_client()

            async def execute(*command: str) -> Any:
                if way == "thread":
                    return await asyncio.to_thread(thread.execute, *command)
                ways = {"shared": door.execute, "lane": lane.execute, "blocking": blocking.execute}
                return await ways[way](*command)

            try:
                assert await execute("PING") == b"PONG"
                proxy.drop_next_reply(b"INCR")
                with pytest.raises(redis.exceptions.ConnectionError):
                    await execute("INCR", "n")
                assert proxy.struck == 1
                assert (client.get("n"), calls(client, "incr")) == (b"1", 1)
                assert await execute("INCR", "n") == 2, "the next one goes on a new connection"
            finally:
                await lane.close()
                await blocking.close()
                thread.close()


async def test_a_timeout_is_an_error_and_not_a_second_command(own_server: Servers) -> None:
    server = own_server()
    async with open_door(server.url, timeout_s=0.3) as door:
        await door.execute("PING")
        server.stop()
        with pytest.raises(redis.exceptions.TimeoutError):
            await door.execute("INCR", "n")
        server.cont()
        with server.client() as client:
            await eventually(lambda: calls(client, "incr") == 1, what="what was sent is carried out late")
            assert await door.execute("GET", "n") == b"1", "no late reply is taken for this one"
            assert calls(client, "incr") == 1


@pytest.mark.row(18)
async def test_a_blocking_read_is_not_cut_at_the_timeout_of_commands(redis_url: str) -> None:
    async with open_door(redis_url, timeout_s=0.2) as door:
        lane = door.blocking(1_000)
        try:
            assert await lane.execute("BLPOP", "absent", "1") is None
        finally:
            await lane.close()


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("cut", ["aborted", "disconnected"])
def test_a_connection_that_is_cut_before_the_command_is_sent_is_a_lost_one(
    own_server: Servers, loop_factory: Callable[[], asyncio.AbstractEventLoop], cut: str
) -> None:
    """As when the sentinels name another primary, or a node leaves the cluster: a worker must not take it for a bug."""
    server = own_server()

    async def send() -> None:
        connection = TcpConnection(host=HOST, port=server.port, protocol=2, socket_timeout=1.0)
        await connection.connect()  # type: ignore[no-untyped-call]
        writer = connection._writer
        assert writer is not None

        writer.transport.abort()
        sending = asyncio.create_task(connection.send_command("PING"))
        if cut == "disconnected":
            await asyncio.sleep(0)  # it has found itself connected, and waits for its turn
            connection._writer = None
        with pytest.raises(redis.exceptions.ConnectionError, match="closed before the command was sent"):
            await sending
        writer.close()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(send())


async def test_a_command_takes_no_task_and_no_second_turn_to_be_sent(redis_url: str) -> None:
    """They would cost as much as the command."""
    loop, tasks = asyncio.get_running_loop(), 0

    def count(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        nonlocal tasks
        tasks += 1
        return asyncio.Task(coroutine, loop=loop, **options)

    async with open_door(redis_url) as door:
        await door.execute("PING")
        loop.set_task_factory(count)
        try:
            assert await door.execute("PING") == b"PONG"
        finally:
            loop.set_task_factory(None)
    assert tasks == 0


@pytest.mark.row(24)
async def test_more_commands_at_once_than_connections_wait_for_one(client: redis.Redis, redis_url: str) -> None:
    """redis-py refuses what comes above the bound. A cancelled one that waits leaves its turn to the next."""
    async with open_door(redis_url) as door:
        pushed = [asyncio.create_task(door.execute("RPUSH", "list", n)) for n in range(3 * MAX_CONNECTIONS)]
        await asyncio.sleep(0)
        for task in pushed[-2 * MAX_CONNECTIONS :: 2]:
            task.cancel()
        answers = await asyncio.gather(*pushed, return_exceptions=True)
        assert {type(answer) for answer in answers} == {int, asyncio.CancelledError}
        assert client.llen("list") >= 2 * MAX_CONNECTIONS
        assert len(client.client_list()) < MAX_CONNECTIONS + 10, "others than ours count too"
    client.delete("list")


@pytest.mark.row(24)
async def test_who_waits_for_a_connection_waits_no_longer_than_for_a_reply(redis_url: str) -> None:
    pool = PlainPool.from_url(redis_url, max_connections=1, socket_timeout=0.05)
    taken = await pool.get_connection()
    with pytest.raises(redis.exceptions.TimeoutError, match="none of 1 connections was free in"):
        await pool.get_connection()
    await pool.release(taken)
    assert await pool.get_connection() is taken, "nobody waits any more"
    await pool.disconnect()


async def test_a_closing_that_is_cancelled_leaves_nothing_open(redis_url: str) -> None:
    """As when a cluster's map is asked for at the moment in which the app closes."""
    pool = PlainPool.from_url(redis_url)
    idle, busy = await pool.get_connection(), await pool.get_connection()
    await pool.release(idle)
    closing = asyncio.create_task(pool.disconnect())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.gather(closing, return_exceptions=True)
    assert not idle.is_connected
    assert not busy.is_connected


async def test_a_connection_that_the_server_closed_is_replaced(own_server: Servers) -> None:
    server = own_server()
    with server.client() as client:
        async with open_door(server.url) as door:
            await door.execute("INCR", "n")
            client.client_kill_filter(_type="normal", skipme=True)
            answered = await eventually(lambda: door.execute("INCR", "n"), ignore=CLIENT_ERRORS)
            assert calls(client, "incr") == answered == 2


# --- users and passwords


def guarded(own_server: Servers) -> RedisProc:
    server = own_server(aof=True)
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "app", "on", f">{CANARY}", "~*", "&*", "+@all")
        client.execute_command("ACL", "SETUSER", "default", "off")
    return server


def address(server: RedisProc, password: str, user: str = "app") -> str:
    return server.url.replace("redis://", f"redis://{user}:{quote(password, safe='')}@")


def assert_hidden(*texts: str) -> None:
    for text in texts:
        for secret in (CANARY, WRONG, quote(CANARY, safe=""), quote(WRONG, safe="")):
            assert secret not in text


async def test_a_user_whose_password_is_percent_encoded(own_server: Servers) -> None:
    server = guarded(own_server)
    async with open_door(address(server, CANARY)) as door:
        assert await door.execute("ACL", "WHOAMI") == b"app"
        client = door.sync_client()
        assert client.execute("ACL", "WHOAMI") == b"app"
        client.close()


async def test_a_wrong_password_is_told_without_it(
    own_server: Servers, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    server = guarded(own_server)
    settings = Settings(redis=RedisSettings(url=address(server, WRONG), retry_s=1))
    app = App("shop", settings=settings)
    with pytest.raises(RedisUnavailable, match="refused our credentials") as raised:
        await app.open()
    assert "app:***@127.0.0.1" in str(raised.value)
    assert_hidden(str(raised.value), "".join(traceback.format_exception(raised.value)), repr(settings))
    assert_hidden(repr(RedisDoor.open(settings.redis)), caplog.text, *capfd.readouterr())
    async with open_door(address(server, WRONG)) as door:
        with pytest.raises(redis.exceptions.AuthenticationError) as refused:
            await door.persist(lambda: door.execute("PING"), give_up_s=30)
        assert isinstance(translate(refused.value, door.settings.url), RedisUnavailable)
