"""Which generation of a view this process reads, and how it follows when another one is made the live one."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from streamlib.keys import Keys
from streamlib.message import entry_order
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.failures import CLIENT_ERRORS, translate
from streamlib.redisio.generations import live_generation
from streamlib.redisio.indexes import FIRST, ViewKeys
from streamlib.redisio.view_state import view_head

T = TypeVar("T")

ASK_S = 1.0
"""How often readers ask which generation is the live one."""
PATIENCE_S = 2.0
"""How long they stay with the one before when the new one has not got so far."""
_TRY_S, _POLL_S = 0.1, 0.005


class LiveView:
    """The live generation, as this process reads it.

    One question is answered from one generation. On a switch the reads under way end first; then the new generation
    must contain everything that the old one contains, so that nobody here sees the view go back in time. A generation
    that lags behind is given two seconds for that; meanwhile the old one answers, which is still being fed.
    """

    def __init__(
        self, redis: Callable[[], RedisDoor], keys: Callable[[], Keys], topic: str, partitions: int, view: str
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._topic = topic
        self._partitions = partitions
        self._view = view
        self._generation = 0
        self._ask_at = 0.0
        self._noticed_at = 0.0
        self._moving: asyncio.Event | None = None
        self._reads = 0
        self._quiet = asyncio.Event()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[list[ViewKeys]]:
        """The keys of every partition, of one generation, for one question."""
        await self._follow()
        self._reads += 1
        self._quiet.clear()
        try:
            yield self._parts(self._generation)
        finally:
            self._reads -= 1
            if not self._reads:
                self._quiet.set()

    async def persist(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Ask for `redis.retry_s` at most. Raises RedisUnavailable, and what the client raises as ours."""
        redis = self._redis()
        try:
            return await redis.persist(operation, give_up_s=redis.settings.retry_s)
        except CLIENT_ERRORS as error:
            raise translate(error, redis.settings.url) from error

    async def _follow(self) -> None:
        if not self._is_moving() and time.monotonic() >= self._ask_at:
            before = self._generation
            live = await self.persist(
                lambda: live_generation(self._redis(), self._keys(), self._topic, self._view, before or FIRST)
            )
            if not self._is_moving() and self._generation == before:  # else another read has got further meanwhile
                self._ask_at = time.monotonic() + ASK_S
                if not before or live == before:
                    self._generation, self._noticed_at = live, 0.0
                else:
                    await self._move(live)
        if self._moving is not None:
            await self._moving.wait()

    def _is_moving(self) -> bool:
        return self._moving is not None

    async def _move(self, live: int) -> None:
        """Go over to the live generation if it has got so far; else stay, and look again soon."""
        began = time.monotonic()
        self._noticed_at = self._noticed_at or began
        self._moving = moved = asyncio.Event()
        try:
            if await self._has_caught_up(live) or began > self._noticed_at + PATIENCE_S:
                self._generation, self._noticed_at = live, 0.0
            else:
                self._ask_at = time.monotonic() + _TRY_S
        finally:
            self._moving = None
            moved.set()

    async def _has_caught_up(self, live: int) -> bool:
        """Whether it contains, within a moment, all that the reads of this process can have seen."""
        until = time.monotonic() + _TRY_S
        if self._reads:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._quiet.wait(), _TRY_S)
        seen = await self._checkpoints(self._generation)
        while not all(one >= other for one, other in zip(await self._checkpoints(live), seen, strict=True)):
            if time.monotonic() > until:
                return False
            await asyncio.sleep(_POLL_S)
        return True

    async def _checkpoints(self, generation: int) -> list[tuple[int, int]]:
        parts = self._parts(generation)
        heads = await self.persist(lambda: asyncio.gather(*(view_head(self._redis(), keys) for keys in parts)))
        return [entry_order(head.checkpoint) for head in heads]

    def _parts(self, generation: int) -> list[ViewKeys]:
        keys = self._keys()
        streams = [keys.stream(self._topic, number, self._partitions) for number in range(self._partitions)]
        return [ViewKeys(stream, self._view, generation) for stream in streams]
