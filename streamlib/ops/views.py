"""A view as the verbs that change its generations see it, and what there is of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from msgspec import Struct

from streamlib.errors import NotFound
from streamlib.keys import Keys
from streamlib.ops.workers import workers_of
from streamlib.redisio import generations
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.generations import Standing, ViewName
from streamlib.redisio.indexes import ViewKeys, group_of
from streamlib.redisio.registry import topics
from streamlib.redisio.view_state import Extent, ViewHead, entries_read, extent_of, view_head
from streamlib.settings import Settings
from streamlib.worker.projection import Projection

T = TypeVar("T")


class View(Struct, frozen=True, kw_only=True):
    """The view that is meant, by the code that is here, and the Redis that it lies in."""

    projection: Projection[Any]
    redis: RedisDoor
    keys: Keys
    settings: Settings

    @property
    def name(self) -> ViewName:
        return ViewName(self.projection.topic.name, self.projection.name)

    @property
    def label(self) -> str:
        return f"view {self.projection.name!r}"

    def group(self, generation: int) -> str:
        return group_of(self.projection.name, generation)

    def parts(self, generation: int) -> list[ViewKeys]:
        """The keys of a generation on every partition."""
        topic = self.projection.topic
        streams = [self.keys.stream(topic.name, number, topic.partitions) for number in range(topic.partitions)]
        return [ViewKeys(stream, self.projection.name, generation) for stream in streams]

    async def standing(self) -> Standing:
        """Its generations. Raises NotFound where the topic is not in this Redis."""
        topic = self.projection.topic.name
        if topic not in await self.ask(partial(topics, self.redis, self.keys)):
            raise NotFound(f"topic {topic!r} is not in this Redis: nothing was published, {self.label} has no rows")
        return await self.ask(partial(generations.standing, self.redis, self.keys, topic, self.projection.name))

    async def heads(self, generation: int) -> list[ViewHead]:
        """Where the generation stands on every partition."""
        parts = self.parts(generation)
        return await asyncio.gather(*(self.ask(partial(view_head, self.redis, one)) for one in parts))

    async def read(self, generation: int) -> int:
        """How many entries of the topic the generation has behind it."""
        parts = self.parts(generation)
        return sum(await asyncio.gather(*(self.ask(partial(entries_read, self.redis, one)) for one in parts)))

    async def extents(self) -> list[Extent]:
        """What each partition's stream holds."""
        streams = [one.stream.stream for one in self.parts(0)]
        return await asyncio.gather(*(self.ask(partial(extent_of, self.redis, stream)) for stream in streams))

    async def fed(self, generation: int) -> bool:
        """Whether a live worker feeds the generation."""
        topic, lease_ms = self.projection.topic.name, self.settings.worker.lease_ms
        group = self.group(generation)
        return bool(await self.ask(partial(workers_of, self.redis, self.keys, topic, group, lease_ms)))

    async def ask(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Ask Redis for `redis.retry_s`. Raises what the client raises, and RedisUnavailable."""
        return await self.redis.persist(operation, give_up_s=self.redis.settings.retry_s)


class GenerationRow(Struct, frozen=True, kw_only=True):
    """One generation of a view: its group, its role ("live", "kept", "building", "dropping"), rows, and what it has not
    folded yet."""

    view: str
    topic: str
    generation: int
    role: str
    group: str
    rows: int
    behind: int
    fed: bool


async def rows(view: View) -> list[GenerationRow]:
    """Every generation that there is of the view."""
    added = sum(one.added for one in await view.extents())
    return [await _row(view, generation, role, added) for generation, role in (await view.standing()).roles.items()]


async def _row(view: View, generation: int, role: str, added: int) -> GenerationRow:
    asks = [view.ask(partial(view.redis.execute, "HGET", keys.head, "rows")) for keys in view.parts(generation)]
    return GenerationRow(
        view=view.projection.name,
        topic=view.projection.topic.name,
        generation=generation,
        role=role,
        group=view.group(generation),
        rows=sum(int(count or 0) for count in await asyncio.gather(*asks)),
        behind=max(added - await view.read(generation), 0),
        fed=await view.fed(generation),
    )
