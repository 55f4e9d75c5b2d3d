"""Questions to a view: rows by id, by value, by range and by prefix, over all partitions."""

from __future__ import annotations

import asyncio
import heapq
import math
import time
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Generic, TypeVar

from streamlib.errors import SchemaError
from streamlib.keys import Keys
from streamlib.read_model import Exact, Ordered, Prefix
from streamlib.redisio.commits import INEXACT, load
from streamlib.redisio.connection import CLIENT_ERRORS, RedisDoor, translate
from streamlib.redisio.indexes import (
    Indexes,
    ViewKeys,
    exact_text,
    order_key,
    prefix_text,
    score,
    unknown_index,
)
from streamlib.redisio.rows import Row, RowCodec, check_row_id
from streamlib.redisio.view_state import live_generation, view_head

T = TypeVar("T")

PAGE = 500
_GENERATION_S = 1.0

Found = tuple[str, Row]
"""Row id and row."""


def partition_of(row_id: str, partitions: int) -> int:
    """Where a row lives: with the events of its key."""
    return zlib.crc32(row_id.encode()) % partitions if partitions > 1 else 0


class ViewReader(Generic[Row]):
    """Reads the live generation of one view. A switch to another generation is seen within a second.

    Every method raises RedisUnavailable after `redis.retry_s` without an answer, and SchemaError for a
    question that no index answers, a value that the field cannot hold, or a stored row that does not fit.
    """

    def __init__(
        self,
        redis: Callable[[], RedisDoor],
        keys: Callable[[], Keys],
        topic: str,
        partitions: int,
        view: str,
        codec: RowCodec[Row],
        indexes: Indexes,
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._topic = topic
        self._partitions = partitions
        self._view = view
        self._codec = codec
        self._indexes = indexes
        self._generation = (0, -math.inf)

    async def many(self, row_ids: Sequence[str]) -> list[Row | None]:
        """The rows of these ids in the same order, None where there is none."""
        row_ids = [check_row_id(row_id, "row id") for row_id in row_ids]
        by_partition: dict[int, list[str]] = {}
        for row_id in dict.fromkeys(row_ids):
            by_partition.setdefault(partition_of(row_id, self._partitions), []).append(row_id)
        parts = await self._partition_keys()
        loaded = await asyncio.gather(*(self._load(parts[p], ids) for p, ids in by_partition.items()))
        rows = {row_id: row for part in loaded for row_id, row in part}
        return [rows.get(row_id) for row_id in row_ids]

    async def find(self, **exact: Any) -> list[Row]:
        """All rows whose fields have these values, ordered by row id."""
        wanted = self._wanted(exact)
        parts = await asyncio.gather(*(self._find_in(keys, wanted) for keys in await self._partition_keys()))
        return [row for _, row in sorted((found for part in parts for found in part), key=lambda f: _bytes(f[0]))]

    async def count(self, **exact: Any) -> int:
        """How many rows have these values; without any, how many there are."""
        if exact:
            wanted = self._wanted(exact)
            counts = [
                self._ask("ZINTERCARD", len(wanted), *(keys.exact(f, exact_text(v)) for f, v in wanted.items()))
                for keys in await self._partition_keys()
            ]
        else:
            counts = [self._ask("HGET", keys.head, "rows") for keys in await self._partition_keys()]
        return sum(int(found or 0) for found in await asyncio.gather(*counts))

    async def between(self, field: str, low: Any, high: Any, *, limit: int = 100) -> list[Row]:
        """Rows with low <= value <= high (None leaves that end open), ordered by value, then row id."""
        if field not in self._indexes.ordered:
            raise unknown_index(field, Ordered, self._indexes.ordered)
        codec = self._codec.fields[field]
        bounds = tuple(None if end is None else order_key(codec.canonical(end)) for end in (low, high))
        parts = [_take(self._between_in(keys, field, bounds, limit), limit) for keys in await self._partition_keys()]
        found = [one for part in await asyncio.gather(*parts) for one in part]
        return [row for _, row in self._in_order(field, found)[:limit]]

    async def prefix(self, field: str, text: str, *, limit: int = 100) -> list[Row]:
        """Rows whose text starts with `text`, ordered by the case-folded text, then row id."""
        if field not in self._indexes.prefix:
            raise unknown_index(field, Prefix, self._indexes.prefix)
        start = prefix_text(self._codec.fields[field].canonical(text))
        parts = [
            _take(self._prefix_in(keys, field, start, _page_size(limit)), limit)
            for keys in await self._partition_keys()
        ]
        found = [one for part in await asyncio.gather(*parts) for one in part]
        found.sort(key=lambda one: (_bytes(prefix_text(getattr(one[1], field))), _bytes(one[0])))
        return [row for _, row in found[:limit]]

    async def checkpoint(self, partition: int) -> str:
        """The last entry of a partition that the view contains, "0-0" before the first."""
        keys = (await self._partition_keys())[partition]
        head = await self._persist(lambda: view_head(self._redis(), keys))
        return head.checkpoint

    async def _partition_keys(self) -> list[ViewKeys]:
        generation, seen_at = self._generation
        if time.monotonic() - seen_at > _GENERATION_S:
            redis = self._redis()
            generation = await self._persist(lambda: live_generation(redis, self._keys(), self._topic, self._view))
            self._generation = generation, time.monotonic()
        return [
            ViewKeys(self._keys().stream(self._topic, p, self._partitions), self._view, generation)
            for p in range(self._partitions)
        ]

    def _wanted(self, exact: dict[str, Any]) -> dict[str, Any]:
        for field in exact:
            if field not in self._indexes.exact:
                raise unknown_index(field, Exact, self._indexes.exact)
        if not exact:
            raise SchemaError(f"find rows by what value? Fields with an Exact index: {', '.join(self._indexes.exact)}")
        return {field: self._codec.fields[field].canonical(value) for field, value in exact.items()}

    async def _find_in(self, keys: ViewKeys, wanted: dict[str, Any]) -> list[Found[Row]]:
        """Walk the smallest of the indexes and check every value in the row itself."""
        names = [keys.exact(field, exact_text(value)) for field, value in wanted.items()]
        sizes = await asyncio.gather(*(self._ask("ZCARD", name) for name in names))
        name = min(zip(sizes, names, strict=True))[1]
        found: list[Found[Row]] = []
        async for page in self._lex_pages(name, b"-", b"+"):
            rows = await self._load(keys, [member.decode() for member in page])
            found += (one for one in rows if all(_equal(getattr(one[1], f), v) for f, v in wanted.items()))
        return found

    async def _between_in(
        self, keys: ViewKeys, field: str, bounds: tuple[Any, ...], limit: int
    ) -> AsyncGenerator[Found[Row], None]:
        """One partition's rows in order: scores that may stand for several values are sorted by value."""
        name, (low, high), size = keys.sorted_by(field), bounds, _page_size(limit)
        first = "-inf" if low is None else repr(math.nextafter(score(low), -math.inf))
        last = "+inf" if high is None else repr(math.nextafter(score(high), math.inf))
        while page := await self._ask("ZRANGE", name, first, last, "BYSCORE", "LIMIT", 0, size, "WITHSCORES"):
            scores = [float(raw) for raw in page[1::2]]
            members = [raw.decode() for raw in page[::2]]
            full = len(members) == size
            done = sum(1 for one in scores if one < scores[-1]) if full else len(members)
            rows = self._inside(field, bounds, await self._load(keys, members[:done]))
            for found in self._in_order(field, rows):
                yield found
            if not full:
                return
            async for found in self._run_of_one_score(keys, field, scores[-1], bounds, limit):
                yield found
            first = f"({scores[-1]!r}"

    async def _run_of_one_score(
        self, keys: ViewKeys, field: str, at: float, bounds: tuple[Any, ...], limit: int
    ) -> AsyncGenerator[Found[Row], None]:
        """Rows with one score; where it may stand for several values, all are read to find the first."""
        final = not await self._ask("HEXISTS", keys.head, f"{INEXACT}{field}")
        best: list[Found[Row]] = []
        size = _page_size(limit) if final else PAGE
        offset, name = 0, keys.sorted_by(field)
        while True:
            raw = await self._ask("ZRANGE", name, repr(at), repr(at), "BYSCORE", "LIMIT", offset, size)
            loaded = await self._load(keys, [member.decode() for member in raw])
            rows = list(self._inside(field, bounds, loaded))
            if final:
                for found in rows:
                    yield found
            else:
                best = heapq.nsmallest(limit, [*best, *rows], key=self._place(field))
            if len(raw) < size:
                break
            offset += size
        for found in best:
            yield found

    async def _prefix_in(self, keys: ViewKeys, field: str, start: str, size: int) -> AsyncGenerator[Found[Row], None]:
        first, last = b"[" + start.encode(), b"(" + start.encode() + b"\xff"
        async for page in self._lex_pages(keys.sorted_by(field), first, last, size):
            row_ids = [member.rpartition(b"\x00")[2].decode() for member in page]
            for found in await self._load(keys, row_ids):
                value = getattr(found[1], field)
                if value is not None and prefix_text(value).startswith(start):
                    yield found

    async def _lex_pages(
        self, name: str, first: bytes, last: bytes, size: int = PAGE
    ) -> AsyncGenerator[list[bytes], None]:
        while page := await self._ask("ZRANGE", name, first, last, "BYLEX", "LIMIT", 0, size):
            yield page
            if len(page) < size:
                return
            first = b"(" + page[-1]

    async def _load(self, keys: ViewKeys, row_ids: Sequence[str]) -> list[Found[Row]]:
        """The rows that exist, in the order of `row_ids`."""
        rows: list[Found[Row]] = []
        for start in range(0, len(row_ids), PAGE):
            ask = partial(load, self._redis(), keys, "", (), row_ids[start : start + PAGE])
            loaded = await self._persist(ask)
            for row_id, fields in loaded.rows.items():
                if isinstance(fields, str):
                    raise SchemaError(f"row {keys.row(row_id)} is a {fields}, not a hash; rebuild the view")
                if fields:
                    rows.append((row_id, self._codec.decode(fields, f"row {keys.row(row_id)}")))
        return rows

    def _inside(self, field: str, bounds: tuple[Any, ...], rows: Iterable[Found[Row]]) -> Iterable[Found[Row]]:
        low, high = bounds
        for found in rows:
            value = order_key(getattr(found[1], field))
            if value is not None and (low is None or low <= value) and (high is None or value <= high):
                yield found

    def _place(self, field: str) -> Callable[[Found[Row]], Any]:
        return lambda found: (order_key(getattr(found[1], field)), _bytes(found[0]))

    def _in_order(self, field: str, rows: Iterable[Found[Row]]) -> list[Found[Row]]:
        return sorted(rows, key=self._place(field))

    async def _ask(self, *command: Any) -> Any:
        return await self._persist(lambda: self._redis().execute(*command))

    async def _persist(self, operation: Callable[[], Awaitable[T]]) -> T:
        redis = self._redis()
        try:
            return await redis.persist(operation, give_up_s=redis.settings.retry_s)
        except CLIENT_ERRORS as error:
            raise translate(error, redis.settings.url) from error


async def _take(found: AsyncGenerator[Found[Row], None], limit: int) -> list[Found[Row]]:
    taken: dict[str, Found[Row]] = {}
    async with aclosing(found):
        async for one in found:
            if len(taken) >= limit:
                break
            taken.setdefault(one[0], one)  # a row may move while we page
    return list(taken.values())


def _page_size(limit: int) -> int:
    return max(2, min(PAGE, limit + 1))


def _equal(value: Any, wanted: Any) -> bool:
    return exact_text(value) == exact_text(wanted)


def _bytes(text: str) -> bytes:
    return text.encode()
