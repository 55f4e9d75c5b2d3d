"""Reads aggregates from Redis: their events page by page, their snapshots, and which of them there are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from msgspec import Struct

from streamlib.errors import DecodeError, StreamlibError
from streamlib.keys import Keys, StreamKeys
from streamlib.message import Message, Position
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.failures import CLIENT_ERRORS, translate
from streamlib.redisio.later import unpack
from streamlib.redisio.scripts import Arg, Script
from streamlib.topic import TopicSpec, checked_id, partition_of_key

T = TypeVar("T")

_read = Script("read_aggregate")

PAGE_EVENTS = 500
PAGE_BYTES = 4 * 1024 * 1024
_SCAN_COUNT = 1_000
_NO_ANSWER = "-"


class AnsweredBefore(StreamlibError):
    """This idempotency key has had the answer `value` before; nothing was written."""

    def __init__(self, key: str, value: bytes) -> None:
        super().__init__(f"idempotency key {key!r} was answered before")
        self.value = value


class Stored(Struct, frozen=True):
    """One event of an aggregate as it is stored."""

    version: int
    position: Position
    commit_id: str
    message: Message


class Page(Struct, frozen=True):
    """Events of an aggregate, in order.

    `after` is the version before the first of them, `length` the number of all events of the aggregate. `snapshot`, as
    it is stored, stands for version `after`; None where there is none that can be used.
    """

    snapshot: bytes | None
    length: int
    after: int
    events: list[Stored]


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
        page = await self.page(topic, aggregate_id, after, upto, answer_key=answer_key)
        async for stored in self.rest(topic, aggregate_id, page, upto):
            yield stored

    async def rest(
        self, topic: TopicSpec, aggregate_id: str, page: Page, upto: int | None = None
    ) -> AsyncIterator[Stored]:
        """The events of this page, the first that was read, and then those of the next ones; see `read`."""
        at, length = page.after, page.length
        last = length if upto is None else min(length, upto)
        while True:
            for stored in page.events:
                yield stored
            at += len(page.events)
            if at >= last:
                return
            page = await self.page(topic, aggregate_id, at, last)
            if not page.events:
                raise StreamlibError(
                    f"topic {topic.name!r}: aggregate {aggregate_id!r} had {length} events and now has {page.length}: "
                    "Redis was rolled back while they were read; read it again"
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
        keys, partition = self._place(topic, aggregate_id)
        names = [keys.aggregate(aggregate_id), keys.snapshot(aggregate_id), keys.answer(answer_key or _NO_ANSWER)]
        last = -1 if upto is None else upto
        args: list[Arg] = [after, last, PAGE_EVENTS, PAGE_BYTES, stamp, "1" if answer_key else "0"]
        answer, *found = await self._persist(lambda: _read.run(self._redis, names, args))
        if answer is not None:
            raise AnsweredBefore(answer_key, answer)
        snapshot, length, start, *elements = found
        numbered = enumerate(elements, start=start + 1)
        return Page(snapshot, length, start, [_stored(topic, partition, number, raw) for number, raw in numbered])

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


def _stored(topic: TopicSpec, partition: int, version: int, element: bytes) -> Stored:
    """An element of an aggregate's list, taken apart. Raises DecodeError."""
    entry, _, rest = element.partition(b" ")
    commit, _, packed = rest.partition(b" ")
    entry_id = entry.decode(errors="replace")
    try:
        message = topic.codec.read(entry_id, unpack(packed))
    except DecodeError as error:
        raise type(error)(f"topic {topic.name!r}, version {version} of an aggregate: {error}") from error
    return Stored(version, Position(topic.name, partition, entry_id), commit.decode(errors="replace"), message)
