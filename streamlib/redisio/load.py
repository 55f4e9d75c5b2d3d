"""A consumer as somebody writes it by hand, batch after batch: what a worker is measured against.

Per batch it claims idempotency keys under a lease, decodes, calls the handler, marks as done and acknowledges. It has
no renewal, retries, dead letters, reclaiming and metrics, and does one thing after another.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from streamlib.keys import StreamKeys
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.scripts import Script

T = TypeVar("T")

_COUNT = 500
_BLOCK_MS = 2_000
_ID, _DATA = 1, 9
"""Where the values of `id` and `data` stand in an entry."""

_claim = Script("raw_claim")
_settle = Script("raw_settle")


class RawLoop:
    """One consumer of a group that exists on the stream. Its done marks are those of a worker: `idem` keys with "d"."""

    def __init__(self, redis: RedisDoor, keys: StreamKeys, group: str, *, lease_ms: int, window_ms: int) -> None:
        self._redis = redis
        self._keys = keys
        self._group = group
        self._lease_ms = lease_ms
        self._window_ms = window_ms
        self._token = uuid.uuid4().hex

    async def run(self, decode: Callable[[bytes], T], handle: Callable[[T], Awaitable[None]]) -> None:
        """Work until cancelled. Raises what the client, `decode` and `handle` raise."""
        lane = self._redis.blocking(_BLOCK_MS)
        try:
            while True:
                reply = await lane.execute(
                    "XREADGROUP", "GROUP", self._group, "c", "COUNT", _COUNT, "BLOCK", _BLOCK_MS,
                    "STREAMS", self._keys.stream, ">",
                )  # fmt: skip
                if reply:
                    await self._batch(reply[0][1], decode, handle)
        finally:
            await lane.close()

    async def _batch(
        self, entries: list[Any], decode: Callable[[bytes], T], handle: Callable[[T], Awaitable[None]]
    ) -> None:
        keys = self._keys.idems(self._group, [fields[_ID].decode() for _, fields in entries])
        ours = await _claim.run(self._redis, keys, [self._token, self._lease_ms])
        taken = [(key, entry) for key, entry, is_ours in zip(keys, entries, ours, strict=True) if is_ours]
        for _, (_, fields) in taken:
            await handle(decode(fields[_DATA]))
        await _settle.run(
            self._redis,
            [self._keys.stream, *(key for key, _ in taken)],
            [self._group, self._token, self._window_ms, *(entry_id for _, (entry_id, _) in taken)],
        )
