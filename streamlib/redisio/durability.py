"""Confirms that writes are as durable as a topic asks: WAITAOF and WAIT on the connection that wrote."""

from __future__ import annotations

import uuid
from typing import Any

import redis.exceptions

from streamlib.errors import RedisUnfit
from streamlib.redisio.connection import Lane, RedisDoor
from streamlib.redisio.failures import ErrorClass, classify
from streamlib.settings import redact
from streamlib.topic import TopicSpec


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
    """

    def __init__(self, lane: Lane, durability: str, timeout_ms: int) -> None:
        self.durability = durability
        self.timeout_ms = timeout_ms
        self._lane = lane
        self._name = ""
        kind, _, number = durability.partition(":")
        self._wait = ("WAITAOF", 1, 0, timeout_ms) if kind == "fsync" else ("WAIT", int(number), timeout_ms)
        self._wanted = 1 if kind == "fsync" else int(number)

    async def execute(self, *command: Any) -> Any:
        """Send one command; `begin` comes before it. Raises what the client raises."""
        return await self._lane.execute(*command)

    async def begin(self) -> None:
        """Before a write: know this connection again. Raises what the client raises."""
        if not self._name:
            name = f"streamlib-{uuid.uuid4().hex}"
            await self._lane.execute("CLIENT", "SETNAME", name)
            self._name = name

    async def confirm(self) -> str:
        """After the write: "" when enough copies confirmed it, else what is missing.

        Raises ConnectionResetError when the connection is no longer the one that wrote: write again, then ask
        again. Raises what the client raises.
        """
        reply = await self._lane.execute(*self._wait)
        found: bytes | None = await self._lane.execute("CLIENT", "GETNAME")
        if found != self._name.encode():
            self._name = ""
            raise ConnectionResetError("the connection was replaced between a write and its confirmation")
        confirmed = reply[0] if isinstance(reply, list) else reply
        if confirmed >= self._wanted:
            return ""
        if self.durability == "fsync":
            return f"it was not fsynced within {self.timeout_ms} ms; look at the disk and at appendfsync"
        return (
            f"{confirmed} of {self._wanted} replicas confirmed it within {self.timeout_ms} ms; look at INFO replication"
        )

    async def close(self) -> None:
        await self._lane.close()
