"""Turns: of the tasks of one process that want to change the same thing, one at a time."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar

_held: ContextVar[frozenset[asyncio.Lock]] = ContextVar("held_turns", default=frozenset())


class Turns:
    """A lock for each name, kept for as long as somebody has it or waits for it."""

    def __init__(self) -> None:
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    @asynccontextmanager
    async def of(self, name: str) -> AsyncIterator[None]:
        """Code inside has its turn; code that is called from within its own turn need not wait for it."""
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = asyncio.Lock()
        if lock in _held.get():
            yield
            return
        async with lock:
            token = _held.set(_held.get() | {lock})
            try:
                yield
            finally:
                _held.reset(token)
