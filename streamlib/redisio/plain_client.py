"""redis-py's asyncio client, without what it does around each command and nobody here needs.

For one command redis-py takes a lock twice, tells five listeners, counts three times what its telemetry would report
if it were on, and wraps the sending in a retry that is off. That costs the loop as much as the command itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import Any

import redis.asyncio
import redis.exceptions


class PlainPool(redis.asyncio.ConnectionPool):
    """A pool of connections for one loop. It has no lock: nothing waits while a connection is taken or given back.

    Whoever finds all of them in use waits for one, where redis-py would refuse.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> redis.asyncio.Connection:
        """A connection that is open. Raises what the client raises."""
        while len(self._in_use_connections) >= self.max_connections:
            await self._one_is_free()
        connection: redis.asyncio.Connection = self.get_available_connection()  # type: ignore[no-untyped-call]
        try:
            if not connection.is_connected or await connection.can_read():
                await self.ensure_connection(connection)
        except BaseException:
            await self.release(connection)
            raise
        return connection

    async def release(self, connection: Any) -> None:
        self._in_use_connections.remove(connection)
        try:
            if connection.should_reconnect():
                await connection.disconnect()
            self._available_connections.append(connection)
        finally:
            self._wake_one()

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """Close the connections, then wait until they are. redis-py has a task for each: who is cancelled before these
        have begun leaves all of them open."""
        connections = [*self._available_connections, *(self._in_use_connections if inuse_connections else ())]
        writers = [connection._writer for connection in connections if connection._writer is not None]
        for connection in connections:
            await connection.disconnect(nowait=True)  # waits for nothing, so nobody is cancelled here
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.connection_kwargs.get("socket_connect_timeout")):
                await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)

    async def _one_is_free(self) -> None:
        """Raises TimeoutError, as a command does, when none is for so long as its reply may take."""
        free, wait_s = asyncio.get_running_loop().create_future(), self.connection_kwargs.get("socket_timeout")
        self._waiting.append(free)
        try:
            async with asyncio.timeout(wait_s):
                await free
        except (TimeoutError, asyncio.CancelledError) as error:
            if free.done() and not free.cancelled():  # the connection that we were told of is another's
                self._wake_one()
            if isinstance(error, TimeoutError):
                waited = f"none of {self.max_connections} connections was free in {wait_s} s"
                raise redis.exceptions.TimeoutError(waited) from error
            raise

    def _wake_one(self) -> None:
        while self._waiting:
            free = self._waiting.popleft()
            if not free.done():
                free.set_result(None)
                return


class PlainClient(redis.asyncio.Redis):
    """A client of one server; replies as the server sends them, and nothing is retried.

    A connection closes itself when a command ends in anything but a reply: what comes later is no answer to the next.
    """

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        pool = self.connection_pool
        connection = await pool.get_connection()  # type: ignore[no-untyped-call]
        try:
            await connection.send_command(*args)
            return await connection.read_response()
        finally:
            await pool.release(connection)
