"""What an app's handlers share: opened by whoever needs it first in this process, closed by whoever leaves last."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from streamlib.errors import DeclarationError, StreamlibError

Opens = Callable[[], AbstractAsyncContextManager[Mapping[str, Any] | None]]


class Lifespan:
    """One entered `@app.lifespan` for the worker and the commands of a process."""

    def __init__(self) -> None:
        self._opens: Opens | None = None
        self._open: AbstractAsyncContextManager[Mapping[str, Any] | None] | None = None
        self._state: Mapping[str, Any] = {}
        self._users = 0
        self._turn: asyncio.Lock | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._busy: asyncio.Task[Any] | None = None

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
        """Open it, unless it is open; each call that returns wants its `leave`."""
        async with self._alone():
            if not self._users and self._opens is not None:
                opening = self._opens()
                self._state = await opening.__aenter__() or {}
                self._open = opening
            self._users += 1
            return self._state

    async def leave(self) -> None:
        async with self._alone():
            if not self._users:  # the app closes, and whoever was about to open this has failed to meanwhile
                return
            self._users -= 1
            if not self._users and self._open is not None:
                opened, self._open, self._state = self._open, None, {}
                await opened.__aexit__(None, None, None)

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """One task at a time. Raises StreamlibError when that task is the one that opens or closes it now."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        if self._turn is None or self._loop is not loop:  # an app may be opened again in another loop
            self._turn, self._loop = asyncio.Lock(), loop
        if self._busy is not None and self._busy is task:
            raise StreamlibError(
                "the app's lifespan dispatches a command before its `yield` or after it: the command would wait for "
                "the lifespan; use repositories and topics there, or dispatch when the app is open"
            )
        async with self._turn:
            self._busy = task
            try:
                yield
            finally:
                self._busy = None
