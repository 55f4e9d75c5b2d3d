"""From received entries to typed events; what cannot become one is an outcome, not an exception."""

from __future__ import annotations

import logging
import random
import time

from streamlib.errors import DecodeError, SchemaError, UnknownType
from streamlib.event import Event, stored_name
from streamlib.message import ENVELOPE_BYTES, Message
from streamlib.redisio.dead_letter import Failure, Reason
from streamlib.redisio.reader import Received
from streamlib.redisio.settler import park
from streamlib.topic import TopicSpec
from streamlib.worker.outcomes import bury_as_dead
from streamlib.worker.work import NO_HANDLER, Ended, Group

logger = logging.getLogger(__name__)
_PARK_FIRST_MS, _PARK_CAP_MS = 1_000, 60_000
_HAND_OVER_FIRST_MS, _HAND_OVER_CAP_MS = 250, 10_000


def too_large(message: Message, size: int, payload_bytes: int) -> DecodeError:
    """The error of an entry of `size` bytes that is beyond the limits, by its data or by all its fields."""
    return DecodeError(
        f"{message.type} {message.id} has {len(message.data)} bytes of data and {size} in all its fields; "
        f"limits.payload_bytes is {payload_bytes}"
    )


class Decoding:
    """Decodes for one group. Unknown types are parked for up to `unknown_ttl_s`, or go by the topic's rule.

    A version above those that are known is parked whatever the rule: newer workers are on their way.
    """

    def __init__(self, topic: TopicSpec, group: Group, payload_bytes: int, unknown_ttl_s: float) -> None:
        self._topic = topic
        self._group = group
        self._payload_bytes, self._entry_bytes = payload_bytes, payload_bytes + ENVELOPE_BYTES
        self._unknown_ttl_s = unknown_ttl_s

    def class_of(self, received: Received) -> type[Event] | UnknownType | None:
        """The event's class, or why there is none; None where not even the envelope could be read."""
        if received.message is None:
            return None
        try:
            return self._topic.registry.find(received.message.type, received.message.version)
        except UnknownType as error:
            return error

    def decode(self, received: Received, handler: str) -> Event | Ended:
        """The typed event, or its end among the dead letters."""
        message = received.message
        if message is None:
            return self.bury(received, Failure.of("decode", _no_event(received)), handler)
        if len(message.data) > self._payload_bytes or received.delivery.size > self._entry_bytes:
            error = too_large(message, received.delivery.size, self._payload_bytes)
            return self.bury(received, Failure.of("decode", error), handler)
        try:
            return self._topic.decode(message)
        except Exception as error:  # noqa: BLE001 - classes run code of their own (__post_init__), codecs may be foreign
            reason: Reason = "schema" if isinstance(error, SchemaError) else "decode"
            return self.bury(received, Failure.of(reason, error), handler)

    def unreadable(self, received: Received, elsewhere: frozenset[str]) -> Ended:
        """The end of an entry that is no event, or whose type nobody here handles; `elsewhere` are the types
        and versions that only other live workers of the group handle."""
        message, delivery = received.message, received.delivery
        if message is None:
            return self.bury(received, Failure.of("decode", _no_event(received)))
        found, now_ms = self.class_of(received), int(time.time() * 1000)
        known = found if isinstance(found, UnknownType) else None
        error = known or UnknownType(f"{message.type} is handled by this group, but not by this worker")
        others = stored_name(message.type, message.version) in elsewhere
        newer = self._topic.registry.is_newer(message.type, message.version)
        expired = delivery.parked_ms and now_ms - delivery.parked_ms > self._unknown_ttl_s * 1000
        may_bury = self._topic.unknown == "dead-letter" and not others and not newer
        if expired or (known is not None and may_bury):
            return self.bury(received, Failure.of("unknown_type", error))
        waited_ms = now_ms - delivery.parked_ms if delivery.parked_ms else 0
        backoff_ms = min(max(waited_ms, _PARK_FIRST_MS), _PARK_CAP_MS)
        hand_over_ms = min(max(waited_ms // 16, _HAND_OVER_FIRST_MS), _HAND_OVER_CAP_MS)
        # Jitter, or two workers whose reads beat in step would hand the same events to each other for ever.
        delay_ms = int((hand_over_ms if others else backoff_ms) * random.uniform(0.5, 1.5))
        logger.log(
            logging.INFO if others else logging.WARNING,
            "parked",
            extra={
                "topic": self._group.topic, "group": self._group.group, "event_id": delivery.event_id,
                "delay_ms": delay_ms, "error": str(error),
            },
        )  # fmt: skip
        return Ended(
            park(delivery, delay_ms=delay_ms, now_ms=now_ms, error=str(error)),
            "released",
            elsewhere=others,
        )

    def bury(self, received: Received, failure: Failure, handler: str = NO_HANDLER) -> Ended:
        """The end of an event that is not run (any more)."""
        return bury_as_dead(received.delivery, failure, self._group, handler, received.delivery.attempts)


def _no_event(received: Received) -> DecodeError:
    return received.error or DecodeError(f"entry {received.delivery.entry_id} is no event")
