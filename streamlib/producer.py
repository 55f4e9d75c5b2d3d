"""A topic as the app hands it out: where producers publish."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from streamlib.errors import PublishError
from streamlib.event import Event
from streamlib.message import Position
from streamlib.redisio.later import delay_ms
from streamlib.redisio.publisher import Publisher, Sent
from streamlib.topic import TopicSpec


class Topic:
    """A topic of an app; publish to it while the app is open."""

    def __init__(self, spec: TopicSpec, publisher: Callable[[], Publisher]) -> None:
        self.spec = spec
        self._publisher = publisher

    @property
    def name(self) -> str:
        return self.spec.name

    async def publish(
        self,
        event: Event,
        *,
        id: str | None = None,
        key: str | None = None,
        correlation_id: str | None = None,
        causation_id: str | None = None,
        traceparent: str | None = None,
        headers: Mapping[str, str] | None = None,
        time_ms: int | None = None,
        delay: float = 0,
    ) -> Position:
        """Store an event and return where it lies. Publishes awaited at the same time share a round trip.

        `id` is the event's id if the producer brings one (else a UUIDv7), `time_ms` when it happened (else when
        it was stored).

        With a `delay` in seconds, at most ten years, the event enters the stream for all groups that much later by the
        server's clock, never sooner, moved there by any worker of an app with this topic. It is stored at once all
        the same, counts for limits.topic_len, and the position has the entry id "". An id that waits already is a
        copy: the first keeps its time.

        Raises TopicFull, PayloadTooLarge, NotConfirmed, IdempotencyConflict, PublishError,
        RedisUnavailable.
        """
        wait_ms = delay_ms(delay)
        publisher = self._publisher()
        message = self.spec.message(
            event,
            event_id=publisher.new_event_id() if id is None else id,
            key=key,
            correlation_id=correlation_id,
            causation_id=causation_id,
            traceparent=traceparent,
            headers=headers,
            time_ms=time_ms,
        )
        return await publisher.publish(self.spec, message, delay_ms=wait_ms)

    async def publish_many(self, events: Sequence[Event]) -> list[Position | PublishError]:
        """Store events in batches of one round trip each: for each, in order, its position or its error.

        Raises DeclarationError for a class that the topic does not declare; nothing is stored then.
        """
        sent = await self._publisher().publish_many(self.spec, events)
        return [one.position if isinstance(one, Sent) else one for one in sent]
