"""Requests on the wire: which of them runs a script, and one that is caught on its way."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import hiredis

LUA = Path(__file__).parents[2] / "streamlib" / "redisio" / "lua"
SCRIPTS = tuple(sorted(file.stem for file in LUA.glob("*.lua")))
"""Every script that there is."""

Moment = Literal["before", "after"]
"""Before a request has reached the server; after the server has carried it out, its reply held back."""


def script_words(name: str) -> frozenset[bytes]:
    """What a request names this script by: its SHA, or all of it where the server does not know that."""
    body = (LUA / f"{name}.lua").read_bytes()
    return frozenset((hashlib.sha1(body, usedforsecurity=False).hexdigest().encode(), body))


class Catch:
    """One request to be held on its way: the `nth` that runs one of the scripts, or is one of the commands, in `words`.

    Its connection stands still from then on, others go on, until it is told to `deliver` (late, as a network may) or to
    `lose` (the connection is closed; what it held never arrives). To be told on the proxy's loop.
    """

    def __init__(self, words: Collection[bytes], moment: Moment, nth: int = 1) -> None:
        self.happened = threading.Event()
        self.moment = moment
        self._words = frozenset(words)
        self._left = nth
        self._is_lost = False
        self._told = asyncio.Event()

    def wants(self, request: Any) -> bool:
        command = request[0].upper()
        name = request[1] if command.startswith(b"EVAL") else command
        return name in self._words

    def is_this(self) -> bool:
        """Is it the one, now that another is at the moment that is waited for?"""
        self._left -= 1
        return self._left == 0

    async def hold(self) -> bool:
        """Until told; whether what is held is to go on."""
        self.happened.set()
        await self._told.wait()
        return not self._is_lost

    def deliver(self) -> None:
        self._told.set()

    def lose(self) -> None:
        self._is_lost = True
        self._told.set()


class Watch:
    """What passes on one connection, counted from its beginning: the n-th reply answers the n-th request."""

    def __init__(self, catch: Catch) -> None:
        self.hold = catch.hold
        self._catch = catch
        self._requests = hiredis.Reader()
        self._replies = hiredis.Reader()
        self._asked = self._answered = 0
        self._wanted: set[int] = set()

    def sees_request(self, chunk: bytes) -> bool:
        """Is the end of the request that is to be caught `before` in this chunk?"""
        found = False
        for request in _whole(self._requests, chunk):
            self._asked += 1
            if self._catch.wants(request):
                self._wanted.add(self._asked)
                found = found or (self._catch.moment == "before" and self._catch.is_this())
        return found

    def sees_reply(self, chunk: bytes) -> bool:
        """Is the end of the reply that is to be caught in this chunk? That a script is not known is none."""
        found = False
        for reply in _whole(self._replies, chunk):
            self._answered += 1
            unknown = isinstance(reply, Exception) and str(reply).startswith("NOSCRIPT")
            if self._answered in self._wanted and not unknown:
                found = found or (self._catch.moment == "after" and self._catch.is_this())
        return found


def _whole(reader: hiredis.Reader, chunk: bytes) -> list[Any]:
    """The messages whose end came with this chunk."""
    reader.feed(chunk)
    found = []
    while (message := reader.gets()) is not False:
        found.append(message)
    return found
