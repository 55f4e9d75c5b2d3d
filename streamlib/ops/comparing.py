"""Compares two generations of a view row by row, while both are being fed."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from functools import partial

from msgspec import Struct

from streamlib.redisio.commits import load_both
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.indexes import ViewKeys
from streamlib.redisio.rows import RowFields

PAGE = 500
SHOWN = 5
AGAIN_S, GIVE_UP_S = 0.02, 10.0
_MASK = (1 << 64) - 1


class Difference(Struct, kw_only=True):
    """What two generations have. Checksums are over ids and stored fields of all rows, in whatever order.

    `changing` rows had other events in the one than in the other, each time they were looked at. `examples` are ids of
    rows that differ or are in one generation only.
    """

    rows_live: int = 0
    rows_new: int = 0
    checksum_live: int = 0
    checksum_new: int = 0
    differing: int = 0
    only_live: int = 0
    only_new: int = 0
    changing: int = 0
    examples: list[str] = []

    @property
    def equal(self) -> bool:
        return not (self.differing or self.only_live or self.only_new)

    def add(self, row_id: str, live: RowFields, new: RowFields) -> None:
        """Count a row; one without fields is not there."""
        if live:
            self.rows_live += 1
            self.checksum_live = self.checksum_live + _checksum(row_id, live) & _MASK
        if new:
            self.rows_new += 1
            self.checksum_new = self.checksum_new + _checksum(row_id, new) & _MASK
        if live == new:
            return
        self.only_live += not new
        self.only_new += not live
        self.differing += bool(live and new)
        if len(self.examples) < SHOWN:
            self.examples.append(row_id)


async def compare(redis: RedisDoor, live: Sequence[ViewKeys], new: Sequence[ViewKeys]) -> Difference:
    """Compare the rows of every partition. Raises what the client raises.

    Both rows and both checkpoints are read together. Rows that are alike count so; others count as different when both
    generations contain the same events, and are looked at again until they do, for ten seconds at most.
    """
    found = Difference()
    for one, other in zip(live, new, strict=True):
        await _Pair(redis, one, other, found, GIVE_UP_S / len(live)).compare()
    return found


class _Pair:
    """One partition of both generations."""

    def __init__(self, redis: RedisDoor, live: ViewKeys, new: ViewKeys, found: Difference, patience_s: float) -> None:
        self._redis = redis
        self._live = live
        self._new = new
        self._found = found
        self._patience_s = patience_s

    async def compare(self) -> None:
        unlike: list[str] = []
        after = b"-"
        while True:
            row_ids, after = await self._next_ids(after)
            if not row_ids:
                break
            unlike += await self._settle(row_ids)
        until = time.monotonic() + self._patience_s
        while unlike and time.monotonic() < until:
            await asyncio.sleep(AGAIN_S)
            unlike = [
                row_id
                for start in range(0, len(unlike), PAGE)
                for row_id in await self._settle(unlike[start : start + PAGE])
            ]
        self._found.changing += len(unlike)

    async def _next_ids(self, after: bytes) -> tuple[list[str], bytes]:
        """The next ids that either has, in order, and where to go on."""
        pages: list[list[bytes]] = []
        for keys in (self._live, self._new):
            ask = partial(self._redis.execute, "ZRANGE", keys.all_rows, after, "+", "BYLEX", "LIMIT", 0, PAGE)
            pages.append(await self._redis.persist(ask, give_up_s=self._redis.settings.retry_s))
        ends = [page[-1] for page in pages if len(page) == PAGE]
        members = sorted({member for page in pages for member in page if not ends or member <= min(ends)})[:PAGE]
        return [member.decode() for member in members], b"(" + members[-1] if members else after

    async def _settle(self, row_ids: list[str]) -> list[str]:
        """Count the rows of which it is clear whether they are alike; the others."""
        ask = partial(load_both, self._redis, self._live, self._new, row_ids)
        pairs, together = await self._redis.persist(ask, give_up_s=self._redis.settings.retry_s)
        unclear: list[str] = []
        for row_id, (live, new) in zip(row_ids, pairs, strict=True):
            if live == new or together:
                self._found.add(row_id, live, new)
            else:
                unclear.append(row_id)
        return unclear


def _checksum(row_id: str, fields: RowFields) -> int:
    digest = hashlib.blake2b(row_id.encode(), digest_size=8)
    for name in sorted(fields):
        digest.update(b"%d:%b%d:%b" % (len(name), name, len(fields[name]), fields[name]))
    return int.from_bytes(digest.digest(), "big")
