"""What a group still owes and its dead letters as JSON lines, for a file that outlives the group."""

from __future__ import annotations

import base64
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import msgspec

from streamlib.codec import Fields, NativeCodec
from streamlib.errors import DecodeError, Refused, StreamlibError
from streamlib.message import Message
from streamlib.ops.dead_letters import Found, read_letter
from streamlib.ops.places import Place
from streamlib.redisio import dead_letters as stored
from streamlib.redisio import owed
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.owed import Owed

_codec = NativeCodec()
_FAILING = "cannot write the archive {path}: {error}; nothing was deleted"


class ArchiveFile:
    """A new file for the lines. Leaving the block brings it safely to the disk; after an error, or without lines, there
    is no file.

    Raises Refused when it exists, StreamlibError when it cannot be written.
    """

    def __init__(self, path: Path, *, failing: str = _FAILING) -> None:
        self.lines = 0
        self._path = path
        self._failing = failing
        self._file: BinaryIO

    def __enter__(self) -> Self:
        try:
            self._file = self._path.open("xb")
        except FileExistsError as error:
            raise Refused(
                f"{self._path} exists, and may hold what an earlier run has written; name another file"
            ) from error
        except OSError as error:
            raise self._failed(error) from error
        return self

    def write(self, line: bytes) -> None:
        try:
            self._file.write(line)
        except OSError as error:
            raise self._failed(error) from error
        self.lines += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None or not self.lines:
            self._discard()
            return
        try:
            self._keep()
        except OSError as failure:
            self._discard()
            raise self._failed(failure) from failure

    def _keep(self) -> None:
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())
        directory = os.open(self._path.parent, os.O_RDONLY)
        try:  # the name of a new file is safe when its directory is
            os.fsync(directory)
        finally:
            os.close(directory)

    def _discard(self) -> None:
        self._path.unlink()
        with contextlib.suppress(OSError):  # a full disk fails again for what is buffered; nobody wants it now
            self._file.close()

    def _failed(self, error: OSError) -> StreamlibError:
        return StreamlibError(self._failing.format(path=self._path, error=error))


async def archived(redis: RedisDoor, place: Place) -> AsyncIterator[bytes]:
    """One JSON line for each event owed on this partition, then for each dead letter.

    `event` is what `streamlib publish` reads; where the entry is no event of ours with JSON data, `fields_base64` has
    its names and values. Each is read where it lies before it is read where it may go: one that moves meanwhile is
    written twice rather than never.
    """
    for reading in (owed.pending, owed.scheduled, owed.returning):
        async for one in reading(redis, place.keys, place.group):
            yield _line(place, _owed(one), one.fields)
    async for dead_id, fields in stored.scan(redis, place.keys, place.group):
        yield letter_line(read_letter(place, dead_id, fields))


def letter_line(found: Found) -> bytes:
    """The dead letter on one JSON line, in the form of `archived`."""
    letter = found.letter
    about = {
        "state": "dead", "dead_id": found.dead_id, "entry_id": letter.entry_id, "attempts": letter.attempts,
        "reason": letter.reason, "error": letter.error, "traceback": letter.traceback,
        "fingerprint": letter.fingerprint, "consumer": letter.consumer, "at_ms": letter.at_ms,
        "replays": letter.replays,
    }  # fmt: skip
    return _line(found.place, about, letter.fields)


def publishable_line(message: Message) -> bytes | None:
    """The event as a line that `streamlib publish` reads; None where its data are no JSON."""
    try:
        data = _verbatim(message.data)
    except (ValueError, RecursionError):
        return None
    return msgspec.json.encode(_publishable(message, data)) + b"\n"


def _owed(one: Owed) -> dict[str, Any]:
    return {
        "state": one.state,
        "entry_id": one.entry_id,
        "event_id": one.event_id,
        "attempts": one.attempts,
        "due_ms": one.due_ms,
        "why": one.why,
    }


def _line(place: Place, about: dict[str, Any], fields: Fields | None) -> bytes:
    line = {"topic": place.topic, "partition": place.partition, "group": place.group} | about | _event(fields)
    return msgspec.json.encode(line) + b"\n"


def _event(fields: Fields | None) -> dict[str, Any]:
    if fields is None:
        return {"event": None}
    try:
        message = _codec.read("-", fields)
        data = _verbatim(message.data)
    except (DecodeError, ValueError, RecursionError):
        return {"event": None, "fields_base64": [base64.b64encode(part).decode() for part in fields]}
    return {"event": _publishable(message, data), "envelope": _envelope(message)}


def _publishable(message: Message, data: msgspec.Raw) -> dict[str, Any]:
    return {"type": message.type, "version": message.version, "id": message.id, "key": message.key, "data": data}


def _envelope(message: Message) -> dict[str, Any]:
    return {
        "time_ms": message.time_ms,
        "correlation_id": message.correlation_id,
        "causation_id": message.causation_id,
        "traceparent": message.traceparent,
        "headers": message.headers,
    }


def _verbatim(data: bytes) -> msgspec.Raw:
    """JSON as it stands, but on one line: numbers keep every digit. Raises ValueError."""
    msgspec.json.decode(data)
    return msgspec.Raw(msgspec.json.format(data, indent=-1))
