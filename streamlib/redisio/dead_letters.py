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
    key = keys.dead(group)
    newest = await _range(redis, "XREVRANGE", key, "+", "-", 1)
    if not newest:
        return
    last = newest[0][0]
    low = "-" if since_ms is None else str(since_ms)
    high = last if until_ms is None or _ms(last) < until_ms else str(until_ms)
    command, start, end = ("XREVRANGE", high, low) if newest_first else ("XRANGE", low, high)
    while page := await _range(redis, command, key, start, end, PAGE):
        for entry in page:
            yield entry
        start = f"({page[-1][0]}"


async def read(redis: RedisDoor, keys: StreamKeys, group: str, entry_id: str) -> Fields | None:
    """The fields of one dead letter, None if there is none of this id. Raises WrongKeyType."""
    found = await _range(redis, "XRANGE", keys.dead(group), entry_id, entry_id, 1)
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
    body = pack(Again(letter.entry_id, 0, 0, "replayed", letter.fields))
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


async def delete(redis: RedisDoor, keys: StreamKeys, group: str, dead_ids: Sequence[str]) -> int:
    """Delete dead letters; how many of them were there."""
    deleted = 0
    for at in range(0, len(dead_ids), DELETE_CHUNK):
        deleted += await redis.execute("XDEL", keys.dead(group), *dead_ids[at : at + DELETE_CHUNK])
    return deleted


async def _range(
    redis: RedisDoor, command: str, key: str, start: str, end: str, count: int
) -> list[tuple[str, Fields]]:
    async def once() -> list[tuple[str, Fields]]:
        reply = await redis.execute(command, key, start, end, "COUNT", count)
        return [(entry_id.decode(), fields) for entry_id, fields in reply]

    try:
        return await redis.persist(once, give_up_s=redis.settings.retry_s)
    except CLIENT_ERRORS as error:
        if error_code(error) == "WRONGTYPE":
            raise WrongKeyType(
                f"the key {key} should be a stream of dead letters, but holds another type; "
                "rename or remove that key, or set redis.namespace"
            ) from error
        raise


def _ms(entry_id: str) -> int:
    return int(entry_id.partition("-")[0])
