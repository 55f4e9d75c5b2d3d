"""What a handler gets beside its event: names, the idempotency key, shared resources, and a way to emit events."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, Protocol

from msgspec import Struct

from streamlib.errors import Reject
from streamlib.event import Event
from streamlib.message import Message, entry_time_ms
from streamlib.redisio.delivery import Delivery
from streamlib.redisio.later import delay_ms
from streamlib.topic import TopicSpec

logger = logging.getLogger("streamlib.handler")


class EventLogger(logging.LoggerAdapter[logging.Logger]):
    """Adds which event this is to the fields that a record brings itself."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs


class HasSpec(Protocol):
    """A topic as the app hands it out."""

    @property
    def spec(self) -> TopicSpec: ...


class Emitted(Struct, frozen=True):
    """An event that a run wants published."""

    topic: TopicSpec
    event: Event
    key: str | None
    delay_ms: int


class Context:
    """One run of one event.

    `attempt` is 1 for the first run. `idempotency_key` is the same for every run of this event by this group, after
    crashes, retries and replays too: hand it to whatever must not happen twice. `state` is what `@app.lifespan`
    yielded. `time` is when the event happened, ms since 1970. `message` is the envelope as it was received.
    """

    __slots__ = ("_delivery", "_topic", "emitted", "group", "message", "state")

    def __init__(
        self, topic: TopicSpec, group: str, delivery: Delivery, message: Message, state: Mapping[str, Any]
    ) -> None:
        self._topic = topic
        self._delivery = delivery
        self.group = group
        self.message = message
        self.state = state
        self.emitted: list[Emitted] = []

    # Most runs ask for few of these: none is made before it is asked for.

    @property
    def topic(self) -> str:
        return self._topic.name

    @property
    def partition(self) -> int:
        return self._delivery.partition

    @property
    def event_id(self) -> str:
        return self.message.id

    @property
    def entry_id(self) -> str:
        return self._delivery.origin_id

    @property
    def key(self) -> str:
        return self.message.key

    @property
    def time(self) -> int:
        at = self.message.time_ms
        return entry_time_ms(self._delivery.origin_id) if at is None else at

    @property
    def attempt(self) -> int:
        return self._delivery.attempts + 1

    @property
    def headers(self) -> dict[str, str]:
        return self.message.headers

    @property
    def correlation_id(self) -> str:
        return self.message.correlation_id or self.message.id

    @property
    def idempotency_key(self) -> str:
        return f"{self._topic.name}:{self.group}:{self.message.id}"

    def publish(self, topic: HasSpec, event: Event, *, key: str | None = None, delay: float = 0) -> None:
        """Emit an event. It is published when this run succeeds and not at all when it fails; a repeat of the run
        emits it under the same id, so it stays one event. `delay` is in seconds, as for a topic's own `publish`.
        Raises PublishError for a delay that is none."""
        self.emitted.append(Emitted(topic.spec, event, key, delay_ms(delay)))

    @property
    def log(self) -> EventLogger:
        """A logger that knows which event this is."""
        about = {"topic": self.topic, "group": self.group, "event_id": self.event_id, "attempt": self.attempt}
        return EventLogger(logger, about)


class BatchContext:
    """One run of a batch. Events not named to `reject` or `retry` are done when the handler returns."""

    def __init__(self, events: Sequence[Event], context_of: Callable[[int], Context], state: Mapping[str, Any]) -> None:
        self._events = events
        self._context_of = context_of
        self._places: dict[int, int] = {}
        self.state = state
        self.contexts: dict[int, Context] = {}
        """Those that were asked for, by the `id` of their event."""
        self.rejected: dict[int, Reject] = {}
        self.retried: set[int] = set()

    def of(self, event: Event) -> Context:
        """The context of one event of the batch."""
        found = self.contexts.get(id(event))
        if found is None:
            found = self.contexts[id(event)] = self._context_of(self._place(event))
        return found

    def _place(self, event: Event) -> int:
        if not self._places:
            self._places = {id(one): place for place, one in enumerate(self._events)}
        try:
            return self._places[id(event)]
        except KeyError:
            raise ValueError(f"{type(event).__name__} is no event of this batch; pass the very object") from None

    def reject(self, event: Event, reason: str) -> None:
        """This event goes to the dead letters."""
        self.of(event)
        self.rejected[id(event)] = Reject(reason)

    def retry(self, event: Event) -> None:
        """This event runs again later; it counts as a failed attempt."""
        self.of(event)
        self.retried.add(id(event))
