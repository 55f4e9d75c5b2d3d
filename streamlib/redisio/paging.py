"""Answers one question to a view page by page: walks its index, reads the rows, keeps those that fit."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic

from msgspec import Struct

from streamlib.errors import SchemaError
from streamlib.read_model import MAX_LIMIT, Page
from streamlib.redisio.cursors import Question, write_cursor
from streamlib.redisio.index_walk import PAGE, Place, Read, Spot, Walk
from streamlib.redisio.rows import Row

Found = tuple[str, Row]
"""Row id and row."""

LAST_MEMBER = b"\xff"
"""Stands behind every row id: no UTF-8 text has this byte."""

Load = Callable[[int, Sequence[str]], Awaitable[list[Found[Row]]]]
"""(partition, row ids) -> the rows that exist."""


class Query(Struct, frozen=True, kw_only=True, eq=False):
    """How to answer a question: which index to read from where, and what to do with the rows that it names.

    `place` says where the index has a row as it is now, None when the row does not fit the question. `order` is what
    answers are sorted by, `mark` how a cursor names it; rows up to `behind` were in earlier pages. `whole_runs`: rows
    of one score stand in the index in another order than in the answer, so they are read together.
    """

    question: Question
    read: Read
    start: Place | None
    place: Callable[[str, Any], Place | None]
    order: Callable[[str, Any], Any]
    mark: Callable[[str, Any], Sequence[str]]
    behind: Any = None
    whole_runs: bool = False


def check_limit(question: Question, limit: Any) -> int:
    """Raises SchemaError for a limit that no page can have."""
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= MAX_LIMIT:
        raise SchemaError(f"limit={limit!r} of {question}: a page has 1 to {MAX_LIMIT:,} rows; go on with after=")
    return limit


class Pager(Generic[Row]):
    """One page of one question."""

    def __init__(self, query: Query, partitions: int, limit: int, load: Load[Row]) -> None:
        self._query = query
        self._limit = limit
        self._load = load
        self._walk = Walk(query.read, partitions, query.start)
        self._reached = query.start
        self._found: dict[str, Row] = {}

    async def page(self) -> Page[Row]:
        """At most `limit` rows; one more is looked for, so that a cursor means that there was one."""
        want = self._limit + 1
        while len(self._found) <= self._limit and await self._go_on(want):
            want = min(want * 2, PAGE)
        rows = list(self._found.items())[: self._limit]
        cursor = None
        if len(self._found) > self._limit:
            cursor = write_cursor(self._query.question, self._query.mark(*rows[-1]))
        return Page((row for _, row in rows), cursor)

    async def _go_on(self, want: int) -> bool:
        """Add the rows of the next stretch of the index, in order; False at its end."""
        spots = await self._walk.next(want)
        if not spots:
            return False
        end = spots[-1].place
        if not self._query.whole_runs:
            rows = await self._rows(spots, end)
        else:
            end = (end[0], LAST_MEMBER)
            rows, missing = await self._rows(spots, end), self._limit + 1 - len(self._found)
            while spots := await self._walk.next(PAGE, end):
                rows |= await self._rows(spots, end)
                rows = dict(heapq.nsmallest(missing, rows.items(), key=self._order))
        self._found |= sorted(rows.items(), key=self._order)
        self._reached = end
        return True

    async def _rows(self, spots: Sequence[Spot], end: Place) -> dict[str, Row]:
        """The rows of these entries that fit, and whose place lies in this stretch now that they are read.

        A row that moved ahead of it comes with its new place; one that moved back would break the order.
        """
        by_partition: dict[int, list[str]] = {}
        for spot in spots:
            by_partition.setdefault(spot.partition, []).append(spot.row_id)
        loaded = await asyncio.gather(*(self._load(p, row_ids) for p, row_ids in by_partition.items()))
        return dict(found for part in loaded for found in part if self._is_here(found, end))

    def _is_here(self, found: Found[Row], end: Place) -> bool:
        place = self._query.place(*found)
        if found[0] in self._found:  # it moved while we read, and comes once in a page
            return False
        if place is None or place > end or (self._reached is not None and place <= self._reached):
            return False
        return self._query.behind is None or bool(self._query.behind < self._order(found))

    def _order(self, found: Found[Row]) -> Any:
        return self._query.order(*found)
