"""Cursors: where a page of a view ended, as text that fits into a URL and belongs to one question only."""

from __future__ import annotations

import hashlib
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from streamlib.errors import SchemaError

_ALPHABET = re.compile(r"[A-Za-z0-9_-]+")
_DIGEST_BYTES = 9
_parts = msgspec.json.Decoder(list[str])


class Question(Struct, frozen=True):
    """What is asked of which view: `values` are equal for equal questions. The limit is no part of it."""

    topic: str
    view: str
    verb: str
    values: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.verb}() of view {self.view!r}"


def write_cursor(question: Question, place: Sequence[str]) -> str:
    """The cursor that goes on behind `place`."""
    raw = _digest(question) + msgspec.json.encode([question.verb, question.view, *place])
    return urlsafe_b64encode(raw).decode().rstrip("=")


def read_cursor(question: Question, cursor: Any) -> list[str]:
    """The place in a cursor of this very question. Raises SchemaError for everything else."""
    if not isinstance(cursor, str) or not _ALPHABET.fullmatch(cursor):
        raise malformed(question)
    try:
        raw = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        verb, view, *place = _parts.decode(raw[_DIGEST_BYTES:])
    except ValueError as error:
        raise malformed(question) from error
    if raw[:_DIGEST_BYTES] != _digest(question):
        raise SchemaError(
            f"after= of {question} is the cursor of another question ({verb[:64]}() of view {view[:64]!r}, or with "
            "other values); a cursor goes on only with the question that returned it, asked with the same values"
        )
    return place


def malformed(question: Question) -> SchemaError:
    """The error for a text that no page gave out."""
    return SchemaError(f"after= of {question} is no cursor; pass the `cursor` of the page before, or None to begin")


def _digest(question: Question) -> bytes:
    return hashlib.blake2b(msgspec.json.encode(question), digest_size=_DIGEST_BYTES).digest()
