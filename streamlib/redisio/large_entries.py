"""Reads entries piece by piece where the server cannot send them at once (client-output-buffer-limit)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from streamlib.codec import Fields
from streamlib.errors import DecodeError
from streamlib.message import ENVELOPE_BYTES
from streamlib.redisio.failures import CLIENT_ERRORS, ErrorClass, classify
from streamlib.redisio.scripts import Executes, Script

_read_within = Script("read_within", reads_only=True)
_stream_facts = Script("stream_facts", reads_only=True)
_CUT = b"dl-cut"
_FIRST_BYTES, _MOST_BYTES = 1 << 20, 1 << 26
_GROW_AFTER = 8
"""Reads that came before the next ones may bring twice as much."""
_TRIES = 2

Entry = tuple[bytes, Fields]


class Room:
    """How many bytes the next read may bring, learned from reads that failed; `bounded` once one did.

    `cut_above`: an entry of more bytes whose reply is lost twice, while small ones arrive, is given up: what comes then
    is its beginning. No event published within `payload_bytes` is as large in our own layout. 0 gives none up.
    """

    def __init__(self, payload_bytes: int = 0) -> None:
        self.cut_above = payload_bytes + ENVELOPE_BYTES if payload_bytes else 0
        self._bytes = 0
        self._came = 0

    @property
    def bounded(self) -> bool:
        return self._bytes > 0

    @property
    def least(self) -> bool:
        """Whether it cannot become smaller: entries come one by one."""
        return self._bytes == 1

    def failed(self, error: Exception) -> None:
        """A read failed: if its reply was lost, it may have been too large."""
        if classify(error) is ErrorClass.NETWORK:
            self._bytes, self._came = max(self._bytes // 4, 1) if self._bytes else _FIRST_BYTES, 0

    def came(self) -> None:
        """A read within the bound came."""
        self._came += 1
        if self._came == _GROW_AFTER:
            self._bytes, self._came = self._bytes * 2 if self._bytes < _MOST_BYTES else 0, 0

    async def entries_of(self, redis: Executes, stream: str, ids: Sequence[bytes]) -> list[Entry]:
        """The first ones of these entries, as many as there is room for, without those that do not exist.

        Raises what the client raises; the next call asks for less then.
        """
        return await self._read(redis, stream, "of", *ids)

    async def entries_after(self, redis: Executes, stream: str, after: str, count: int) -> list[Entry]:
        """The entries behind `after`, at most `count`, as many as there is room for. Raises as `entries_of`."""
        return await self._read(redis, stream, "after", after, count)

    async def _read(self, redis: Executes, stream: str, *what: Any) -> list[Entry]:
        try:
            entries = await _read_within.run(redis, [stream], [self._bytes or _MOST_BYTES, self.cut_above, *what])
            found = []
            for entry_id, fields in entries:
                whole = await self._whole(redis, stream, entry_id, fields) if is_cut(fields) else fields
                if whole:
                    found.append((entry_id, whole))
        except CLIENT_ERRORS as error:
            self.failed(error)
            raise
        self.came()
        return found

    async def _whole(self, redis: Executes, stream: str, entry_id: bytes, beginning: Fields) -> Fields:
        """A large entry's fields, or their beginning where only that arrives; none where it is gone."""
        for _ in range(_TRIES):
            try:
                entries: list[Entry] = await redis.execute("XRANGE", stream, entry_id, entry_id)
                return entries[0][1] if entries else []
            except CLIENT_ERRORS as error:
                if classify(error) is not ErrorClass.NETWORK:
                    raise
            await _read_within.run(redis, [stream], [1, self.cut_above, "of", entry_id])  # is it the network?
        return beginning


async def stream_facts(redis: Executes, stream: str) -> dict[bytes, Any]:
    """What XINFO STREAM tells of a stream that exists; its first and last entries may come without their fields.

    Raises what the client raises.
    """
    try:
        flat: list[Any] = await redis.execute("XINFO", "STREAM", stream)
    except CLIENT_ERRORS as error:
        if classify(error) is not ErrorClass.NETWORK:
            raise
        flat = await _stream_facts.run(redis, [stream], [])
    return dict(zip(flat[::2], flat[1::2], strict=True))


async def id_after(redis: Executes, stream: str, after: str) -> bytes | None:
    """The id of the first entry behind `after`, None at the end. Raises what the client raises."""
    try:
        entries: list[Entry] = await redis.execute("XRANGE", stream, f"({after}", "+", "COUNT", 1)
    except CLIENT_ERRORS as error:
        if classify(error) is not ErrorClass.NETWORK:
            raise
        entries = await _read_within.run(redis, [stream], [1, 1, "after", after, 1])
    return entries[0][0] if entries else None


def is_cut(fields: Fields) -> bool:
    """Whether these are only the beginning of an entry."""
    return bool(fields) and fields[0] == _CUT


def check_whole(entry_id: str, fields: Fields) -> None:
    """Raise DecodeError for what is only the beginning of an entry: nobody shall take that for an event."""
    if is_cut(fields):
        size, _, most = fields[1].decode("utf-8", "replace").partition(" ") if len(fields) > 1 else ("", "", "")
        raise DecodeError(
            f"entry {entry_id} has {size} bytes, more than the {most} that limits.payload_bytes leaves room for, and "
            "the server cannot send it (client-output-buffer-limit); only its beginning was read, it lies in its stream"
        )
