"""Walks one index of a view over all partitions at once, in its order, a bounded read at a time."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from msgspec import Struct

from streamlib.redisio.scripts import Executes, Script

_seek = Script("seek", reads_only=True)

PAGE = 500
"""The most entries, and rows, of one partition that are read at once."""

Place = Any
"""Where an entry stands in an index: its member, or (score, member). Places of one index compare."""


class Spot(Struct, frozen=True):
    """One entry of an index: its place, and whose row it names."""

    place: Place
    row_id: str
    partition: int


Read = Callable[[int, Place | None, int], Awaitable[list[Spot]]]
"""(partition, place or None for the beginning, count) -> the entries behind that place; fewer than count at the end."""


class Walk:
    """One way through an index, from behind `after` on (None: from its beginning).

    Each partition's entries are read in order behind the last one that was read, so an entry that stays where it is
    comes exactly once, whatever happens to others meanwhile.
    """

    def __init__(self, read: Read, partitions: int, after: Place | None) -> None:
        self._read = read
        self._waiting = [deque[Spot]() for _ in range(partitions)]
        self._at = [after] * partitions
        self._ended = [False] * partitions
        self._size = 0

    async def next(self, want: int, last: Place | None = None) -> list[Spot]:
        """The next entries of all partitions, `want` at most, none of them behind `last`. Empty: there are no more."""
        taken: list[Spot] = []
        while len(taken) < want:
            await self._fill(want - len(taken))
            heap = [(spots[0].place, partition) for partition, spots in enumerate(self._waiting) if spots]
            heapq.heapify(heap)
            known = bool(heap)
            while known and len(taken) < want:
                place, partition = heap[0]
                if last is not None and place > last:
                    return taken
                spots = self._waiting[partition]
                taken.append(spots.popleft())
                if spots:
                    heapq.heapreplace(heap, (spots[0].place, partition))
                else:
                    heapq.heappop(heap)
                    known = self._ended[partition] and bool(heap)  # what comes next there is known to come at all
            if not heap and all(self._ended):
                break
        return taken

    async def _fill(self, want: int) -> None:
        """Read on where nothing waits: a little more than the share of each, twice as much whenever it did not do."""
        empty = [p for p, spots in enumerate(self._waiting) if not spots and not self._ended[p]]
        if not empty:
            return
        self._size = max(self._size * 2, want if len(self._waiting) == 1 else 2 * want // len(self._waiting) + 10)
        size = min(self._size, PAGE)
        for p, spots in zip(
            empty, await asyncio.gather(*(self._read(p, self._at[p], size) for p in empty)), strict=True
        ):
            self._waiting[p].extend(spots)
            self._ended[p] = len(spots) < size
            if spots:
                self._at[p] = spots[-1].place


async def seek(
    redis: Executes, index: str, place: tuple[float, bytes], last: float, count: int
) -> list[tuple[float, bytes]]:
    """The next (score, member) of an Ordered index behind `place`, with scores up to `last`."""
    found = await _seek.run(redis, [index], [repr(place[0]), place[1], repr(last), count])
    return [(float(score), member) for member, score in zip(found[::2], found[1::2], strict=True)]
