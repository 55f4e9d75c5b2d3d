"""redis-py's asyncio client, without what it does around each command and nobody here needs.

For one command redis-py takes a lock twice, tells five listeners, counts three times what its telemetry would report
if it were on, and wraps the sending in a retry that is off. That costs the loop as much as the command itself.
"""

from __future__ import annotations

from typing import Any

import redis.asyncio


class PlainPool(redis.asyncio.ConnectionPool):
    """A pool of connections for one loop. It has no lock: nothing waits while a connection is taken or given back."""

    async def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> redis.asyncio.Connection:
        """A connection that is open. Raises what the client raises."""
        connection: redis.asyncio.Connection = self.get_available_connection()  # type: ignore[no-untyped-call]
        try:
            await self.ensure_connection(connection)
        except BaseException:
            await self.release(connection)
            raise
        return connection

    async def release(self, connection: Any) -> None:
        self._in_use_connections.remove(connection)
        if connection.should_reconnect():
            await connection.disconnect()
        self._available_connections.append(connection)


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
