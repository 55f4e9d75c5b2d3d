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
    """One atomic transition: the file of that name in `lua/`.

    One that `reads_only` is run as such: a user may then be without the right to write what it reads.
    """

    def __init__(self, name: str, *, reads_only: bool = False) -> None:
        self.name = name
        self._by_sha, self._by_body = ("EVALSHA_RO", "EVAL_RO") if reads_only else ("EVALSHA", "EVAL")
        self._body = (Path(__file__).parent / "lua" / f"{name}.lua").read_bytes()
        self.sha = hashlib.sha1(self._body, usedforsecurity=False).hexdigest()
        know_script(name, self.sha, self._body)

    async def run(self, redis: Executes, keys: Sequence[str], args: Sequence[Arg]) -> Any:
        """The script's raw reply. Raises what the client raises."""
        try:
            return await redis.execute(self._by_sha, self.sha, len(keys), *keys, *args)
        except NoScriptError:
            return await redis.execute(self._by_body, self._body, len(keys), *keys, *args)

    def run_sync(self, redis: SyncClient, keys: Sequence[str], args: Sequence[Arg]) -> Any:
        """The same for a thread."""
        try:
            return redis.execute(self._by_sha, self.sha, len(keys), *keys, *args)
        except NoScriptError:
            return redis.execute(self._by_body, self._body, len(keys), *keys, *args)
