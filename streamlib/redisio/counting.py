"""Counts the commands that this process sends, and asks the server for its CPU time."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from streamlib.redisio.address import Host
from streamlib.redisio.connection import AsyncClient, BlockingClient, Clients, RedisDoor, clients_of
from streamlib.redisio.failures import CLIENT_ERRORS, ErrorClass, classify
from streamlib.redisio.scripts import Executes
from streamlib.settings import RedisSettings

_NUMBER = re.compile(r"^(\w+):(-?[0-9.]+)\r?$", re.M)


class Counter:
    """How many commands were sent. INFO would count those of everybody else too."""

    def __init__(self) -> None:
        self.commands = 0


def counting_door(settings: RedisSettings, counter: Counter) -> RedisDoor:
    """A door whose commands are counted, those of all its lanes and threads. Raises ConfigError."""
    return RedisDoor(settings, _CountingClients(clients_of(settings), counter))


class _CountingClients:
    """Goes around what makes clients."""

    def __init__(self, clients: Clients, counter: Counter) -> None:
        self.one_node = clients.one_node
        self._clients = clients
        self._counter = counter

    def client(self, timeout_s: float, key: str | None = None) -> AsyncClient:
        return _Counting(self._clients.client(timeout_s, key), self._counter)

    def sync_client(self, timeout_s: float) -> BlockingClient:
        return _CountingSync(self._clients.sync_client(timeout_s), self._counter)

    async def nodes(self, timeout_s: float) -> Mapping[str, AsyncClient]:
        found = await self._clients.nodes(timeout_s)
        return {address: _Counting(client, self._counter) for address, client in found.items()}

    def beside(self, host: Host, timeout_s: float) -> AsyncClient:
        return _Counting(self._clients.beside(host, timeout_s), self._counter)

    @property
    def settled(self) -> Callable[[], Awaitable[bool]] | None:
        return self._clients.settled

    async def close(self) -> None:
        await self._clients.close()


class _Counting:
    def __init__(self, client: AsyncClient, counter: Counter) -> None:
        self._client = client
        self._counter = counter

    async def execute_command(self, *command: Any) -> Any:
        self._counter.commands += 1
        return await self._client.execute_command(*command)

    async def aclose(self) -> None:
        await self._client.aclose()


class _CountingSync:
    """A thread may count while the loop does: one command in a million may be missed."""

    def __init__(self, client: BlockingClient, counter: Counter) -> None:
        self._client = client
        self._counter = counter

    def execute_command(self, *command: Any) -> Any:
        self._counter.commands += 1
        return self._client.execute_command(*command)

    def close(self) -> None:
        self._client.close()


async def info_numbers(redis: Executes, *sections: str) -> dict[str, float]:
    """These sections of INFO, as far as they are numbers; {} where the server denies INFO."""
    try:
        told = [await redis.execute("INFO", section) for section in sections]
    except CLIENT_ERRORS as error:
        if classify(error) is ErrorClass.CONFIG:
            return {}
        raise
    return {name: float(value) for text in told for name, value in _NUMBER.findall(text.decode("utf-8", "replace"))}


async def server_cpu_s(redis: Executes) -> float | None:
    """CPU time of the whole server process, so of what others made it do too; None where INFO is denied."""
    told = await info_numbers(redis, "cpu")
    return told["used_cpu_user"] + told["used_cpu_sys"] if "used_cpu_user" in told else None
