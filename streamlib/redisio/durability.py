"""Confirms that writes are as durable as a topic asks: WAITAOF and WAIT on the connection that wrote."""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import redis.exceptions

from streamlib.errors import RedisUnfit
from streamlib.redisio.connection import Lane, RedisDoor
from streamlib.redisio.failures import ErrorClass, classify
from streamlib.settings import redact
from streamlib.topic import TopicSpec

Settled = Callable[[], Awaitable[bool]]
Replica = tuple[bytes, bytes]
"""Host and port, as ROLE tells them."""

_ALL_MS = 100
"""So long all replicas are waited for, those too that nobody asked for."""
_LOOK_S = 0.05
"""So old at most is a look at who copies when a write begins: less than a sentinel needs to learn of a replica."""


async def check_durability(door: RedisDoor, topic: TopicSpec) -> None:
    """Raise RedisUnfit if this server cannot confirm what the topic asks for, with the way out.

    Only "fsync" needs something of the server; "replicas:n" is known with every publish. Raises what the
    client raises when the server cannot be asked.
    """
    if topic.durability != "fsync":
        return
    try:
        async with door.nodes() as lanes:
            for lane in lanes.values():
                await lane.execute("WAITAOF", 1, 0, 1)
    except redis.exceptions.ResponseError as error:
        if classify(error) not in (ErrorClass.CONFIG, ErrorClass.BUG):
            raise
        raise RedisUnfit(
            f"topic {topic.name!r} asks for durability='fsync', but Redis at {redact(door.settings.url)} "
            f"cannot confirm it ({error}); use Redis or Valkey 7.2 or later with `appendonly yes`, or choose "
            "durability='primary'"
        ) from error


class DurableLane:
    """One connection on which a write is followed by its confirmation.

    WAIT and WAITAOF look at the writes of their own connection only. The client opens a new one by itself
    when the old one was closed, also between a write and its WAIT, and there every WAIT succeeds at once. So
    the connection carries a name that a new one would not have.

    Behind sentinels a replica that is made the primary leaves the old one first, which goes on taking writes for a
    moment, and a second replica goes on confirming them: they would be lost. So all replicas are waited for that were
    connected before the write. Who is connected after it is looked at by name: if one has gone, the sentinels are asked
    (`settled`) whether it is the next primary; if one has come, all are waited for once more.
    """

    def __init__(self, lane: Lane, durability: str, timeout_ms: int, settled: Settled | None = None) -> None:
        self.durability = durability
        self.timeout_ms = timeout_ms
        self._lane = lane
        self._name = ""
        kind, _, number = durability.partition(":")
        self._wanted = 1 if kind == "fsync" else int(number)
        self._settled = settled if kind == "replicas" else None
        self._replicas: frozenset[Replica] | None = None
        self._looked_s = 0.0

    async def execute(self, *command: Any) -> Any:
        """Send one command; `begin` comes before it. Raises what the client raises."""
        return await self._lane.execute(*command)

    async def begin(self) -> None:
        """Before a write: know this connection again. Raises what the client raises."""
        if not self._name:
            name = f"streamlib-{uuid.uuid4().hex}"
            await self._lane.execute("CLIENT", "SETNAME", name)
            self._name, self._replicas = name, None
        if self._replicas is None or time.monotonic() - self._looked_s > _LOOK_S:
            await self._look()

    async def confirm(self) -> str:
        """After the write: "" when enough copies confirmed it, else what is missing.

        Raises ConnectionResetError when the connection is no longer the one that wrote: write again, then ask
        again. Raises what the client raises.
        """
        confirmed = await self._wait()
        if self._settled is not None:
            before = self._replicas
            if await self._look() > (before or frozenset()):
                confirmed = await self._wait()
        found: bytes | None = await self._lane.execute("CLIENT", "GETNAME")
        if found != self._name.encode():
            self._name = ""
            raise ConnectionResetError("the connection was replaced between a write and its confirmation")
        if confirmed >= self._wanted:
            return ""
        if self.durability == "fsync":
            return f"it was not fsynced within {self.timeout_ms} ms; look at the disk and at appendfsync"
        return (
            f"{confirmed} of {self._wanted} replicas confirmed it within {self.timeout_ms} ms; look at INFO replication"
        )

    async def _wait(self) -> int:
        if self.durability == "fsync":
            reply: list[int] = await self._lane.execute("WAITAOF", 1, 0, self.timeout_ms)
            return reply[0]
        all_ms = min(_ALL_MS, self.timeout_ms)
        confirmed: int = await self._lane.execute("WAIT", max(self._wanted, len(self._replicas or ())), all_ms)
        if confirmed < self._wanted:
            confirmed = await self._lane.execute("WAIT", self._wanted, self.timeout_ms)
        return confirmed

    async def _look(self) -> frozenset[Replica]:
        """Which replicas there are. Raises ConnectionResetError when one has gone that may be the next primary."""
        replicas: frozenset[Replica] = frozenset()
        if self._settled is not None:
            role = await self._lane.execute("ROLE")
            if role[0] == b"master":
                replicas = frozenset((host, port) for host, port, _ in role[2])
            # First the role, then the sentinels: whoever left before that was being replaced by then, or is just gone.
            gone = self._replicas is None or not self._replicas <= replicas
            if gone and not await self._settled():
                raise ConnectionResetError("the sentinels are making another server the primary")
        self._replicas, self._looked_s = replicas, time.monotonic()
        return replicas

    async def close(self) -> None:
        await self._lane.close()
