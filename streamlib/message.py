"""The envelope: what travels in a stream around an event, and where an entry lies."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator, Mapping

from msgspec import Struct, field

MAX_HEADERS = 32
MAX_HEADER_BYTES = 8_192
"""Of all their names and values together, as UTF-8."""
ENVELOPE_BYTES = 65_536
"""More than ids, key and headers of an event that was published take beside its data."""
_MAX_SEQ = (1 << 64) - 1
_DERIVED = uuid.UUID("5b0a3c52-3d5e-5d0c-9f0e-6f0f5f2a9d11")
_ID_BYTES = 10
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


def header_bytes(headers: Mapping[str, str]) -> int:
    """Bytes of names and values together; what is no Unicode counts as if it were."""
    return sum(len(part.encode("utf-8", "surrogatepass")) for pair in headers.items() for part in pair)


def event_ids(at_once: int = 500) -> Iterator[str]:
    """UUIDv7s (RFC 9562) without end: sortable by creation time, so index pages stay warm.

    For one thread of one process, as a forked child would go on with the same ones: their random bytes come from the
    system for `at_once` ids together.
    """
    last_ms, head = -1, ""
    while True:
        digits = os.urandom(_ID_BYTES * at_once).hex()
        for at in range(0, len(digits), 2 * _ID_BYTES):
            ms = time.time_ns() // 1_000_000
            if ms != last_ms:
                text = f"{ms & (1 << 48) - 1:012x}"
                last_ms, head = ms, f"{text[:8]}-{text[8:]}-7"
            variant = _VARIANT[digits[at]]
            yield f"{head}{digits[at + 1 : at + 4]}-{variant}{digits[at + 4 : at + 7]}-{digits[at + 7 : at + 19]}"


def new_event_id() -> str:
    """One of `event_ids`, in any thread or process."""
    return next(event_ids(at_once=1))


def new_event_ids(count: int) -> list[str]:
    """Such ids for events that are stored together, in any thread or process: one of them, from which they count on."""
    ms, digits = time.time_ns() // 1_000_000, os.urandom(_ID_BYTES).hex()
    text = f"{ms & (1 << 48) - 1:012x}"
    front = f"{text[:8]}-{text[8:]}-7{digits[1:4]}-{_VARIANT[digits[0]]}{digits[4:7]}-"
    first = int(digits[8:], 16) >> 1  # the bit that is lost leaves room to count
    return [f"{front}{number:012x}" for number in range(first, first + count)]


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
