"""Asks every second which groups of this process are paused, and tells whoever would take new work for them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

from streamlib.keys import Keys
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.pauses import is_paused

logger = logging.getLogger(__name__)
_ASK_EVERY_S = 1.0
_LOOK_AGAIN_S = 0.1

PAUSE, BREAKER = "pause", "breaker"
"""Who closes gates: operators, and a group's circuit breaker."""


class Gate:
    """Whether one group of this process may take new work. Nobody paused one that stands alone."""

    def __init__(self, *, is_open: bool = True) -> None:
        self._open = asyncio.Event()
        self._closed_by = set[str]() if is_open else {PAUSE}
        self.opened_at = 0.0
        self._on_change: list[Callable[[], None]] = []
        if is_open:
            self._open.set()

    @property
    def closed(self) -> bool:
        return not self._open.is_set()

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever the gate has been opened or closed."""
        self._on_change.append(listener)

    async def wait_open(self) -> None:
        await self._open.wait()

    def set(self, *, is_open: bool, by: str = PAUSE) -> None:
        (self._closed_by.discard if is_open else self._closed_by.add)(by)
        is_open = not self._closed_by
        if is_open is not self.closed:
            return
        if is_open:
            self.opened_at = time.monotonic()
            self._open.set()
        else:
            self._open.clear()
        for listener in self._on_change:
            listener()

    def gated(self, step: Callable[[], Awaitable[float]]) -> Callable[[], Awaitable[float]]:
        """A background loop's step that does nothing while the gate is closed, and lets the loop see its own end."""

        async def when_open() -> float:
            if not self.closed:
                return await step()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_AGAIN_S):
                    await self.wait_open()
            return 0.0

        return when_open


class Pauses:
    """The gates of all groups and projections of one process. Closed until Redis has answered for the first time:
    a worker that starts must not take work of a group that is paused."""

    def __init__(self, door: RedisDoor, keys: Keys) -> None:
        self._door = door
        self._keys = keys
        self._gates: dict[tuple[str, str], Gate] = {}
        self._paused: frozenset[tuple[str, str]] = frozenset()

    def gate(self, topic: str, group: str) -> Gate:
        """The group's gate, the same one each time; asked for by `run_once` from then on."""
        return self._gates.setdefault((topic, group), Gate(is_open=False))

    def paused(self, topic: str, group: str) -> bool:
        """Whether the group was paused when Redis was last asked."""
        return (topic, group) in self._paused

    @property
    def all_paused(self) -> list[tuple[str, str]]:
        """Topic and group of every paused one, in order."""
        return sorted(self._paused)

    async def run_once(self) -> float:
        """Ask for every group; seconds until the next time. What Redis does not answer stays as it is.""" ""
        places = list(self._gates)
        asking = (is_paused(self._door, self._keys, *place) for place in places)
        answers = dict(zip(places, await asyncio.gather(*asking, return_exceptions=True), strict=True))
        # One lost shard must not keep the groups of the others waiting.
        told = {place: answer for place, answer in answers.items() if isinstance(answer, bool)}
        paused = frozenset(place for place in places if told.get(place, place in self._paused))
        for word, changed in (("group_paused", paused - self._paused), ("group_resumed", self._paused - paused)):
            for topic, group in sorted(changed):
                logger.warning(word, extra={"topic": topic, "group": group})
        self._paused = paused
        for place, closed in told.items():
            self._gates[place].set(is_open=not closed)
        for answer in answers.values():
            if isinstance(answer, BaseException):
                raise answer
        return _ASK_EVERY_S
