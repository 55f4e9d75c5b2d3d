"""The one door to Redis: clients for whatever redis.url leads to, and retries that know which errors may be retried."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

import redis.exceptions

from streamlib.redisio.address import Host, is_verified, read_address
from streamlib.redisio.clients import ClientMaker, SingleClients
from streamlib.redisio.cluster import ClusterClients
from streamlib.redisio.command_names import name_of
from streamlib.redisio.failures import RETRYABLE, ErrorClass, classify, error_code, translate
from streamlib.redisio.login import with_password
from streamlib.redisio.sentinel import SentinelClients
from streamlib.settings import RedisSettings, redact

T = TypeVar("T")

_log = logging.getLogger("streamlib.redis")


class AsyncClient(Protocol):
    """What a lane needs of a client; replies are raw."""

    async def execute_command(self, *command: Any) -> Any: ...

    async def aclose(self) -> None: ...


class BlockingClient(Protocol):
    """The same for a thread."""

    def execute_command(self, *command: Any) -> Any: ...

    def close(self) -> None: ...


class Clients(Protocol):
    """Makes clients of one server, of whichever server is the primary, or of a cluster.

    `one_node` tells whether every key lies on the same server. A client with a `key` sends what has no key to where
    that key lies.
    """

    one_node: bool

    def client(self, timeout_s: float, key: str | None = None) -> AsyncClient: ...

    def sync_client(self, timeout_s: float) -> BlockingClient: ...

    async def nodes(self, timeout_s: float) -> Mapping[str, AsyncClient]:
        """A client of each primary, by its address; "" for one that is the only one."""
        ...

    def beside(self, host: Host, timeout_s: float) -> AsyncClient:
        """A client of the server there, a replica of a primary."""
        ...

    @property
    def settled(self) -> Callable[[], Awaitable[bool]] | None:
        """Asks whether nobody is making another server the primary now; None where nobody does so by himself."""
        ...

    async def close(self) -> None: ...


def clients_of(settings: RedisSettings) -> Clients:
    """What makes clients for `settings.url`; nothing is sent yet. Raises ConfigError for a URL of the wrong form."""
    settings = with_password(settings)
    address = read_address(settings.url)
    maker = ClientMaker(settings, address)
    if address.scheme == "sentinel":
        return SentinelClients(address, maker, settings.timeout_s)
    if address.scheme == "cluster":
        return ClusterClients(address, maker, settings.timeout_s)
    return SingleClients(maker)


class RedisDoor:
    """Clients for one Redis, one primary with its sentinels, or one cluster.

    Replies come as the server sends them (RESP2, bytes); nothing is retried in secret. Whoever may repeat a command
    says so with `persist`.
    """

    def __init__(self, settings: RedisSettings, clients: Clients) -> None:
        self.settings = settings
        self.observe: Callable[[str, float], None] | None = None
        """Hears of every command on the shared pool, where nothing blocks: its name (of a script that of its file)
        and the seconds until its reply, or its error."""
        self._clients = clients
        self._shared = clients.client(settings.timeout_s)

    @classmethod
    def open(cls, settings: RedisSettings) -> RedisDoor:
        """A door for `settings.url`; nothing is sent yet. Raises ConfigError for a URL of the wrong form, and for files
        that it names and that cannot be read. A door without verification says so in the log."""
        if not is_verified(settings.url):
            _log.warning("tls_not_verified", extra={"redis": redact(settings.url), "see": "streamlib check"})
        return cls(settings, clients_of(settings))

    @property
    def settled(self) -> Callable[[], Awaitable[bool]] | None:
        """Asks whether nobody is making another server the primary now; None where there is nobody to ask."""
        return self._clients.settled

    @property
    def one_node(self) -> bool:
        """Whether every key lies on the same server, so that one command may name keys of many partitions."""
        return self._clients.one_node

    async def execute(self, *command: Any) -> Any:
        """Send one command on the shared pool; the raw reply. Raises what the client raises."""
        if self.observe is None:
            return await _cancellable(self._shared.execute_command(*command))
        started = time.perf_counter()
        try:
            return await _cancellable(self._shared.execute_command(*command))
        finally:
            if self.observe is not None:  # it may have stopped to listen meanwhile
                self.observe(name_of(command), time.perf_counter() - started)

    @asynccontextmanager
    async def nodes(self) -> AsyncIterator[dict[str, Lane]]:
        """A lane to each primary by its address ("" for the only one), for commands without a key.

        Raises SetupError where a cluster has slots that no node serves, and what the client raises.
        """
        clients = await self._clients.nodes(self.settings.timeout_s)
        try:
            yield {address: Lane(client) for address, client in clients.items()}
        finally:
            for client in clients.values():
                await client.aclose()

    @asynccontextmanager
    async def beside(self, host: Host) -> AsyncIterator[Lane]:
        """A lane to a replica, for commands without a key. Raises what the client raises."""
        lane = Lane(self._clients.beside(host, self.settings.timeout_s))
        try:
            yield lane
        finally:
            await lane.close()

    async def close(self) -> None:
        await self._shared.aclose()
        await self._clients.close()

    def blocking(self, block_ms: int) -> Lane:
        """A connection of its own for reads that block up to `block_ms`."""
        return Lane(self._clients.client(block_ms / 1000 + self.settings.timeout_s))

    def lane(self, key: str | None = None) -> Lane:
        """A connection of its own: what must stay together (a write and its WAIT) goes through one lane. Of many nodes
        it leads to the one where `key` lies."""
        return Lane(self._clients.client(self.settings.timeout_s, key))

    def sync_client(self) -> SyncClient:
        """A client of its own for a thread."""
        return SyncClient(self._clients.sync_client(self.settings.timeout_s))

    async def persist(
        self,
        operation: Callable[[], Awaitable[T]],
        *,
        give_up_s: float | None,
        on_error: Callable[[str, Exception], None] | None = None,
    ) -> T:
        """Run an operation that may be sent twice until it succeeds.

        Network, failover, migration and pause errors are retried with jittered backoff (25 ms to 2 s) for
        `give_up_s` seconds, then raised as RedisUnavailable. With `give_up_s=None` it goes on for ever, and
        configuration errors (credentials, rights) are asked again every 5 s too, for they get mended under running
        workers. Everything else is raised as it is. `on_error(kind, error)` hears of every failed try.
        """
        started, pause_s = time.monotonic(), 0.025
        while True:
            try:
                return await operation()
            except (redis.exceptions.RedisError, OSError) as error:
                error_class = classify(error)
                if on_error is not None:
                    on_error(error_class.value, error)
                patient = give_up_s is None and error_class is ErrorClass.CONFIG and error_code(error) != "WRONGTYPE"
                if error_class not in RETRYABLE and not patient:
                    raise
                waited = time.monotonic() - started
                if give_up_s is not None and waited + pause_s > give_up_s:
                    raise translate(error, self.settings.url) from error
                await asyncio.sleep(5.0 if patient else pause_s * random.uniform(0.5, 1.5))
                pause_s = min(pause_s * 2, 2.0)


async def _cancellable(reply: Awaitable[T]) -> T:
    """Await a client's reply without losing a cancellation.

    redis-py sends within asyncio.wait_for, which on Python 3.11 drops a cancellation that arrives as the sending
    ends; a loop that is to be ended by it would then go on for ever.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    try:
        found = await reply
    except Exception as error:
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError from error
        raise
    if task is not None and task.cancelling() > before:
        raise asyncio.CancelledError
    return found


class Lane:
    """One connection that nobody else uses."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def execute(self, *command: Any) -> Any:
        return await _cancellable(self._client.execute_command(*command))

    async def close(self) -> None:
        await self._client.aclose()


class SyncClient:
    """A blocking client for a thread; raw replies."""

    def __init__(self, client: BlockingClient) -> None:
        self._client = client

    def execute(self, *command: Any) -> Any:
        return self._client.execute_command(*command)

    def close(self) -> None:
        self._client.close()
