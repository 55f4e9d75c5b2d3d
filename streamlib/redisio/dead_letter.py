"""What a dead letter looks like: how often it was replayed, the entry's own fields, then nine that say why it died."""

from __future__ import annotations

import hashlib
import re
import traceback
from collections.abc import Sequence
from typing import Literal

import msgspec
from msgspec import Struct

from streamlib.codec import Fields
from streamlib.logs import hide_passwords

Reason = Literal["max_attempts", "rejected", "decode", "schema", "unknown_type", "crash", "outcome_unknown"]

_NAMES = (
    b"dl-reason", b"dl-error", b"dl-traceback", b"dl-fingerprint", b"dl-attempts", b"dl-entry", b"dl-group",
    b"dl-consumer", b"dl-at",
)  # fmt: skip
_PACKED, _REPLAYS = b"dl-packed", b"dl-replays"
_MOST_PARTS = 6_000
_MOST_DIGITS = 14
"""Of times that a calendar has a date for, in ms."""
_MAX_ERROR = 2_000
_MAX_TRACEBACK = 16_000
_VARYING = re.compile(r"0x[0-9a-fA-F]+|[0-9a-fA-F]{8}-[0-9a-fA-F-]{27}|'[^']*'|\"[^\"]*\"|\d+")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


class Failure(Struct, frozen=True):
    """Why a run of an event failed."""

    reason: Reason
    error: str
    traceback: str = ""
    error_type: str = ""

    @classmethod
    def of(cls, reason: Reason, error: BaseException) -> Failure:
        """The failure that an exception stands for; texts are cut, and freed of control characters and of passwords
        in addresses."""
        lines = traceback.format_exception(error)
        return cls(
            reason,
            _clean(f"{type(error).__name__}: {_said_by(error)}".removesuffix(": "), _MAX_ERROR),
            _clean("".join(lines), _MAX_TRACEBACK, keep_end=True),
            type(error).__name__,
        )


class DeadLetter(Struct, frozen=True, kw_only=True):
    """A dead letter as it is stored in `{S}:dead:<group>`."""

    fields: list[bytes]
    reason: str
    error: str
    traceback: str
    fingerprint: str
    attempts: int
    entry_id: str
    group: str
    consumer: str
    at_ms: int
    replays: int = 0
    """How often the event had been replayed from the dead letters before."""


def counted(fields: Fields, replays: int) -> Fields:
    """An entry's own fields, with the number of its replays ahead of them where there were any."""
    return [_REPLAYS, b"%d" % replays, *fields] if replays else fields


def dead_letter_fields(
    fields: Fields, failure: Failure, *, attempts: int, entry_id: str, group: str, consumer: str, at_ms: int
) -> Fields:
    """The fields of the dead letter for an entry with `fields`."""
    values = (
        failure.reason, failure.error, failure.traceback, fingerprint(group, failure), str(attempts), entry_id,
        group, consumer, str(at_ms),
    )  # fmt: skip
    extra = [part for pair in zip(_NAMES, (v.encode("utf-8", "replace") for v in values), strict=True) for part in pair]
    return [*_packed(fields), *extra]


def told_fields(fields: Fields, values: Sequence[bytes], *, at_ms: int) -> Fields:
    """The dead letter for an entry with `fields` whose nine values were kept since it failed; it dies at `at_ms`.
    Values that are missing are empty."""
    most = len(_NAMES) - 1
    kept = [*values[:most], *[b""] * (most - len(values)), str(at_ms).encode()]
    return [*_packed(fields), *(part for pair in zip(_NAMES, kept, strict=True) for part in pair)]


def parse_dead_letter(stored: Fields) -> DeadLetter | None:
    """The dead letter in the fields of an entry; None if the entry is none (somebody else wrote it)."""
    own, extra = stored[:-18], stored[-18:]
    if tuple(extra[::2]) != _NAMES:
        return None
    own, replays = _unpacked(own), 0
    if len(own) > 1 and own[0] == _REPLAYS and own[1].isdigit() and len(own[1]) <= _MOST_DIGITS:
        own, replays = own[2:], int(own[1])
    text = [value.decode("utf-8", "replace") for value in extra[1::2]]
    reason, error, trace, mark, attempts, entry_id, group, consumer, at_ms = text
    return DeadLetter(
        fields=own, reason=reason, error=error, traceback=trace, fingerprint=mark,
        attempts=_whole(attempts), entry_id=entry_id, group=group, consumer=consumer, at_ms=_whole(at_ms),
        replays=replays,
    )  # fmt: skip


def _whole(text: str) -> int:
    """0 for what we have not written: others may, too."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS else 0


def _packed(fields: Fields) -> Fields:
    """More names and values than a script can hand to XADD travel as one field."""
    return fields if len(fields) <= _MOST_PARTS else [_PACKED, msgspec.msgpack.encode(fields)]


def _unpacked(fields: Fields) -> Fields:
    if len(fields) != 2 or fields[0] != _PACKED:
        return fields
    try:
        return msgspec.msgpack.decode(fields[1], type=list[bytes])
    except msgspec.DecodeError:  # a foreign entry with a field of that name
        return fields


def fingerprint(group: str, failure: Failure) -> str:
    """Equal for failures of one cause: group, error with varying parts blanked, innermost frame."""
    frames = [line.strip() for line in failure.traceback.splitlines() if line.lstrip().startswith('File "')]
    where = re.sub(r", line \d+", "", frames[-1]) if frames else ""
    text = "\0".join((group, failure.reason, _VARYING.sub("*", failure.error), where))
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=6).hexdigest()


def _said_by(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - an exception that cannot say what it is must not harm its neighbours
        return "(its text cannot be printed)"


def _clean(text: str, limit: int, *, keep_end: bool = False) -> str:
    """Cut after hiding: half a password is none that anybody recognises. Far behind the cut nothing matters."""
    if len(text) > 2 * limit:
        text = text[-2 * limit :] if keep_end else text[: 2 * limit]
    text = hide_passwords(_CONTROL.sub("?", text))
    if len(text) <= limit:
        return text
    return f"...{text[-limit:]}" if keep_end else f"{text[:limit]}..."
