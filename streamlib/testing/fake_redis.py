"""A Redis inside the process: fakeredis behind the same door as the real one, with what it lacks added here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

import fakeredis

from streamlib.redisio.connection import RedisDoor
from streamlib.settings import RedisSettings

_POLL_S = 0.005
_BLOCKING = frozenset({"XREAD", "XREADGROUP"})
_READ_ONLY = {"EVALSHA_RO": "EVALSHA", "EVAL_RO": "EVAL"}
"""Not known to fakeredis."""


class FakeServer:
    """One server and its data; gone when nothing refers to it any more."""

    def __init__(self) -> None:
        self._server = fakeredis.FakeServer(server_type="redis", version=(7, 0))

    def door(self, settings: RedisSettings) -> RedisDoor:
        """A door that leads here, whatever `settings.url` says; open as many as you like."""
        return RedisDoor(settings, _FakeClients(self._server))


class _FakeClients:
    """Clients of one server in this process."""

    one_node = True
    settled = None

    def __init__(self, server: fakeredis.FakeServer) -> None:
        self._server = server

    def client(self, timeout_s: float, key: str | None = None) -> _AsyncClient:
        client = _AsyncClient(server=self._server, protocol=2, socket_timeout=None)
        client.response_callbacks.clear()
        return client

    def sync_client(self, timeout_s: float) -> fakeredis.FakeRedis:
        client = fakeredis.FakeRedis(server=self._server, protocol=2)
        client.response_callbacks.clear()
        return client

    async def nodes(self, timeout_s: float) -> Mapping[str, _AsyncClient]:
        return {"": self.client(timeout_s)}

    def beside(self, host: tuple[str, int], timeout_s: float) -> _AsyncClient:
        return self.client(timeout_s)

    async def close(self) -> None:
        """The data stay with the server."""


class _AsyncClient(fakeredis.FakeAsyncRedis):
    """Answers like a server where fakeredis does not."""

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        name = str(args[0]).upper()
        if name in _BLOCKING:
            return await self._read(list(args), options)
        if name == "WAIT":
            return int(args[1])  # as many replicas as were asked for have it
        if name == "WAITAOF":
            return [int(args[1]), int(args[2])]
        return await self._send(args, options)

    async def _send(self, args: Sequence[Any], options: dict[str, Any]) -> Any:
        if args[0] in _READ_ONLY:
            args = (_READ_ONLY[args[0]], *args[1:])
        return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]

    async def _read(self, args: list[Any], options: dict[str, Any]) -> Any:
        """fakeredis answers a blocking read with COUNT before its time; here it is asked again until then."""
        words = [str(word).upper() for word in args[: args.index("STREAMS")]]
        if "BLOCK" not in words:
            return await self._send(args, options)
        at = words.index("BLOCK")
        deadline = time.monotonic() + int(args[at + 1]) / 1000
        del args[at : at + 2]
        while True:
            found = await self._send(args, options)
            left_s = deadline - time.monotonic()
            if found or left_s <= 0:
                return found
            await asyncio.sleep(min(_POLL_S, left_s))
