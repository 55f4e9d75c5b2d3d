"""Events that come again (retries, parked, handed back, replayed): what is kept beside the event while they wait."""

from __future__ import annotations

import re

import msgspec
from msgspec import Struct

from streamlib.codec import Fields
from streamlib.errors import DecodeError
from streamlib.keys import MAX_ID_BYTES


class Again(Struct, frozen=True, array_like=True):
    """The opaque blob of `{S}:retrybody` and of the entries of `{S}:again`.

    `entry_id` is the event's first entry in S, `attempts` the runs already spent, `parked_ms` when it was first parked
    (ms since 1970, 0 if it never was), `why` one of retry, parked, returned, replayed; `fields` the entry's own fields,
    untouched; `replays` how often it came back from the dead letters.
    """

    entry_id: str
    attempts: int
    parked_ms: int
    why: str
    fields: list[bytes]
    replays: int = 0


_ENTRY_ID = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")
_MAX_NUMBER = 2**53
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Again)


def pack(again: Again) -> bytes:
    return _encoder.encode(again)


def unpack(entry_id: str, fields: Fields) -> Again:
    """The blob of an entry of `{S}:again`, whose fields are `id <event id> body <blob>`. Raises DecodeError."""
    if len(fields) != 4 or fields[0] != b"id" or fields[2] != b"body":
        raise DecodeError(f"entry {entry_id} of an again stream was not written by streamlib")
    try:
        again = _decoder.decode(fields[3])
        fields[1].decode()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError(f"entry {entry_id} of an again stream: {error}") from error
    if not 0 < len(fields[1]) <= MAX_ID_BYTES or b"\x00" in fields[1]:
        raise DecodeError(f"entry {entry_id} of an again stream: an event id is 1 to {MAX_ID_BYTES} bytes without NUL")
    is_entry = len(again.fields) % 2 == 0 and _ENTRY_ID.fullmatch(again.entry_id)
    numbers = again.attempts, again.parked_ms, again.replays
    if not is_entry or min(numbers) < 0 or max(numbers) > _MAX_NUMBER:
        raise DecodeError(f"entry {entry_id} of an again stream holds no entry of a stream")
    return again
