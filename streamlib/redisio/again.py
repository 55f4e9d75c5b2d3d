"""Events that come again (retries, parked, handed back, replayed): what is kept beside the event while they wait."""

from __future__ import annotations

import re

import msgspec
from msgspec import Struct

from streamlib.codec import Fields
from streamlib.errors import DecodeError


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


_ENTRY_ID = re.compile(r"\d+-\d+")
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
    except msgspec.DecodeError as error:
        raise DecodeError(f"entry {entry_id} of an again stream: {error}") from error
    if len(again.fields) % 2 or not _ENTRY_ID.fullmatch(again.entry_id):
        raise DecodeError(f"entry {entry_id} of an again stream holds no entry of a stream")
    return again
