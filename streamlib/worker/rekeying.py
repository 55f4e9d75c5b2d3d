"""Republishes the events of a topic into one with another key: one handler, in a group of its own on the source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from streamlib.codec import Codec, FlatCodec, NativeCodec, RawCodec
from streamlib.errors import DeclarationError, IdempotencyConflict, PayloadTooLarge, PublishError, Reject
from streamlib.event import Event, event_version
from streamlib.message import Message, derived_id
from streamlib.redisio.publisher import Publisher
from streamlib.retry import Retry
from streamlib.topic import TopicSpec
from streamlib.worker.context import Context
from streamlib.worker.handlers import HandlerSpec

_AT_ONCE = 256
"""Copies under way at once in one process: those of one partition leave together, in one round trip."""

# A target that is full or refuses is for people to mend: until then the key waits, and nothing is given up.
_RETRY = Retry(max_attempts=1_000_000, base=0.2, cap=30.0)


def rekeyed(source: TopicSpec, *, key: str, to: str, partitions: int | None) -> TopicSpec:
    """The topic `to` with the same events under another key. Raises DeclarationError.

    It keeps no marks of published ids (`dedup_window_s`), whatever the source does: the only sender of copies is the
    rekey itself, and its repeats are dropped by every group of the target.
    """
    if to == source.name:
        raise DeclarationError(f"rekey of topic {source.name!r}: `to` is that very topic; give the copies a name")
    for cls in source.registry.classes:
        if key not in cls.__struct_fields__:
            raise DeclarationError(
                f"rekey of topic {source.name!r} into {to!r}: {cls.__name__} has no field {key!r} to be keyed by; "
                "give it one, or publish such events to a topic of their own"
            )
    return TopicSpec(
        name=to,
        registry=source.registry,
        key=key,
        partitions=source.partitions if partitions is None else partitions,
        codec=source.codec if _holds_ids(source.codec) else NativeCodec(),
        unknown=source.unknown,
        durability=source.durability,
    )


class Rekeying:
    """Copies one event at a time; those of one source key in stream order.

    The copy has an id of its own, the same for every run: what a crash repeats is a second entry with that id.
    """

    def __init__(self, source: TopicSpec, target: TopicSpec, publisher: Callable[[], Publisher]) -> None:
        self._source = source
        self._target = target
        self._publisher = publisher

    def handler(self) -> HandlerSpec:
        return HandlerSpec(
            name=f"rekey to {self._target.name}",
            function=self._republish,
            events=self._source.registry.classes,
            is_batch=False,
            is_async=True,
            takes_context=True,
            retry=_RETRY,
            concurrency=_AT_ONCE,
            ordering="none" if self._source.key is None else "key",
        )

    async def _republish(self, event: Event, ctx: Context) -> None:
        try:
            message = self._copy(event, ctx)
        except PublishError as error:
            raise Reject(f"no copy in {self._target.name!r}: {error}") from error
        (sent,) = await self._publisher().send(self._target, [message])
        if isinstance(sent, IdempotencyConflict | PayloadTooLarge):  # no other run would end otherwise
            raise Reject(str(sent)) from sent
        if isinstance(sent, PublishError):
            raise sent

    def _copy(self, event: Event, ctx: Context) -> Message:
        """The event as it was received, but for its id and key. What only its first entry told is said in it: when it
        happened, and by which id what follows from it belongs together. Raises PublishError for a key that is none."""
        changed: dict[str, Any] = {"key": self._target.checked_key(event)}
        origin = ctx.event_id
        if self._target.codec is not self._source.codec:
            changed["data"] = self._target.codec.encode(event)
            changed["version"] = event_version(type(event))  # of what was raised, that of its class
            origin = f"{ctx.partition}/{origin}"  # the ids are those of entries, and two partitions may have one twice
        return msgspec.structs.replace(
            ctx.message,
            id=derived_id(origin, ctx.group),
            time_ms=ctx.time,
            correlation_id=ctx.correlation_id,
            **changed,
        )


def _holds_ids(codec: Codec) -> bool:
    """Whether an entry keeps the id that a message brings; layouts of other programs have no place for it."""
    return not isinstance(codec, FlatCodec | RawCodec)
