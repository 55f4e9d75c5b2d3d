"""A dead letter with other data than those it died of."""

from __future__ import annotations

import msgspec

from streamlib.codec import NativeCodec
from streamlib.data import DataCodec
from streamlib.errors import PayloadTooLarge, Refused
from streamlib.message import Message
from streamlib.ops.dead_letters import Found

_envelope = NativeCodec()
_json = DataCodec("json")


def data_of(found: Found) -> str:
    """The event's data, indented to be edited; as they stand where they are no JSON. Raises Refused."""
    raw = _editable(found).data
    try:
        return msgspec.json.format(raw, indent=2).decode() + "\n"
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return raw.decode(errors="backslashreplace")


def with_data(found: Found, text: bytes, payload_bytes: int) -> Found:
    """The dead letter whose event has the data of this JSON object; numbers keep every digit.

    Raises Refused where this one cannot be edited, DecodeError, SchemaError or PayloadTooLarge where no event may have
    such data. Whether they fit the event's class is for its workers to say.
    """
    message = _editable(found)
    takes = f"{found.id} takes a JSON object"
    _json.encode_plain(_json.decode_plain(text, takes), takes)
    data = msgspec.json.format(text, indent=-1)
    if len(data) > payload_bytes:
        raise PayloadTooLarge(f"{len(data)} bytes of data are more than limits.payload_bytes = {payload_bytes}")
    message = msgspec.structs.replace(message, data=data)
    letter = msgspec.structs.replace(found.letter, fields=_envelope.write(message))
    return msgspec.structs.replace(found, letter=letter, message=message)


def _editable(found: Found) -> Message:
    message, why = found.message, found.not_replayable
    if message is None:
        why = why or "its entry is no envelope of streamlib's; `dlq show` prints its fields"
    elif not why and message.data[:1] >= b"\x80":  # no text in UTF-8 begins so
        why = "its data are msgpack, which has values that JSON has not"
    if message is None or why:
        raise Refused(f"{found.id} cannot be edited: {why}")
    return message
