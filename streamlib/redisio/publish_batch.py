"""Events on their way into one partition: what their callers wait for, and how publish.lua takes a batch of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import cast

from msgspec import Struct

from streamlib.codec import Fields
from streamlib.errors import StreamlibError
from streamlib.keys import StreamKeys
from streamlib.message import Message, Position
from streamlib.redisio.later import pack
from streamlib.redisio.scripts import Arg


class Sent(Struct, frozen=True):
    """Stored: where. A `duplicate` was there before, under the same id and with the same content."""

    position: Position
    duplicate: bool


Outcome = Sent | StreamlibError


class Order:
    """What one caller waits for: an outcome for each of its messages. `since` is when he began (monotonic seconds)."""

    __slots__ = ("_missing", "_outcomes", "done", "since")

    def __init__(self, size: int) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.since = time.monotonic()
        self._outcomes: list[Outcome | None] = [None] * size
        self._missing = size

    def put(self, index: int, outcome: Outcome) -> None:
        self._outcomes[index] = outcome
        self._missing -= 1
        if not self._missing and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: BaseException | None) -> None:
        """End the wait without outcomes: with this error, or cancelled."""
        if error is None:
            self.done.cancel()
        elif not self.done.done():
            self.done.set_exception(error)

    def outcomes(self) -> list[Outcome]:
        return cast("list[Outcome]", self._outcomes)


class Waiting(Struct, frozen=True, eq=False):
    """One message on its way; its outcome has this index in the order. `digest` is b"" without a dedup window."""

    order: Order
    index: int
    message: Message
    fields: Fields
    digest: bytes
    delay_ms: int

    def __str__(self) -> str:
        return f"{self.message.type} {self.message.id}"


def keys_of(batch: Sequence[Waiting], keys: StreamKeys, window_ms: int) -> list[str]:
    """The KEYS of publish.lua."""
    found = [keys.stream, keys.producers(), keys.later(), keys.later_body()]
    return found + [keys.dedup(waiting.message.id) for waiting in batch] if window_ms else found


def args_of(batch: Sequence[Waiting], window_ms: int) -> list[Arg]:
    """What stands in the ARGV of publish.lua for each event.

    Field names are sent once for all events in a row that have the same: each argument costs both sides.
    """
    args: list[Arg] = []
    names: Fields | None = None
    head, events = 0, 0
    for waiting in batch:
        shape = [] if waiting.delay_ms else waiting.fields[::2]
        if shape != names:
            head, events, names = len(args), 0, shape
            args += (0, len(names), *names)
        events += 1
        args[head] = events
        if window_ms:
            args.append(waiting.digest)
        if waiting.delay_ms:
            args += (waiting.delay_ms, waiting.message.id, pack(waiting.fields))
        else:
            args += waiting.fields[1::2]
    return args
