"""Delayed events: how they are packed while they wait, and the move of those that are due into the stream."""

from __future__ import annotations

import math

from msgspec import Struct

from streamlib.codec import Fields
from streamlib.errors import DecodeError, PublishError
from streamlib.keys import StreamKeys
from streamlib.redisio.scripts import Executes, Script

_promote_later = Script("promote_later")
BATCH = 100
MAX_DELAY_S = 10 * 365 * 86_400.0


class Moved(Struct, frozen=True):
    """Events moved, ms until the next is due (0: now, -1: none waits), and the ids of those that cannot be moved."""

    count: int
    next_ms: int
    refused: list[str]


def delay_ms(delay: float) -> int:
    """A delay in seconds as whole ms, rounded up; 0 for none. Raises PublishError."""
    given: object = delay
    if not isinstance(given, int | float) or isinstance(given, bool) or not 0 <= given <= MAX_DELAY_S:
        raise PublishError(f"delay={delay!r}: seconds from 0 (at once) to {MAX_DELAY_S:.0f} (ten years) are allowed")
    return math.ceil(given * 1000)


def pack(fields: Fields) -> bytes:
    """The fields as one text that the script can take apart: "<length>:<bytes>" of each name and value."""
    return b"".join([b"%d:%b" % (len(part), part) for part in fields])


def unpack(packed: bytes) -> Fields:
    """What `pack` has packed. Raises DecodeError."""
    fields: Fields = []
    at, end = 0, len(packed)
    while at < end:
        colon = packed.find(b":", at, at + 20)
        length = packed[at:colon] if colon > 0 else b""
        if not length.isdigit() or (after := colon + 1 + int(length)) > end:
            raise DecodeError(f"packed fields are damaged at byte {at} of {end}")
        fields.append(packed[colon + 1 : after])
        at = after
    return fields


async def promote_later(redis: Executes, keys: StreamKeys) -> Moved:
    """Move due events of one partition into its stream, at most BATCH. Safe to send twice."""
    count, next_ms, *refused = await _promote_later.run(redis, [keys.stream, keys.later(), keys.later_body()], [BATCH])
    return Moved(count, next_ms, [event_id.decode(errors="surrogateescape") for event_id in refused])
