"""What an app's handlers share: opened by whoever needs it first in this process, closed by whoever leaves last."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from streamlib.errors import DeclarationError

Opens = Callable[[], AbstractAsyncContextManager[Mapping[str, Any] | None]]


class Lifespan:
    """One entered `@app.lifespan` for the worker and the commands of a process."""

    def __init__(self) -> None:
        self._opens: Opens | None = None
        self._open: AbstractAsyncContextManager[Mapping[str, Any] | None] | None = None
        self._state: Mapping[str, Any] = {}
        self._users = 0
        self._lock = asyncio.Lock()

    def declare(self, function: Callable[..., Any], app: object) -> None:
        """Take the app's async generator. Raises DeclarationError."""
        if not inspect.isasyncgenfunction(function):
            raise DeclarationError(f"lifespan {function.__qualname__}: must be `async def` with one `yield {{...}}`")
        opens = asynccontextmanager(function)
        self._opens = lambda: opens(app)

    @asynccontextmanager
    async def entered(self) -> AsyncIterator[Mapping[str, Any]]:
        """What it yielded; {} where none is declared."""
        state = await self.enter()
        try:
            yield state
        finally:
            await self.leave()

    async def enter(self) -> Mapping[str, Any]:
        """Open it, unless it is open; each call wants its `leave`."""
        async with self._lock:
            if not self._users and self._opens is not None:
                opening = self._opens()
                self._state = await opening.__aenter__() or {}
                self._open = opening
            self._users += 1
            return self._state

    async def leave(self) -> None:
        async with self._lock:
            self._users -= 1
            if not self._users and self._open is not None:
                opened, self._open, self._state = self._open, None, {}
                await opened.__aexit__(None, None, None)
