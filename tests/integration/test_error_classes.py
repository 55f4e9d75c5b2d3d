"""What servers really answer, how each answer is classed, and what the user is told."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from streamlib.errors import RedisUnavailable, RedisUnfit, StreamlibError, WrongKeyType
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.failures import CLIENT_ERRORS, ErrorClass, classify, error_code, error_kind, translate
from tests.helpers.proxy import ChaosProxy
from tests.helpers.publishing import open_door
from tests.helpers.servers import HOST, RedisProc, free_port
from tests.helpers.waiting import eventually, wait_until

Servers = Callable[..., RedisProc]


async def refusal(door: RedisDoor, *command: Any) -> Exception:
    """The error that a command ends with."""
    with pytest.raises(CLIENT_ERRORS) as raised:
        await door.execute(*command)
    return raised.value


def told(error: Exception, as_what: type[StreamlibError], *words: str) -> None:
    """The user hears of it as this error, which names the server and says these words."""
    found = translate(error, "redis://app:secret@127.0.0.1:6379")
    assert type(found) is as_what, repr(found)
    for word in ("redis://app:***@127.0.0.1:6379", *words):
        assert word in str(found)
    assert "secret" not in str(found)


# --- answers of a server that works


@pytest.mark.row(35)
async def test_a_key_of_another_type(own_server: Servers) -> None:
    async with open_door(own_server().url) as door:
        await door.execute("SET", "orders", "text")
        plain = await refusal(door, "XADD", "orders", "*", "f", "v")
        called = await refusal(door, "EVAL", "return redis.call('XADD', KEYS[1], '*', 'f', 'v')", 1, "orders")
        replied = await refusal(door, "EVAL", "return redis.error_reply('WRONGTYPE orders is a string')", 1, "orders")
        for error in (plain, called, replied):
            assert (classify(error), error_code(error)) == (ErrorClass.CONFIG, "WRONGTYPE")
            told(error, WrongKeyType, "rename or remove that key", "redis.namespace")


async def test_a_group_or_stream_that_is_gone(own_server: Servers) -> None:
    async with open_door(own_server().url) as door:
        await door.execute("XADD", "orders", "*", "f", "v")
        for command in (
            ("XREADGROUP", "GROUP", "email", "c", "STREAMS", "orders", ">"),
            ("XREADGROUP", "GROUP", "email", "c", "STREAMS", "absent", ">"),
            ("XAUTOCLAIM", "orders", "email", "c", 0, "0"),
            ("XPENDING", "orders", "email"),
        ):
            error = await refusal(door, *command)
            assert (classify(error), error_code(error)) == (ErrorClass.LOST_STATE, "NOGROUP")
            assert error_kind(error) == "nogroup"


@pytest.mark.row(34)
async def test_a_group_that_goes_while_it_is_read(own_server: Servers) -> None:
    server = own_server()
    async with open_door(server.url) as door:
        await door.execute("XGROUP", "CREATE", "orders", "email", "0", "MKSTREAM")
        async with reading(door) as read:
            await door.execute("XGROUP", "DESTROY", "orders", "email")
            with pytest.raises(CLIENT_ERRORS) as raised:
                await read
        assert classify(raised.value) is ErrorClass.LOST_STATE


@asynccontextmanager
async def reading(door: RedisDoor) -> AsyncIterator[asyncio.Task[Any]]:
    """A read of `orders` that blocks, known to the server."""
    lane = door.blocking(60_000)
    command = ("XREADGROUP", "GROUP", "email", "c", "BLOCK", 60_000, "STREAMS", "orders", ">")
    read = asyncio.create_task(lane.execute(*command))

    async def blocked() -> bool:
        return b"\r\nblocked_clients:1\r" in await door.execute("INFO", "clients")

    try:
        await eventually(blocked, what="the read blocks")
        yield read
    finally:
        read.cancel()
        await lane.close()


async def test_a_script_that_the_server_does_not_know(own_server: Servers) -> None:
    async with open_door(own_server().url) as door:
        error = await refusal(door, "EVALSHA", "0" * 40, 0)
        assert (classify(error), error_kind(error)) == (ErrorClass.LOST_STATE, "noscript")


@pytest.mark.parametrize("command", [("SET", "k"), ("SET", "k", "v", "EX", "soon"), ("EVAL", "return {", 0)])
async def test_a_command_that_is_wrong_is_our_bug(own_server: Servers, command: tuple[Any, ...]) -> None:
    async with open_door(own_server().url) as door:
        error = await refusal(door, *command)
        assert classify(error) is ErrorClass.BUG
        told(error, StreamlibError, "answered unexpectedly")


async def test_a_command_that_this_server_does_not_have(own_server: Servers) -> None:
    async with open_door(own_server().url) as door:
        error = await refusal(door, "XNOSUCH", "orders")
        assert classify(error) is ErrorClass.CONFIG
        told(error, RedisUnavailable, "XNOSUCH")


# --- a server that cannot take writes now


async def test_out_of_memory(own_server: Servers) -> None:
    async with open_door(own_server(conf={"maxmemory": "1"}).url) as door:
        plain = await refusal(door, "SET", "k", "v")
        script = await refusal(door, "EVAL", "return redis.call('SET', KEYS[1], 'v')", 1, "k")
        for error in (plain, script):
            assert classify(error) is ErrorClass.PAUSE
            assert error_kind(error) == "oom"
            told(error, RedisUnavailable, "takes no writes now")


async def test_a_replica_is_read_only(own_server: Servers) -> None:
    async with open_door(own_server(conf={"replicaof": f"{HOST} {own_server().port}"}).url) as door:
        for command in (("SET", "k", "v"), ("EVAL", "return redis.call('SET', KEYS[1], 'v')", 1, "k")):
            error = await refusal(door, *command)
            assert (classify(error), error_kind(error)) == (ErrorClass.FAILOVER, "readonly")
            told(error, RedisUnfit, "read-only", "point redis.url at the primary")


async def test_a_replica_without_its_primary(own_server: Servers) -> None:
    async with open_door(own_server(conf={"replica-serve-stale-data": "no"}).url) as door:
        await door.execute("REPLICAOF", HOST, free_port())
        error = await refusal(door, "GET", "k")
        assert classify(error) is ErrorClass.FAILOVER
        told(error, RedisUnavailable)


@pytest.mark.row(46)
async def test_a_primary_that_becomes_a_replica_while_it_is_read(own_server: Servers) -> None:
    async with open_door(own_server().url) as door:
        await door.execute("XGROUP", "CREATE", "orders", "email", "0", "MKSTREAM")
        async with reading(door) as read:
            await door.execute("REPLICAOF", HOST, free_port())
            with pytest.raises(CLIENT_ERRORS) as raised:
                await read
        assert (classify(raised.value), error_code(raised.value)) == (ErrorClass.FAILOVER, "UNBLOCKED")


@pytest.mark.row(50)
async def test_too_few_replicas(own_server: Servers) -> None:
    async with open_door(own_server(conf={"min-replicas-to-write": "1"}).url) as door:
        error = await refusal(door, "SET", "k", "v")
        assert (classify(error), error_code(error)) == (ErrorClass.PAUSE, "NOREPLICAS")
        told(error, RedisUnavailable, "takes no writes now")


async def test_a_server_that_cannot_save(own_server: Servers) -> None:
    server = own_server(conf={"save": "3600 1000"})
    (server.directory / "dump.rdb").mkdir()  # no file can take this name
    async with open_door(server.url) as door:
        await door.execute("SET", "k", "v")
        await door.execute("BGSAVE")

        async def failed() -> bool:
            return b"rdb_last_bgsave_status:err" in await door.execute("INFO", "persistence")

        await eventually(failed, what="the snapshot failed")
        error = await refusal(door, "SET", "k", "v")
        assert (classify(error), error_code(error)) == (ErrorClass.PAUSE, "MISCONF")
        told(error, RedisUnavailable, "takes no writes now")


@pytest.mark.row(41)
async def test_a_server_that_is_busy_with_a_script(own_server: Servers) -> None:
    server = own_server(conf={"busy-reply-threshold": "50"})
    async with open_door(server.url) as door:
        with endless_script(server):
            error = await eventually(lambda: _refused(door, "PING"), what="the server says that it is busy")
            assert (classify(error), error_code(error)) == (ErrorClass.PAUSE, "BUSY")
            told(error, RedisUnavailable, "takes no writes now")


async def _refused(door: RedisDoor, *command: Any) -> Any:
    """The error that a command ends with, None while it succeeds."""
    try:
        await door.execute(*command)
    except CLIENT_ERRORS as error:
        return error
    return None


@contextlib.contextmanager
def endless_script(server: RedisProc) -> Iterator[None]:
    def run() -> None:
        with server.client(timeout_s=60) as client, contextlib.suppress(redis.exceptions.RedisError):
            client.eval("while true do end", 0)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        with server.client() as client:
            wait_until(client.script_kill, what="the script is killed", ignore=(redis.exceptions.RedisError,))
        thread.join()


@pytest.mark.row(32)
async def test_a_server_that_is_loading(own_server: Servers) -> None:
    """Told by the error's class: the client gives it one of its own."""
    server = own_server(conf={"loading-process-events-interval-bytes": "1024"})
    async with open_door(server.url, timeout_s=60) as door:
        await door.execute("DEBUG", "POPULATE", 500, "key", 1024)
        await door.execute("CONFIG", "SET", "key-load-delay", 10_000)
        reloading = asyncio.create_task(door.execute("DEBUG", "RELOAD"))
        error = await eventually(lambda: _refused(door, "GET", "key:1"), what="the server says that it is loading")
        assert classify(error) is ErrorClass.FAILOVER
        told(error, RedisUnavailable)
        await door.execute("CONFIG", "SET", "key-load-delay", 0)
        await reloading


async def test_a_cluster_node_without_its_slots(own_server: Servers) -> None:
    server = own_server(conf={"cluster-enabled": "yes"})
    async with open_door(server.url) as door:
        down = await refusal(door, "SET", "k", "v")
        assert classify(down) is ErrorClass.PAUSE
        await door.execute("CLUSTER", "ADDSLOTSRANGE", 0, 16_383)
        await eventually(lambda: _works(door), what="the cluster is up")
        crossing = await refusal(door, "MSET", "a", "1", "b", "2")
        assert classify(crossing) is ErrorClass.CONFIG


async def _works(door: RedisDoor) -> bool:
    return await _refused(door, "SET", "k", "v") is None


# --- who may do what


async def test_a_user_without_the_right(own_server: Servers) -> None:
    server = own_server()
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~orders*", "&*", "+@all", "-xadd")
    async with open_door(server.url.replace("//", "//app:pw@")) as door:
        for command in (
            ("XADD", "orders", "*", "f", "v"),
            ("GET", "other"),
            ("EVAL", "return redis.call('XADD', KEYS[1], '*', 'f', 'v')", 1, "orders"),
        ):
            error = await refusal(door, *command)
            assert classify(error) is ErrorClass.CONFIG
            told(error, RedisUnavailable, "grant the user that right")


@pytest.mark.row(29)
@pytest.mark.parametrize("who", ["", "app:wrong@", ":wrong@", "nobody:pw@"])
async def test_no_or_wrong_credentials(own_server: Servers, who: str) -> None:
    server = own_server()
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all")
        client.config_set("requirepass", "open-sesame")
    async with open_door(server.url.replace("//", f"//{who}")) as door:
        error = await refusal(door, "PING")
        assert classify(error) is ErrorClass.CONFIG
        told(error, RedisUnavailable, "refused our credentials", "check redis.url")


@pytest.mark.row(24)
async def test_too_many_clients(own_server: Servers) -> None:
    server = own_server(conf={"maxclients": "3"})
    async with open_door(server.url) as door:
        lanes = [door.lane() for _ in range(6)]
        errors = [await _refusal_of_lane(lane) for lane in lanes]
        for lane in lanes:
            await lane.close()
    refused = [error for error in errors if error is not None]
    assert refused
    for error in refused:
        assert classify(error) is ErrorClass.NETWORK
        told(error, RedisUnavailable, "is not reachable")


async def _refusal_of_lane(lane: Any) -> Exception | None:
    try:
        await lane.execute("PING")
    except CLIENT_ERRORS as error:
        return error
    return None


# --- a server that does not answer


async def test_nobody_there() -> None:
    async with open_door(f"redis://{HOST}:{free_port()}") as door:
        error = await refusal(door, "PING")
    assert (classify(error), error_kind(error)) == (ErrorClass.NETWORK, "connection")
    told(error, RedisUnavailable, "is not reachable", "is it running")


async def test_no_socket_there(tmp_path: Path) -> None:
    async with open_door(f"unix://{tmp_path}/redis.sock") as door:
        error = await refusal(door, "PING")
    assert classify(error) is ErrorClass.NETWORK
    told(error, RedisUnavailable, "is not reachable")


async def test_no_host_of_that_name() -> None:
    async with open_door("redis://no-such-host.invalid") as door:
        error = await refusal(door, "PING")
    assert classify(error) is ErrorClass.NETWORK
    told(error, RedisUnavailable, "is not reachable")


async def test_a_server_that_hangs(own_server: Servers) -> None:
    server = own_server()
    async with open_door(server.url, timeout_s=0.2) as door:
        await door.execute("PING")
        server.stop()
        for error in (await refusal(door, "PING"), await refusal(door, "PING")):
            assert (classify(error), error_kind(error)) == (ErrorClass.NETWORK, "timeout")
            told(error, RedisUnavailable, "is not reachable")


async def test_an_answer_cut_in_the_middle(own_server: Servers) -> None:
    server = own_server()
    with ChaosProxy(server.url) as proxy:
        async with open_door(proxy.url) as door:
            await door.execute("SET", "k", "x" * 10_000)
            proxy.cut_replies_after(5_000)
            assert classify(await refusal(door, "GET", "k")) is ErrorClass.NETWORK


async def test_connections_reset(own_server: Servers) -> None:
    server = own_server()
    with ChaosProxy(server.url) as proxy:
        async with open_door(proxy.url) as door:
            command = asyncio.create_task(door.execute("BLPOP", "absent", "3"))
            await eventually(lambda: proxy.connections == 1)
            proxy.reset_all()
            with pytest.raises(CLIENT_ERRORS) as raised:
                await command
    assert classify(raised.value) is ErrorClass.NETWORK
