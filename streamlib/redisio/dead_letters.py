"""Reads, replays and deletes dead letters in Redis, page by page."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Sequence

from streamlib.codec import Fields
from streamlib.errors import WrongKeyType
from streamlib.keys import StreamKeys
from streamlib.redisio.again import Again, pack
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.dead_letter import DeadLetter
from streamlib.redisio.failures import CLIENT_ERRORS, error_code
from streamlib.redisio.large_entries import Room, is_cut
from streamlib.redisio.marks import Marks, members, plan_of
from streamlib.redisio.scripts import Executes, Script

_replay = Script("replay")
PAGE = 64
"""Dead letters per read; with their payloads and tracebacks a page stays under some 20 MiB."""
DELETE_CHUNK = 500


_OTHER_PLAN = 4


class Replay(enum.IntEnum):
    """What became of a replay."""

    REPLAYED = 0
    GONE = 1
    DONE = 2
    BUSY = 3
    CUT = 5
    """The letter has only the beginning of its entry, which is gone, or cannot be sent by the server."""


async def scan(
    redis: RedisDoor,
    keys: StreamKeys,
    group: str,
    *,
    since_ms: int | None = None,
    until_ms: int | None = None,
    newest_first: bool = False,
) -> AsyncIterator[tuple[str, Fields]]:
    """The entries (id, fields) of a dead-letter stream, written from `since_ms` to `until_ms` (server ms).

    What arrives during the scan is left out: a replayed event that dies again is not met a second time.
    Raises WrongKeyType.
    """
    pages = _Pages(redis, keys.dead(group))
    newest = await pages.range("XREVRANGE", "+", "-", 1)
    if not newest:
        return
    last = newest[0][0]
    low = "-" if since_ms is None else str(since_ms)
    high = last if until_ms is None or _ms(last) < until_ms else str(until_ms)
    command, start, end = ("XREVRANGE", high, low) if newest_first else ("XRANGE", low, high)
    while page := await pages.range(command, start, end, PAGE):
        for entry in page:
            yield entry
        start = f"({page[-1][0]}"


async def read(redis: RedisDoor, keys: StreamKeys, group: str, entry_id: str) -> Fields | None:
    """The fields of one dead letter, None if there is none of this id. Raises WrongKeyType."""
    found = await _Pages(redis, keys.dead(group)).range("XRANGE", entry_id, entry_id, 1)
    return found[0][1] if found else None


async def replay(
    redis: Executes,
    keys: StreamKeys,
    *,
    group: str,
    dead_id: str,
    event_id: str,
    letter: DeadLetter,
    window_ms: int,
) -> Replay:
    """Move one dead letter into the group's stream of returning events, with all its attempts ahead of it.

    Safe to send twice: the second answer is GONE.
    """
    fields = await _whole(redis, keys, letter) if is_cut(letter.fields) else letter.fields
    if not fields:
        return Replay.CUT
    body = pack(Again(letter.entry_id, 0, 0, "replayed", fields, letter.replays + 1))
    marks, code, tries = Marks(), _OTHER_PLAN, 0
    while code == _OTHER_PLAN:
        marks.learn(keys.stream, (await plan_of(redis, keys, group)).text, tries)
        told = members(marks, keys, group, [event_id])
        code = await _replay.run(
            redis,
            [keys.dead(group), keys.again(group), keys.idem(group, event_id), keys.marks(group), *told.keys],
            [dead_id, event_id, body, window_ms, marks.plan(keys.stream).text, *told.digests],
        )
        tries += 1
    return Replay(code)


async def _whole(redis: Executes, keys: StreamKeys, letter: DeadLetter) -> Fields:
    """The fields of the entry of which the letter has the beginning; none where they cannot be had."""
    entries = await Room(1).entries_of(redis, keys.stream, [letter.entry_id.encode()])
    return [] if not entries or is_cut(entries[0][1]) else entries[0][1]


async def delete(redis: RedisDoor, keys: StreamKeys, group: str, dead_ids: Sequence[str]) -> int:
    """Delete dead letters; how many of them were there."""
    deleted = 0
    for at in range(0, len(dead_ids), DELETE_CHUNK):
        deleted += await redis.execute("XDEL", keys.dead(group), *dead_ids[at : at + DELETE_CHUNK])
    return deleted


class _Pages:
    """Reads of a stream of dead letters, smaller ones after one that was more than the server could send."""

    def __init__(self, redis: RedisDoor, key: str) -> None:
        self._redis = redis
        self._key = key
        self._most = PAGE

    async def range(self, command: str, start: str, end: str, count: int) -> list[tuple[str, Fields]]:
        """Up to `count` entries. Raises WrongKeyType."""
        try:
            return await self._redis.persist(
                lambda: self._once(command, start, end, count), give_up_s=self._redis.settings.retry_s
            )
        except CLIENT_ERRORS as error:
            if error_code(error) == "WRONGTYPE":
                raise WrongKeyType(
                    f"the key {self._key} should be a stream of dead letters, but holds another type; "
                    "rename or remove that key, or set redis.namespace"
                ) from error
            raise

    async def _once(self, command: str, start: str, end: str, count: int) -> list[tuple[str, Fields]]:
        try:
            reply = await self._redis.execute(command, self._key, start, end, "COUNT", min(count, self._most))
        except CLIENT_ERRORS:
            self._most = max(self._most // 4, 1)
            raise
        return [(entry_id.decode(), fields) for entry_id, fields in reply]


def _ms(entry_id: str) -> int:
    return int(entry_id.partition("-")[0])
