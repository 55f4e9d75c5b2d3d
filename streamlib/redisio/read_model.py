"""Questions to a view: rows by id, by value, by range and by prefix, over all partitions."""

from __future__ import annotations

import asyncio
import math
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Generic

from streamlib.errors import SchemaError
from streamlib.keys import Keys
from streamlib.read_model import Exact, Ordered, Page, Prefix
from streamlib.redisio.commits import INEXACT, load
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.cursors import Question, malformed, read_cursor
from streamlib.redisio.index_walk import PAGE, Place, Read, Spot, seek
from streamlib.redisio.indexes import (
    Indexes,
    ViewKeys,
    exact_text,
    order_key,
    prefix_member,
    prefix_text,
    score,
    unknown_index,
)
from streamlib.redisio.live_view import LiveView
from streamlib.redisio.paging import LAST_MEMBER, Found, Pager, Query, check_limit
from streamlib.redisio.rows import FieldCodec, Row, RowCodec, check_row_id
from streamlib.redisio.view_state import view_head


def partition_of(row_id: str, partitions: int) -> int:
    """Where a row lives: with the events of its key."""
    return zlib.crc32(row_id.encode()) % partitions if partitions > 1 else 0


class ViewReader(Generic[Row]):
    """Reads the live generation of one view. A switch to another generation is followed within a second or so.

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
        self._topic = topic
        self._partitions = partitions
        self._view = view
        self._codec = codec
        self._indexes = indexes
        self._live = LiveView(redis, keys, topic, partitions, view)

    async def many(self, row_ids: Sequence[str]) -> list[Row | None]:
        """The rows of these ids in the same order, None where there is none."""
        row_ids = [check_row_id(row_id, "row id") for row_id in row_ids]
        by_partition: dict[int, list[str]] = {}
        for row_id in dict.fromkeys(row_ids):
            by_partition.setdefault(partition_of(row_id, self._partitions), []).append(row_id)
        async with self._live.reading() as parts:
            loaded = await asyncio.gather(*(self._load(parts[p], ids) for p, ids in by_partition.items()))
        rows = {row_id: row for part in loaded for row_id, row in part}
        return [rows.get(row_id) for row_id in row_ids]

    async def rows(self, limit: int, after: str | None) -> Page[Row]:
        """All rows, ordered by row id."""
        question = self._question("rows")
        async with self._live.reading() as parts:
            return await self._by_row_id(question, parts, [keys.all_rows for keys in parts], {}, limit, after)

    async def find(self, exact: dict[str, Any], limit: int, after: str | None) -> Page[Row]:
        """Rows whose fields have these values, ordered by row id."""
        wanted = self._wanted(exact)
        question = self._question("find", *(part for f in sorted(wanted) for part in (f, exact_text(wanted[f]))))
        async with self._live.reading() as parts:
            names = await asyncio.gather(*(self._smallest(keys, wanted) for keys in parts))
            return await self._by_row_id(question, parts, names, wanted, limit, after)

    async def count(self, **exact: Any) -> int:
        """How many rows have these values; without any, how many there are."""
        wanted = self._wanted(exact) if exact else {}
        async with self._live.reading() as parts:
            counts = [
                self._ask("ZINTERCARD", len(wanted), *(keys.exact(f, exact_text(v)) for f, v in wanted.items()))
                if wanted
                else self._ask("HGET", keys.head, "rows")
                for keys in parts
            ]
            return sum(int(found or 0) for found in await asyncio.gather(*counts))

    async def between(self, field: str, low: Any, high: Any, limit: int, after: str | None) -> Page[Row]:
        """Rows with low <= value <= high (None leaves that end open), ordered by value, then row id."""
        if field not in self._indexes.ordered:
            raise unknown_index(field, Ordered, self._indexes.ordered)
        codec = self._codec.fields[field]
        low, high = (None if end is None else order_key(codec.canonical(end)) for end in (low, high))
        question = self._question("between", field, exact_text(low), exact_text(high))
        async with self._live.reading() as parts:
            mixed = await asyncio.gather(*(self._ask("HEXISTS", keys.head, f"{INEXACT}{field}") for keys in parts))
            query = self._between(question, parts, field, (low, high), after, whole_runs=any(mixed))
            return await self._page(query, parts, limit)

    async def prefix(self, field: str, text: str, limit: int, after: str | None) -> Page[Row]:
        """Rows whose text starts with `text`, ordered by the case-folded text, then row id."""
        if field not in self._indexes.prefix:
            raise unknown_index(field, Prefix, self._indexes.prefix)
        begin = prefix_text(self._codec.fields[field].canonical(text))
        question = self._question("prefix", field, begin)

        def place(row_id: str, row: Row) -> Place | None:
            value = getattr(row, field)
            return None if value is None or not prefix_text(value).startswith(begin) else prefix_member(value, row_id)

        async with self._live.reading() as parts:
            query = Query(
                question=question,
                read=self._member_reader([keys.sorted_by(field) for keys in parts], begin.encode()),
                start=_member_place(question, after),
                place=place,
                order=lambda row_id, row: prefix_member(getattr(row, field), row_id),
                mark=lambda row_id, row: (prefix_member(getattr(row, field), row_id).decode(),),
            )
            return await self._page(query, parts, limit)

    async def checkpoint(self, partition: int) -> str:
        """The last entry of a partition that the view contains, "0-0" before the first."""
        async with self._live.reading() as parts:
            head = await self._live.persist(lambda: view_head(self._redis(), parts[partition]))
        return head.checkpoint

    def _between(
        self,
        question: Question,
        parts: Sequence[ViewKeys],
        field: str,
        ends: tuple[Any, Any],
        after: str | None,
        *,
        whole_runs: bool,
    ) -> Query:
        """How to walk an Ordered index between two values. Raises SchemaError for a cursor of another question."""
        low, high = ends
        codec = self._codec.fields[field]
        start = (-math.inf if low is None else math.nextafter(score(low), -math.inf), b"")
        behind = None
        if after is not None:
            value, row_id = _value_place(question, codec, read_cursor(question, after))
            behind = (order_key(value), row_id)
            start = max(start, (score(value), b"" if whole_runs else row_id))

        def place(row_id: str, row: Row) -> Place | None:
            value = order_key(getattr(row, field))
            outside = value is None or (low is not None and value < low) or (high is not None and value > high)
            return None if outside else (score(value), row_id.encode())

        return Query(
            question=question,
            read=self._score_reader(parts, field, math.inf if high is None else math.nextafter(score(high), math.inf)),
            start=start,
            behind=behind,
            place=place,
            order=lambda row_id, row: (order_key(getattr(row, field)), row_id.encode()),
            mark=lambda row_id, row: (codec.encode(getattr(row, field)).decode(), row_id),
            whole_runs=whole_runs,
        )

    def _wanted(self, exact: dict[str, Any]) -> dict[str, Any]:
        for field in exact:
            if field not in self._indexes.exact:
                raise unknown_index(field, Exact, self._indexes.exact)
        if not exact:
            raise SchemaError(f"find rows by what value? Fields with an Exact index: {', '.join(self._indexes.exact)}")
        return {field: self._codec.fields[field].canonical(value) for field, value in exact.items()}

    async def _smallest(self, keys: ViewKeys, wanted: dict[str, Any]) -> str:
        """The index with the fewest rows of those that hold all that are wanted."""
        names = [keys.exact(field, exact_text(value)) for field, value in wanted.items()]
        if len(names) == 1:
            return names[0]
        sizes = await asyncio.gather(*(self._ask("ZCARD", name) for name in names))
        return min(zip(sizes, names, strict=True))[1]

    async def _by_row_id(
        self,
        question: Question,
        parts: Sequence[ViewKeys],
        names: Sequence[str],
        wanted: dict[str, Any],
        limit: int,
        after: str | None,
    ) -> Page[Row]:
        """The rows in these indexes (one a partition) that have the wanted values, in the order of their ids."""
        texts = {field: exact_text(value) for field, value in wanted.items()}

        def place(row_id: str, row: Row) -> Place | None:
            return row_id.encode() if all(exact_text(getattr(row, f)) == text for f, text in texts.items()) else None

        query = Query(
            question=question,
            read=self._member_reader(names, b""),
            start=_member_place(question, after),
            place=place,
            order=lambda row_id, row: row_id.encode(),
            mark=lambda row_id, row: (row_id,),
        )
        return await self._page(query, parts, limit)

    def _member_reader(self, names: Sequence[str], begin: bytes) -> Read:
        """Reads indexes whose members begin so and end with the row id."""
        last = b"(" + begin + LAST_MEMBER if begin else b"+"

        async def read(partition: int, place: Place | None, count: int) -> list[Spot]:
            first = b"[" + begin if place is None else b"(" + place
            ask = ("ZRANGE", names[partition], first if begin or place else b"-", last, "BYLEX", "LIMIT", 0, count)
            members = await self._ask(*ask)
            return [Spot(member, member.rpartition(b"\x00")[2].decode(), partition) for member in members]

        return read

    def _score_reader(self, parts: Sequence[ViewKeys], field: str, last: float) -> Read:
        async def read(partition: int, place: Place | None, count: int) -> list[Spot]:
            name, behind = parts[partition].sorted_by(field), place or (-math.inf, b"")
            found = await self._live.persist(lambda: seek(self._redis(), name, behind, last, count))
            return [Spot((at, member), member.decode(), partition) for at, member in found]

        return read

    async def _page(self, query: Query, parts: Sequence[ViewKeys], limit: int) -> Page[Row]:
        async def load(partition: int, row_ids: Sequence[str]) -> list[Found[Row]]:
            return await self._load(parts[partition], row_ids)

        return await Pager(query, len(parts), check_limit(query.question, limit), load).page()

    def _question(self, verb: str, *values: str) -> Question:
        return Question(self._topic, self._view, verb, values)

    async def _load(self, keys: ViewKeys, row_ids: Sequence[str]) -> list[Found[Row]]:
        """The rows that exist, in the order of `row_ids`."""
        rows: list[Found[Row]] = []
        for start in range(0, len(row_ids), PAGE):
            ask = partial(load, self._redis(), keys, "", (), row_ids[start : start + PAGE])
            loaded = await self._live.persist(ask)
            for row_id, fields in loaded.rows.items():
                if isinstance(fields, str):
                    raise SchemaError(f"row {keys.row(row_id)} is a {fields}, not a hash; rebuild the view")
                if fields:
                    rows.append((row_id, self._codec.decode(fields, f"row {keys.row(row_id)}")))
        return rows

    async def _ask(self, *command: Any) -> Any:
        return await self._live.persist(lambda: self._redis().execute(*command))


def _member_place(question: Question, after: str | None) -> bytes | None:
    if after is None:
        return None
    place = read_cursor(question, after)
    if len(place) != 1:
        raise malformed(question)
    return place[0].encode()


def _value_place(question: Question, codec: FieldCodec, place: Sequence[str]) -> tuple[Any, bytes]:
    """Value and row id of a cursor between values."""
    try:
        raw, row_id = place
        value = codec.canonical(codec.decode(raw.encode()))
    except (ValueError, SchemaError, RecursionError) as error:
        raise malformed(question) from error
    if value is None:
        raise malformed(question)
    return value, row_id.encode()
