"""Answers of commands, kept under their idempotency keys: what they look like in Redis, and how they come and go."""

from __future__ import annotations

import contextlib
import hashlib

import msgspec
from msgspec import Struct

from streamlib.codec import NativeCodec
from streamlib.event import Event, event_type, event_version
from streamlib.message import Position
from streamlib.redisio.scripts import Executes, Script

_remember = Script("remember")
_codec = NativeCodec()
_SUCCESS, _FAILURE = b"=", b"!"


class StoredAnswer(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of a command.

    `digest` is the command's: the same key with another command is a mistake, not a repeat. `value` is JSON. `error`
    stands for a command that failed for good. The append script stores the answer before it knows the entry id of its
    events: there `position` has none, and `aggregate_id` and `version` lead to it.
    """

    digest: str
    command: str
    value: msgspec.Raw = msgspec.Raw(b"null")
    error: str = ""
    position: Position | None = None
    aggregate_id: str = ""
    version: int = 0

    def encode(self) -> bytes:
        return (_FAILURE if self.error else _SUCCESS) + msgspec.json.encode(self)

    @classmethod
    def decode(cls, raw: bytes) -> StoredAnswer:
        return msgspec.json.decode(raw[1:], type=cls)


def digest_of(command: Event) -> str:
    """Equal for commands of the same type, version and content; "<version>:<hash>".

    What counts is the command as a worker reads it, where a float that was given as 1 is 1.0, and no order within sets
    and mappings. Raises PublishError for what cannot be encoded.
    """
    cls, raw = type(command), _codec.encode(command)
    with contextlib.suppress(msgspec.ValidationError):  # what no worker could read is compared as it is
        command = msgspec.json.decode(raw, type=cls)
    content = event_type(cls).encode() + b"\0" + msgspec.json.encode(command, order="deterministic")
    return f"{event_version(cls)}:{hashlib.blake2b(content, digest_size=16).hexdigest()}"


def is_repeat(kept: StoredAnswer, command: str, digest: str) -> bool:
    """Whether this answer is one to a command of this type and digest.

    Other versions of its type count as the same request: while a deploy rolls, one is sent in one version and repeated
    or answered in another.
    """
    version, _, content = digest.partition(":")
    kept_version, _, kept_content = kept.digest.partition(":")
    return kept.command == command and (kept_version != version or kept_content == content)


async def recall(redis: Executes, key: str) -> StoredAnswer | None:
    """The answer kept at `key` ({S}:cmd:<idempotency key>)."""
    raw = await redis.execute("GET", key)
    return None if raw is None else StoredAnswer.decode(raw)


async def remember(redis: Executes, key: str, answer: StoredAnswer, ttl_ms: int) -> StoredAnswer:
    """Keep the answer; the one that stands now, which is another's where that succeeded first. Safe to send twice."""
    return StoredAnswer.decode(await _remember.run(redis, [key], [answer.encode(), ttl_ms]))
