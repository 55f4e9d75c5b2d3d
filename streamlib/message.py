"""The envelope: what travels in a stream around an event, and where an entry lies."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator

from msgspec import Struct, field

_MAX_SEQ = (1 << 64) - 1
_DERIVED = uuid.UUID("5b0a3c52-3d5e-5d0c-9f0e-6f0f5f2a9d11")
_ID_BYTES = 10
_IDS_AT_ONCE = 500
_VARIANT = {f"{digit:x}": f"{0b1000 | digit & 0b11:x}" for digit in range(16)}


class Position(Struct, frozen=True, order=True):
    """Where an event is stored: topic, partition number and the id of its stream entry ("ms-seq").

    The entry id is "" for a delayed event: it gets one when it enters the stream.
    """

    topic: str
    partition: int
    entry_id: str


class Message(Struct, frozen=True, kw_only=True, gc=False):
    """One event as it is stored: its names and its encoded data."""

    id: str
    type: str
    version: int = 1
    key: str = ""
    data: bytes = b""
    time_ms: int | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    traceparent: str | None = None
    headers: dict[str, str] = field(default_factory=dict)


def new_event_id() -> str:
    """A UUIDv7 (RFC 9562): sortable by creation time, so index pages stay warm."""
    return _uuid7(_now(), os.urandom(_ID_BYTES).hex())


def new_event_ids(count: int) -> Iterator[str]:
    """So many of them, for less: their random bytes come from one system call for hundreds of ids."""
    for start in range(0, count, _IDS_AT_ONCE):
        now = _now()
        digits = os.urandom(_ID_BYTES * min(count - start, _IDS_AT_ONCE)).hex()
        for at in range(0, len(digits), 2 * _ID_BYTES):
            yield _uuid7(now, digits[at : at + 2 * _ID_BYTES])


def _now() -> str:
    """Ms since 1970, as a UUIDv7 begins."""
    ms = f"{time.time_ns() // 1_000_000 & (1 << 48) - 1:012x}"
    return f"{ms[:8]}-{ms[8:]}"


def _uuid7(now: str, random: str) -> str:
    """Of 20 random hex digits 18 and a half are used."""
    return f"{now}-7{random[:3]}-{_VARIANT[random[3]]}{random[4:7]}-{random[7:19]}"


def derived_id(event_id: str, group: str, n: int = 0) -> str:
    """The id of the n-th event that a group makes of an event: whoever makes it again gives it the same."""
    return str(uuid.uuid5(_DERIVED, f"{event_id}\0{group}\0{n}"))


def entry_time_ms(entry_id: str) -> int:
    """The server's clock when the entry was added, ms since 1970."""
    return int(entry_id.partition("-")[0])


def entry_order(entry_id: str) -> tuple[int, int]:
    """Entry ids as they sort in the stream."""
    ms, _, seq = entry_id.partition("-")
    return int(ms), int(seq or 0)


def entry_before(entry_id: str) -> str:
    """The greatest id below this one: a group created there gets this entry next."""
    ms, seq = entry_order(entry_id)
    if seq:
        return f"{ms}-{seq - 1}"
    return f"{ms - 1}-{_MAX_SEQ}" if ms else "0-0"
