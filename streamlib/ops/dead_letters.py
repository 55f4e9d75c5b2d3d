"""Dead letters over all topics, partitions and groups: find, group by cause, replay, purge. Needs no app."""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from itertools import groupby

from msgspec import Struct

from streamlib.codec import Fields, NativeCodec
from streamlib.errors import DecodeError, NotFound
from streamlib.keys import Keys
from streamlib.message import Message, entry_order, entry_time_ms
from streamlib.ops.places import Place, places
from streamlib.redisio import dead_letters as stored
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.dead_letter import DeadLetter, parse_dead_letter
from streamlib.redisio.dead_letters import Replay

FOREIGN = "foreign"
"""The reason shown for an entry of a dead-letter stream that streamlib did not write."""

PROJECTION = "projection"

_codec = NativeCodec()


class Filters(Struct, frozen=True, kw_only=True):
    """Which dead letters are meant; None and 0 leave it open. `error` is a part of the text, in any case."""

    topic: str | None = None
    partition: int | None = None
    group: str | None = None
    type: str | None = None
    reason: str | None = None
    error: str | None = None
    fingerprint: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    limit: int = 0

    @property
    def everything(self) -> bool:
        """No filter at all?"""
        return self == Filters()

    def match(self, found: Found) -> bool:
        letter = found.letter
        return (
            (self.type is None or found.type == self.type)
            and (self.reason is None or letter.reason == self.reason)
            and (self.error is None or self.error.casefold() in letter.error.casefold())
            and (self.fingerprint is None or letter.fingerprint == self.fingerprint)
        )


class Found(Struct, frozen=True):
    """One dead letter and where it lies. `message` is None when its fields are no envelope of ours."""

    place: Place
    dead_id: str
    letter: DeadLetter
    message: Message | None

    @property
    def id(self) -> str:
        """Unique: "<topic>/<partition>/<group>/<entry id>"."""
        return f"{self.place.topic}/{self.place.partition}/{self.place.group}/{self.dead_id}"

    @property
    def event_id(self) -> str:
        """What the workers call the event: its id, or the id of its first entry when that cannot be read."""
        return self.message.id if self.message else self.letter.entry_id

    @property
    def type(self) -> str:
        return self.message.type if self.message else ""

    @property
    def at(self) -> str:
        return iso_time(self.letter.at_ms)

    @property
    def not_replayable(self) -> str:
        """Why this one cannot be replayed, "" when it can."""
        if self.place.kind == PROJECTION:
            return (
                f"{self.place.group} is a projection: it folds its topic in order and cannot take one event "
                "again; mend it and rebuild the view"
            )
        if self.letter.reason == FOREIGN:
            return self.letter.error
        return ""


class ErrorGroup(Struct, kw_only=True):
    """Dead letters of one cause."""

    fingerprint: str
    topic: str
    group: str
    reason: str
    error: str
    count: int
    first_at: str
    last_at: str
    sample_id: str
    types: list[str]


class DeadLetters:
    """The dead letters of one Redis and namespace."""

    def __init__(self, redis: RedisDoor, keys: Keys, *, window_s: float) -> None:
        self._redis = redis
        self._keys = keys
        self._window_ms = int(window_s * 1000)

    async def find(self, filters: Filters) -> AsyncIterator[Found]:
        """Those that match, by stream, oldest first, up to the limit. Raises NotFound, WrongKeyType."""
        left = filters.limit or -1
        for place in await self._places(filters):
            async for found in self._scan(place, filters):
                yield found
                left -= 1
                if left == 0:
                    return

    async def newest(self, filters: Filters) -> list[Found]:
        """The newest of all streams that match, up to the limit. Raises NotFound, WrongKeyType."""
        kept: list[Found] = []
        for place in await self._places(filters):
            seen = 0
            async for found in self._scan(place, filters, newest_first=True):
                kept.append(found)
                seen += 1
                if seen == filters.limit:
                    break
            if filters.limit:
                kept = heapq.nlargest(filters.limit, kept, key=_age)
        return sorted(kept, key=_age, reverse=True)

    async def by_cause(self, filters: Filters) -> list[ErrorGroup]:
        """Those that match, grouped by fingerprint, the largest group first."""
        groups: dict[tuple[str, str, str], ErrorGroup] = {}
        async for found in self.find(filters):
            place, letter = found.place, found.letter
            key = (place.topic, place.group, letter.fingerprint)
            one = groups.get(key)
            if one is None:
                one = groups[key] = ErrorGroup(
                    fingerprint=letter.fingerprint, topic=place.topic, group=place.group,
                    reason=letter.reason, error=letter.error, count=0, first_at=found.at, last_at=found.at,
                    sample_id=found.id, types=[],
                )  # fmt: skip
            one.count += 1
            one.first_at, one.last_at = min(one.first_at, found.at), max(one.last_at, found.at)
            if found.type and found.type not in one.types:
                one.types.append(found.type)
        return sorted(groups.values(), key=lambda one: one.count, reverse=True)

    async def get(self, dead_letter_id: str) -> Found:
        """The dead letter of this id. Raises NotFound."""
        topic, partition, group, dead_id = _split(dead_letter_id)
        found = await places(self._redis, self._keys, topic, group)
        place = next((one for one in found if str(one.partition) == partition), None)
        fields = await stored.read(self._redis, place.keys, group, dead_id) if place else None
        if place is None or fields is None:
            raise NotFound(
                f"no dead letter {dead_letter_id!r}; was it replayed or purged? `streamlib dlq ls` lists them"
            )
        return read_letter(place, dead_id, fields)

    async def replay(self, found: list[Found]) -> Counter[Replay]:
        """Send handlers' dead letters back to their groups; how many ended how. Safe to repeat."""
        results = await asyncio.gather(*(self._replay(one) for one in found))
        return Counter(results)

    async def purge(self, found: list[Found]) -> int:
        """Delete dead letters; how many were still there."""
        deleted = 0
        for place, some in groupby(found, key=lambda one: one.place):
            deleted += await stored.delete(self._redis, place.keys, place.group, [one.dead_id for one in some])
        return deleted

    async def _places(self, filters: Filters) -> list[Place]:
        """The dead-letter streams that the filters leave, existing or not. Raises NotFound."""
        return await places(self._redis, self._keys, filters.topic, filters.group, filters.partition)

    async def _scan(self, place: Place, filters: Filters, *, newest_first: bool = False) -> AsyncIterator[Found]:
        entries = stored.scan(
            self._redis,
            place.keys,
            place.group,
            since_ms=filters.since_ms,
            until_ms=filters.until_ms,
            newest_first=newest_first,
        )
        async for dead_id, fields in entries:
            found = read_letter(place, dead_id, fields)
            if filters.match(found):
                yield found

    async def _replay(self, found: Found) -> Replay:
        async def once() -> Replay:
            return await stored.replay(
                self._redis,
                found.place.keys,
                group=found.place.group,
                dead_id=found.dead_id,
                event_id=found.event_id,
                letter=found.letter,
                window_ms=self._window_ms,
            )

        return await self._redis.persist(once, give_up_s=self._redis.settings.retry_s)


def iso_time(ms: int) -> str:
    """ISO 8601 in UTC with milliseconds."""
    at = datetime.fromtimestamp(ms / 1000, UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{ms % 1000:03d}Z"


def read_letter(place: Place, dead_id: str, fields: Fields) -> Found:
    letter = parse_dead_letter(fields)
    if letter is None:
        letter = DeadLetter(
            fields=fields, reason=FOREIGN, error="this entry was not written by streamlib", traceback="",
            fingerprint="", attempts=0, entry_id=dead_id, group=place.group, consumer="",
            at_ms=entry_time_ms(dead_id),
        )  # fmt: skip
    try:
        message = _codec.read(letter.entry_id, letter.fields)
    except DecodeError:
        message = None
    return Found(place, dead_id, letter, message)


def _age(found: Found) -> tuple[int, int]:
    return entry_order(found.dead_id)


def _split(dead_letter_id: str) -> tuple[str, str, str, str]:
    parts = dead_letter_id.split("/")
    ms, _, sequence = parts[-1].partition("-")
    numbers = (ms + sequence).isascii() and ms.isdigit() and sequence.isdigit()
    if len(parts) != 4 or not numbers or max(int(ms), int(sequence)) >= 1 << 64:
        raise NotFound(
            f"{dead_letter_id!r} is no id of a dead letter; ids look like orders/0/email/1700000000000-0, "
            "`streamlib dlq ls` prints them"
        )
    topic, partition, group, dead_id = parts
    return topic, partition, group, dead_id
