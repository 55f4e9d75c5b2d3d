"""A publisher of its own for a test, and events for it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import redis

from streamlib.event import Event, Registry
from streamlib.keys import Keys
from streamlib.message import Message
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.publisher import Observe, Publisher
from streamlib.settings import LimitSettings, RedisSettings
from streamlib.topic import TopicSpec


class Made(Event):
    order_id: str
    note: str = ""


def topic(name: str = "orders", **declared: Any) -> TopicSpec:
    return TopicSpec(name=name, registry=Registry([Made]), key="order_id", **declared)


ORDERS = topic()


def made(number: int, of: TopicSpec = ORDERS, *, event_id: str | None = None, note: str = "") -> Message:
    return of.message(Made(order_id=f"o-{number}", note=note), event_id=event_id)


@asynccontextmanager
async def open_door(url: str, **settings: Any) -> AsyncIterator[RedisDoor]:
    door = RedisDoor.open(RedisSettings(url=url, **settings))
    try:
        yield door
    finally:
        await door.close()


@asynccontextmanager
async def open_publisher(
    url: str, *, limits: LimitSettings | None = None, observe: Observe | None = None, **settings: Any
) -> AsyncIterator[Publisher]:
    """A publisher with a door of its own; `settings` are RedisSettings (timeout_s, retry_s)."""
    async with open_door(url, **settings) as door:
        publisher = Publisher(door, Keys(), limits or LimitSettings(), observe=observe)
        try:
            yield publisher
        finally:
            await publisher.close()


def entries(client: redis.Redis, stream: str) -> list[tuple[str, dict[bytes, bytes]]]:
    """The entries of a stream: id and fields."""
    found: Any = client.xrange(stream)
    return [(entry_id.decode(), fields) for entry_id, fields in found]


def stored_ids(client: redis.Redis, *streams: str) -> list[str]:
    """The event ids in these streams, in their order."""
    return [fields[b"id"].decode() for stream in streams for _, fields in entries(client, stream)]


def add(client: redis.Redis, stream: str, event_id: str) -> str:
    """Add an entry as a foreign program would; its id."""
    added: Any = client.xadd(stream, {"id": event_id})
    return str(added.decode())


def deliver(client: redis.Redis, stream: str, group: str, count: int) -> list[str]:
    """Let a consumer of the group read `count` entries; their ids."""
    read: Any = client.xreadgroup(group, "c", {stream: ">"}, count=count)
    return [entry_id.decode() for _, found in read for entry_id, _ in found]
