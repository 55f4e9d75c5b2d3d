"""Reads, page by page, every event that a group of a partition has taken over and not finished."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Literal

from msgspec import Struct

from streamlib.codec import Fields
from streamlib.errors import DecodeError
from streamlib.keys import StreamKeys
from streamlib.redisio.again import Again, unpack
from streamlib.redisio.failures import CLIENT_ERRORS, error_code
from streamlib.redisio.scripts import Executes

_PAGE = 64

State = Literal["pending", "retry", "again"]


class Owed(Struct, frozen=True, kw_only=True):
    """One event that was delivered to the group and has not ended.

    `entry_id` is its entry in the topic's stream; `fields` are that entry's own, None where somebody deleted it.
    `attempts` are the runs it has spent as far as they are written down, `due_ms` is when a retry would come.
    """

    state: State
    entry_id: str
    event_id: str
    fields: list[bytes] | None
    attempts: int = 0
    due_ms: int | None = None
    why: str = ""


async def pending(redis: Executes, keys: StreamKeys, group: str) -> AsyncIterator[Owed]:
    """What is delivered from the topic's stream and not acknowledged; nothing where the group does not exist."""
    start = "-"
    while True:
        try:
            page = await redis.execute("XPENDING", keys.stream, group, start, "+", _PAGE)
        except CLIENT_ERRORS as error:
            if error_code(error) == "NOGROUP":
                return
            raise
        if not page:
            return
        ids = [row[0].decode() for row in page]
        found = await asyncio.gather(*(redis.execute("XRANGE", keys.stream, one, one) for one in ids))
        for entry_id, entries in zip(ids, found, strict=True):
            fields = entries[0][1] if entries else None
            yield Owed(state="pending", entry_id=entry_id, event_id=_event_id(entry_id, fields), fields=fields)
        start = f"({ids[-1]}"


async def returning(redis: Executes, keys: StreamKeys, group: str) -> AsyncIterator[Owed]:
    """What lies in the group's stream of returning events: an ack there deletes, so all of it is open."""
    start = "-"
    while page := await redis.execute("XRANGE", keys.again(group), start, "+", "COUNT", _PAGE):
        for raw_id, fields in page:
            entry_id = raw_id.decode()
            try:
                yield _owed("again", fields[1], unpack(entry_id, fields))
            except DecodeError:
                yield Owed(state="again", entry_id=entry_id, event_id=entry_id, fields=fields)
        start = f"({page[-1][0].decode()}"


async def scheduled(redis: Executes, keys: StreamKeys, group: str) -> AsyncIterator[Owed]:
    """Retries that are not due yet, with their events."""
    at = 0
    while True:
        flat: list[bytes] = await redis.execute("ZRANGE", keys.retry(group), at, at + _PAGE - 1, "WITHSCORES")
        if not flat:
            return
        ids, scores = flat[::2], flat[1::2]
        bodies: list[bytes | None] = await redis.execute("HMGET", keys.retry_body(group), *ids)
        for event_id, score, body in zip(ids, scores, bodies, strict=True):
            yield _scheduled(event_id, int(float(score)), body)
        at += len(ids)


def _scheduled(event_id: bytes, due_ms: int, body: bytes | None) -> Owed:
    name = event_id.decode("utf-8", "replace")
    if body is None:
        return Owed(state="retry", entry_id="", event_id=name, fields=None, due_ms=due_ms)
    try:
        return _owed("retry", event_id, unpack("-", [b"id", event_id, b"body", body]), due_ms)
    except DecodeError:
        return Owed(state="retry", entry_id="", event_id=name, fields=[b"body", body], due_ms=due_ms)


def _owed(state: State, event_id: bytes, kept: Again, due_ms: int | None = None) -> Owed:
    return Owed(
        state=state,
        entry_id=kept.entry_id,
        event_id=event_id.decode("utf-8", "replace"),
        fields=kept.fields,
        attempts=kept.attempts,
        due_ms=due_ms,
        why=kept.why,
    )


def _event_id(entry_id: str, fields: Fields | None) -> str:
    named: dict[Any, Any] = dict(zip((fields or [])[::2], (fields or [])[1::2], strict=False))
    found: bytes | None = named.get(b"id")
    return found.decode("utf-8", "replace") if found else entry_id
