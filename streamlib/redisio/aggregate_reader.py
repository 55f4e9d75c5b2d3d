"""Reads aggregates from Redis: their events page by page, their snapshots, and which of them there are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import TypeVar

from msgspec import Struct

from streamlib.errors import StreamlibError
from streamlib.keys import Keys, StreamKeys
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.elements import Stored, stored
from streamlib.redisio.failures import CLIENT_ERRORS, translate
from streamlib.redisio.scripts import Arg, Script
from streamlib.topic import TopicSpec, checked_id, partition_of_key

T = TypeVar("T")

_read = Script("read_aggregate", reads_only=True)

PAGE_EVENTS, FURTHER_EVENTS = 500, 2_000
"""How many events the first page has at the most, and each further one: who has more has many."""
_TURNS_TO_SEND = 3
PAGE_BYTES = 4 * 1024 * 1024
_SCAN_COUNT = 1_000
_NO_ANSWER = "-"


class AnsweredBefore(StreamlibError):
    """This idempotency key has had the answer `value` before; nothing was written."""

    def __init__(self, key: str, value: bytes) -> None:
        super().__init__(f"idempotency key {key!r} was answered before")
        self.value = value


class Page(Struct, frozen=True):
    """Events of an aggregate as the list has them, in order; elements.py reads them.

    `after` is the version before the first of them, `length` the number of all events of the aggregate. `snapshot`, as
    it is stored, stands for version `after`; None where there is none that can be used.
    """

    snapshot: bytes | None
    length: int
    after: int
    events: list[bytes]


class AggregateReader:
    """Reads the aggregates of any topic over one door.

    An aggregate lies on the partition of its id, whatever the key of the topic is.
    """

    def __init__(self, redis: RedisDoor, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def read(
        self, topic: TopicSpec, aggregate_id: str, after: int = 0, upto: int | None = None, answer_key: str = ""
    ) -> AsyncIterator[Stored]:
        """The events of an aggregate from version `after` + 1 to `upto`, in order, as they are when the reading starts.

        They are read page by page; what others append meanwhile is left out. Nothing comes of an aggregate that does
        not exist. Raises AnsweredBefore when there is an answer for `answer_key`, DecodeError for an element that is no
        event, WrongKeyType, RedisUnavailable, and StreamlibError when the aggregate became shorter meanwhile.
        """
        partition = partition_of_key(aggregate_id, topic.partitions)
        page = await self.page(topic, aggregate_id, after, upto, answer_key=answer_key)
        at, end = page.after, _end(page, upto)
        while True:
            for element in page.events:
                at += 1
                yield stored(topic, partition, at, element)
            if at >= end:
                return
            page = await self._further(topic, aggregate_id, at, end, page.length)

    async def pages(
        self, topic: TopicSpec, aggregate_id: str, page: Page, upto: int | None = None
    ) -> AsyncGenerator[Page, None]:
        """This page, the first that was read, and then the next ones; see `read`.

        The next one is on its way while the caller works on this one. To be closed, as contextlib.aclosing does.
        """
        at, end = page.after + len(page.events), _end(page, upto)
        following: asyncio.Task[Page] | None = None
        try:
            while at < end:
                following = asyncio.create_task(self._further(topic, aggregate_id, at, end, page.length))
                for _ in range(_TURNS_TO_SEND):  # a caller that never waits would keep it from being sent
                    await asyncio.sleep(0)
                yield page
                page, following = await following, None
                at += len(page.events)
            yield page
        finally:
            if following is not None:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)

    async def _further(self, topic: TopicSpec, aggregate_id: str, at: int, end: int, length: int) -> Page:
        """The page after version `at` of an aggregate that had `length` events. Raises StreamlibError."""
        page = await self.page(topic, aggregate_id, at, end)
        if page.events:
            return page
        raise StreamlibError(
            f"topic {topic.name!r}: aggregate {aggregate_id!r} had {length} events and now has {page.length}: Redis "
            "was rolled back while they were read; read it again"
        )

    async def page(
        self,
        topic: TopicSpec,
        aggregate_id: str,
        after: int = 0,
        upto: int | None = None,
        *,
        answer_key: str = "",
        stamp: str = "",
    ) -> Page:
        """One page of events after a version, or after the snapshot of this `stamp` where there is one; see `read`."""
        keys, _ = self._place(topic, aggregate_id)
        names = [keys.aggregate(aggregate_id), keys.snapshot(aggregate_id), keys.answer(answer_key or _NO_ANSWER)]
        last = -1 if upto is None else upto
        most = FURTHER_EVENTS if after else PAGE_EVENTS
        args: list[Arg] = [after, last, most, PAGE_BYTES, stamp, "1" if answer_key else "0"]
        answer, *found = await self._persist(lambda: _read.run(self._redis, names, args))
        if answer is not None:
            raise AnsweredBefore(answer_key, answer)
        snapshot, length, start, *events = found
        return Page(snapshot, length, start, events)

    async def length(self, topic: TopicSpec, aggregate_id: str) -> int:
        """How many events the aggregate has, 0 if it does not exist. Raises WrongKeyType, RedisUnavailable."""
        keys, _ = self._place(topic, aggregate_id)
        found: int = await self._persist(lambda: self._redis.execute("LLEN", keys.aggregate(aggregate_id)))
        return found

    async def aggregate_ids(self, topic: TopicSpec, partition: int) -> AsyncIterator[str]:
        """The ids of all aggregates of a partition, each once, in no order; they are kept in memory meanwhile.

        One that comes or goes meanwhile may be missing. Raises RedisUnavailable.
        """
        keys = self._keys.stream(topic.name, partition, topic.partitions)
        prefix = keys.aggregate("").encode()
        seen: set[bytes] = set()
        lane, cursor = self._redis.lane(keys.stream), b"0"
        try:
            while True:
                try:
                    cursor, found = await lane.execute("SCAN", cursor, "MATCH", prefix + b"*", "COUNT", _SCAN_COUNT)
                except CLIENT_ERRORS:
                    # Another server may answer the next one, and there this cursor leads nowhere: from the start.
                    await self._persist(lambda: lane.execute("EXISTS", keys.stream))
                    cursor = b"0"
                    continue
                for key in found:
                    if key not in seen:
                        seen.add(key)
                        yield key[len(prefix) :].decode()
                if cursor == b"0":
                    return
        finally:
            await lane.close()

    def _place(self, topic: TopicSpec, aggregate_id: str) -> tuple[StreamKeys, int]:
        """The keys and the number of the partition on which the aggregate lies. Raises PublishError."""
        partition = partition_of_key(checked_id("aggregate id", aggregate_id), topic.partitions)
        return self._keys.stream(topic.name, partition, topic.partitions), partition

    async def _persist(self, operation: Callable[[], Awaitable[T]]) -> T:
        try:
            return await self._redis.persist(operation, give_up_s=self._redis.settings.retry_s)
        except CLIENT_ERRORS as error:
            raise translate(error, self._redis.settings.url) from error


def _end(page: Page, upto: int | None) -> int:
    """The last version to read, as the first page tells."""
    return page.length if upto is None else min(page.length, upto)
