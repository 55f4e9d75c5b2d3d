"""Runs the Lua scripts: EVALSHA, and EVAL once when the server does not know the script (any more)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from streamlib.redisio.command_names import know_script
from streamlib.redisio.connection import SyncClient
from streamlib.redisio.failures import NoScriptError

Arg = str | bytes | int | float


class Executes(Protocol):
    """A door or a lane."""

    async def execute(self, *command: Any) -> Any: ...


class Script:
    """One atomic transition: the file of that name in `lua/`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._body = (Path(__file__).parent / "lua" / f"{name}.lua").read_bytes()
        self.sha = hashlib.sha1(self._body, usedforsecurity=False).hexdigest()
        know_script(name, self.sha, self._body)

    async def run(self, redis: Executes, keys: Sequence[str], args: Sequence[Arg]) -> Any:
        """The script's raw reply. Raises what the client raises."""
        try:
            return await redis.execute("EVALSHA", self.sha, len(keys), *keys, *args)
        except NoScriptError:
            return await redis.execute("EVAL", self._body, len(keys), *keys, *args)

    def run_sync(self, redis: SyncClient, keys: Sequence[str], args: Sequence[Arg]) -> Any:
        """The same for a thread."""
        try:
            return redis.execute("EVALSHA", self.sha, len(keys), *keys, *args)
        except NoScriptError:
            return redis.execute("EVAL", self._body, len(keys), *keys, *args)
