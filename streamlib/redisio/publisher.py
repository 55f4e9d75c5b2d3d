"""Publishes: encodes events, sorts them by partition, gathers what is awaited together into batches."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Sequence

from streamlib.codec import Fields
from streamlib.errors import PayloadTooLarge, PublishError, StreamlibError
from streamlib.event import Event
from streamlib.keys import Keys
from streamlib.message import MAX_HEADER_BYTES, MAX_HEADERS, Message, Position, event_ids, header_bytes
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.publish_batch import Order, Outcome, Sent, Waiting
from streamlib.redisio.publish_line import BATCH_EVENTS, Line
from streamlib.settings import LimitSettings
from streamlib.topic import TopicSpec

Observe = Callable[[str, str, int, float], None]
"""(topic, outcome, number of events, seconds). Outcomes: stored duplicate full conflict too_large refused
not_confirmed error."""

MAX_FIELD_PARTS = 2_000

__all__ = ["Publisher", "Sent"]


class Publisher:
    """Publishes to any topic over one door; one per event loop. Safe for any number of tasks.

    Each partition has at most one batch under way; whatever is published meanwhile goes together in the next
    one. A batch whose answer was lost is sent again under the same number, which Redis recognises, for
    `redis.retry_s`.
    """

    def __init__(self, redis: RedisDoor, keys: Keys, limits: LimitSettings, *, observe: Observe | None = None) -> None:
        self._redis = redis
        self._keys = keys
        self._limits = limits
        self._observe = observe or _nobody
        self._lines: dict[tuple[TopicSpec, int], Line] = {}
        self._orders: set[asyncio.Future[None]] = set()
        self._ids = event_ids()
        self._closed = False

    async def send(
        self, topic: TopicSpec, messages: Sequence[Message], *, delays_ms: Sequence[int] = ()
    ) -> list[Sent | PublishError]:
        """Store messages; for each, in order, what became of it. `delays_ms`, if given, has one number for each.

        An error stands for its own message only. Where the outcome is unknown, because Redis did not answer
        for `redis.retry_s`, the error's `__cause__` is the RedisError; publishing again under the same event
        id is safe.
        """
        return _listed(await self._store(topic, messages, len(messages), delays_ms))

    async def publish_many(self, topic: TopicSpec, events: Sequence[Event]) -> list[Sent | PublishError]:
        """The same for bare events, which are encoded while those before them are on their way.

        Raises DeclarationError for a class that the topic does not declare; nothing is stored then.
        """
        return _listed(await self._store(topic, topic.messages(events, self._ids), len(events)))

    async def publish(self, topic: TopicSpec, message: Message, *, delay_ms: int = 0) -> Position:
        """Store one message and return where it lies (for a copy: where the first one lies).

        Raises TopicFull, PayloadTooLarge, NotConfirmed, IdempotencyConflict, PublishError, and RedisError
        when Redis refused it or did not answer for `redis.retry_s` (then the outcome is unknown). Cancelled
        before its batch left, the message is not stored; after that the outcome is unknown.
        """
        self._check_open(topic)
        order = Order(1)
        self._accept(topic, message, order, 0, delay_ms)
        await order.done
        (outcome,) = order.outcomes()
        if isinstance(outcome, Sent):
            return outcome.position
        raise outcome

    def new_event_id(self) -> str:
        """An id for an event whose producer brings none."""
        return next(self._ids)

    def encode(self, topic: TopicSpec, message: Message) -> Fields:
        """The entry's fields, for whoever stores them in a script of its own. Raises PublishError."""
        return _entry(topic, message, self._limits)

    async def close(self) -> None:
        """Refuse what comes from now on, and wait until everything accepted so far has its outcome."""
        self._closed = True
        while under_way := [*self._orders, *(line.task for line in self._lines.values() if line.busy)]:
            await asyncio.wait([future for future in under_way if future is not None])
        for line in self._lines.values():
            await line.close()

    async def _store(
        self,
        topic: TopicSpec,
        messages: Iterable[Message | PublishError],
        count: int,
        delays_ms: Sequence[int] = (),
    ) -> list[Outcome]:
        self._check_open(topic)
        if not count:
            return []
        order = Order(count)
        self._orders.add(order.done)
        try:
            for index, message in enumerate(messages):
                if index and index % BATCH_EVENTS == 0:
                    await asyncio.sleep(0)  # lets the last batch leave while the next is being encoded
                self._accept(topic, message, order, index, delays_ms[index] if delays_ms else 0)
            await order.done
        except BaseException:
            order.done.cancel()
            raise
        finally:
            self._orders.discard(order.done)
        return order.outcomes()

    def _check_open(self, topic: TopicSpec) -> None:
        if self._closed:
            raise StreamlibError(f"topic {topic.name!r}: the publisher is closed; publish while the app is open")

    def _accept(
        self, topic: TopicSpec, message: Message | PublishError, order: Order, index: int, delay_ms: int
    ) -> None:
        try:
            if isinstance(message, PublishError):
                raise message
            fields = _entry(topic, message, self._limits)
        except PublishError as error:
            order.put(index, error)
            outcome = "too_large" if isinstance(error, PayloadTooLarge) else "refused"
            self._observe(topic.name, outcome, 1, 0.0)
            return
        digest = _digest(message) if topic.dedup_window_s else b""
        line = self._line(topic, topic.partition_of(message))
        line.add(Waiting(order, index, message, fields, digest, delay_ms))

    def _line(self, topic: TopicSpec, partition: int) -> Line:
        line = self._lines.get((topic, partition))
        if line is None:
            line = Line(self._redis, self._keys, topic, partition, self._limits.topic_len, self._observe)
            self._lines[topic, partition] = line
        return line


def _entry(topic: TopicSpec, message: Message, limits: LimitSettings) -> Fields:
    """The entry's fields, within the limits. Raises PublishError."""
    if len(message.data) > limits.payload_bytes:
        raise PayloadTooLarge(
            f"{_what(topic, message)} has {len(message.data)} bytes of data, more than limits.payload_bytes = "
            f"{limits.payload_bytes}; store the large part elsewhere and publish where it is"
        )
    if message.headers:
        size = header_bytes(message.headers)
        if len(message.headers) > MAX_HEADERS or size > MAX_HEADER_BYTES:
            raise PayloadTooLarge(
                f"{_what(topic, message)} has {len(message.headers)} headers of {size} bytes; at most "
                f"{MAX_HEADERS} of {MAX_HEADER_BYTES} together are allowed"
            )
    try:
        fields = topic.codec.write(message)
    except UnicodeEncodeError as error:
        raise PublishError(f"{_what(topic, message)} holds text that is not valid Unicode") from error
    if not 0 < len(fields) <= MAX_FIELD_PARTS or len(fields) % 2:
        raise PublishError(
            f"{_what(topic, message)} becomes {len(fields)} names and values; an entry has 1 to "
            f"{MAX_FIELD_PARTS // 2} of each"
        )
    return fields


def _what(topic: TopicSpec, message: Message) -> str:
    return f"{message.type} {message.id} for topic {topic.name!r}"


def _digest(message: Message) -> bytes:
    """Equal for events of the same content; what differs from one sending to the next is left out."""
    head = f"{message.type}\0{message.version}\0{message.key}\0".encode()
    return hashlib.blake2b(head + message.data, digest_size=16).hexdigest().encode()


def _listed(outcomes: list[Outcome]) -> list[Sent | PublishError]:
    """The outcomes with every error as a PublishError."""
    return [found if isinstance(found, Sent | PublishError) else _in_list(found) for found in outcomes]


def _in_list(error: StreamlibError) -> PublishError:
    found = PublishError(str(error))
    found.__cause__ = error
    return found


def _nobody(topic: str, outcome: str, number: int, seconds: float) -> None:
    """Observes nothing."""
