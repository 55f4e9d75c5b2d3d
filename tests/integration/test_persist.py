"""`RedisDoor.persist`: what is tried again, for how long, and what is raised at once."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from streamlib.errors import RedisUnavailable
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.failures import ErrorClass, classify
from tests.helpers.proxy import ChaosProxy
from tests.helpers.publishing import open_door
from tests.helpers.servers import HOST, RedisProc, free_port
from tests.helpers.waiting import eventually

Servers = Callable[..., RedisProc]


class Tries:
    """An operation and the errors that were heard of while it was tried."""

    def __init__(self, door: RedisDoor, *command: Any) -> None:
        self._door = door
        self._command = command
        self.started = 0
        self.heard: list[tuple[str, Exception]] = []

    async def run(self) -> Any:
        self.started += 1
        return await self._door.execute(*self._command)

    def hear(self, kind: str, error: Exception) -> None:
        self.heard.append((kind, error))

    async def persist(self, give_up_s: float | None) -> Any:
        return await self._door.persist(self.run, give_up_s=give_up_s, on_error=self.hear)


async def test_what_cannot_be_reached_is_given_up_in_time() -> None:
    async with open_door(f"redis://{HOST}:{free_port()}") as door:
        tries = Tries(door, "PING")
        with pytest.raises(RedisUnavailable, match="is not reachable") as raised:
            await tries.persist(0.5)
    assert tries.started > 2
    assert [kind for kind, _ in tries.heard] == ["network"] * tries.started
    assert raised.value.__cause__ is tries.heard[-1][1]


async def test_without_patience_there_is_one_try() -> None:
    async with open_door(f"redis://{HOST}:{free_port()}") as door:
        tries = Tries(door, "PING")
        with pytest.raises(RedisUnavailable):
            await tries.persist(0)
    assert tries.started == 1


async def test_without_a_limit_it_goes_on_until_the_server_comes(server_kind: str, tmp_path: Path) -> None:
    port = free_port()
    async with open_door(f"redis://{HOST}:{port}", timeout_s=1) as door:
        tries = Tries(door, "PING")
        persisting = asyncio.create_task(tries.persist(None))
        await eventually(lambda: tries.started >= 5, what="it has been tried five times")
        assert not persisting.done()
        with RedisProc(server_kind, tmp_path / "late", port=port):
            assert await persisting == b"PONG"


async def test_waiting_can_be_cancelled() -> None:
    async with open_door(f"redis://{HOST}:{free_port()}") as door:
        tries = Tries(door, "PING")
        persisting = asyncio.create_task(tries.persist(None))
        await eventually(lambda: tries.started >= 2, what="it has been tried twice")
        persisting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await persisting


@pytest.mark.parametrize("give_up_s", [30.0, None])
@pytest.mark.parametrize(
    ("command", "error_class"),
    [
        (("SET", "k"), ErrorClass.BUG),
        (("LPUSH", "text", "v"), ErrorClass.CONFIG),
        (("XPENDING", "orders", "email"), ErrorClass.LOST_STATE),
        (("EVALSHA", "0" * 40, 0), ErrorClass.LOST_STATE),
    ],
)
async def test_what_no_repetition_mends_is_raised_at_once(
    own_server: Servers, command: tuple[Any, ...], error_class: ErrorClass, give_up_s: float | None
) -> None:
    async with open_door(own_server().url) as door:
        await door.execute("SET", "text", "t")
        tries = Tries(door, *command)
        with pytest.raises(redis.exceptions.ResponseError) as raised:
            await tries.persist(give_up_s)
    assert classify(raised.value) is error_class
    assert tries.started == 1
    assert tries.heard == [(error_class.value, raised.value)]


async def test_an_error_of_ones_own_is_no_reason_to_try_again(own_server: Servers) -> None:
    async with open_door(own_server().url) as door:
        runs = []

        async def broken() -> None:
            runs.append(1)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await door.persist(broken, give_up_s=None)
    assert runs == [1]


@pytest.mark.row(29)
async def test_rights_are_a_reason_to_wait_for_a_running_worker_only(own_server: Servers) -> None:
    server = own_server()
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all", "-set")
        async with open_door(server.url.replace("//", "//app:pw@")) as door:
            starting = Tries(door, "SET", "k", "v")
            with pytest.raises(redis.exceptions.NoPermissionError):
                await starting.persist(30)
            assert starting.started == 1
            running = Tries(door, "SET", "k", "v")
            persisting = asyncio.create_task(running.persist(None))
            await eventually(lambda: running.heard, what="it was refused")
            client.execute_command("ACL", "SETUSER", "app", "+set")
            assert await persisting == b"OK"
            assert [kind for kind, _ in running.heard] == ["config"]


async def test_memory_that_comes_back_is_waited_for(own_server: Servers) -> None:
    server = own_server(conf={"maxmemory": "1"})
    async with open_door(server.url) as door:
        tries = Tries(door, "SET", "k", "v")
        persisting = asyncio.create_task(tries.persist(30))
        await eventually(lambda: len(tries.heard) >= 2, what="it was refused twice")
        await door.execute("CONFIG", "SET", "maxmemory", "0")
        assert await persisting == b"OK"
        assert {kind for kind, _ in tries.heard} == {"pause"}


async def test_a_lost_reply_means_a_second_run(own_server: Servers) -> None:
    """So only what may be sent twice goes through persist."""
    server = own_server()
    with ChaosProxy(server.url) as proxy:
        async with open_door(proxy.url) as door:
            proxy.drop_next_reply(b"INCR")
            tries = Tries(door, "INCR", "n")
            assert await tries.persist(30) == 2
            assert [kind for kind, _ in tries.heard] == ["network"]
