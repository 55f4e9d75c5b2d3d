"""The event store: appends the events of an aggregate to its list and to the topic in one script."""

from __future__ import annotations

import asyncio
import secrets
import time
from binascii import b2a_base64
from collections.abc import Awaitable, Callable, Sequence

from msgspec import Struct

from streamlib.codec import Fields
from streamlib.errors import ConcurrencyConflict, NotConfirmed, PayloadTooLarge, PublishError, StreamlibError, TopicFull
from streamlib.keys import Keys
from streamlib.message import Message, Position
from streamlib.redisio.aggregate_reader import AggregateReader, AnsweredBefore
from streamlib.redisio.append_args import args_of
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.durability import DurableLane
from streamlib.redisio.failures import CLIENT_ERRORS, translate
from streamlib.redisio.publisher import Observe
from streamlib.redisio.scripts import Arg, Script
from streamlib.settings import LimitSettings
from streamlib.topic import TopicSpec, checked_id

_append = Script("append")

BATCH_EVENTS = 500
BATCH_BYTES = 16 * 1024 * 1024
MAX_VERSION = (1 << 53) - 1
"""Above it a script's numbers are not exact."""

Encode = Callable[[TopicSpec, Message], Fields]


class Answer(Struct, frozen=True):
    """The answer of a command, kept with the events under its idempotency key for `ttl_ms`."""

    key: str
    value: bytes
    ttl_ms: int


class Appended(Struct, frozen=True):
    """Where events are stored. `version` is the aggregate's with the last of them; `repeated` tells that the same
    commit had stored them before."""

    version: int
    positions: list[Position]
    repeated: bool


class _Append(Struct, frozen=True):
    """One append as it is sent, however often."""

    topic: TopicSpec
    aggregate_id: str
    partition: int
    stream: str
    expected: int
    count: int
    keys: list[str]
    args: list[Arg]

    @property
    def what(self) -> str:
        return _what(self.topic, self.aggregate_id)


class EventStore(AggregateReader):
    """Appends to and reads from the aggregates of any topic; one per event loop, for any number of tasks."""

    def __init__(
        self, redis: RedisDoor, keys: Keys, limits: LimitSettings, encode: Encode, *, observe: Observe | None = None
    ) -> None:
        super().__init__(redis, keys)
        self._limits = limits
        self._encode = encode
        self._observe = observe
        self._lanes: dict[str, tuple[DurableLane, asyncio.Lock]] = {}

    async def append(
        self,
        topic: TopicSpec,
        aggregate_id: str,
        expected: int,
        messages: Sequence[Message],
        *,
        commit_id: str | None = None,
        answer: Answer | None = None,
    ) -> Appended:
        """Store events as the versions after `expected` and publish them: all of them or none.

        The same events sent again under one `commit_id` are stored once, and the first answer comes back. Raises
        ConcurrencyConflict when the aggregate has another version, AnsweredBefore, TopicFull, PayloadTooLarge,
        NotConfirmed (stored, but not as durably as asked; append again under the same commit id), PublishError for
        what cannot be stored, WrongKeyType, and RedisUnavailable (then the outcome is unknown).
        """
        started, outcome = time.monotonic(), "error"
        try:
            append = self._prepare(topic, aggregate_id, expected, messages, commit_id or new_commit_id(), answer)
            send = self._send if topic.durability == "primary" else self._send_durably
            appended = self._read_reply(append, await send(append), answer)
            outcome = "duplicate" if appended.repeated else "stored"
        except StreamlibError as error:
            outcome = _outcome_of(error)
            raise
        finally:
            if self._observe is not None and messages:
                self._observe(topic.name, outcome, len(messages), time.monotonic() - started)
        return appended

    async def confirm(self, topic: TopicSpec, aggregate_id: str, answer_key: str) -> None:
        """Return when the answer that was found under this key, and so its events, are as durable as the topic asks.

        Raises NotConfirmed, RedisUnavailable.
        """
        if topic.durability == "primary":
            return
        keys, partition = self._place(topic, aggregate_id)
        names = [keys.stream, keys.aggregate(aggregate_id), keys.later(), keys.answer(answer_key)]
        # An append that can only find the answer: it has no events, for a version that no aggregate reaches.
        args: list[Arg] = [MAX_VERSION, "-", 0, b"", 1, 0]
        await self._send_durably(_Append(topic, aggregate_id, partition, keys.stream, MAX_VERSION, 0, names, args))

    async def keep_snapshot(self, topic: TopicSpec, aggregate_id: str, snapshot: bytes) -> None:
        """Store a snapshot, as read_aggregate.lua reads it. Raises what the client raises."""
        keys, _ = self._place(topic, aggregate_id)
        await self._redis.execute("SET", keys.snapshot(aggregate_id), snapshot)

    async def close(self) -> None:
        """Close the connections on which confirmations are waited for."""
        lanes, self._lanes = self._lanes, {}
        for lane, _ in lanes.values():
            await lane.close()

    def _prepare(
        self,
        topic: TopicSpec,
        aggregate_id: str,
        expected: int,
        messages: Sequence[Message],
        commit_id: str,
        answer: Answer | None,
    ) -> _Append:
        """Everything that can be wrong with an append before it is sent. Raises PublishError, PayloadTooLarge."""
        keys, partition = self._place(topic, aggregate_id)
        checked_id("commit id", commit_id)
        if not commit_id.isascii() or commit_id.split() != [commit_id]:
            raise PublishError(f"{_what(topic, aggregate_id)}: commit id {commit_id!r} is not ASCII without spaces")
        if isinstance(expected, bool) or not 0 <= expected <= MAX_VERSION - BATCH_EVENTS:
            what = _what(topic, aggregate_id)
            raise PublishError(f"{what}: expected version {expected!r} is no version; 0 is that of a new aggregate")
        if not 1 <= len(messages) <= BATCH_EVENTS:
            found = "nothing to append" if not messages else f"{len(messages)} events in one append"
            raise PublishError(f"{_what(topic, aggregate_id)}: {found}; 1 to {BATCH_EVENTS} are allowed")
        for message in messages:
            if message.key != aggregate_id:
                what = _what(topic, aggregate_id)
                raise PublishError(f"{what}: {message.type} {message.id} has the key {message.key!r}, another id")
        events, size = args_of(self._encode(topic, message) for message in messages)
        if size > BATCH_BYTES:
            raise PayloadTooLarge(
                f"{_what(topic, aggregate_id)}: {size} bytes in one append; at most {BATCH_BYTES} are allowed, save "
                "more often"
            )
        answer_key, value, ttl_ms = (answer.key, answer.value, answer.ttl_ms) if answer else ("-", b"", 0)
        args = [expected, commit_id, self._limits.topic_len, value, ttl_ms, len(messages), *events]
        names = [keys.stream, keys.aggregate(aggregate_id), keys.later(), keys.answer(answer_key)]
        return _Append(topic, aggregate_id, partition, keys.stream, expected, len(messages), names, args)

    def _send(self, append: _Append) -> Awaitable[list[bytes]]:
        """The script's reply. Sent until Redis answers, for redis.retry_s."""
        return self._persist(lambda: _append.run(self._redis, append.keys, append.args))

    async def _send_durably(self, append: _Append) -> list[bytes]:
        """The same, once it is as durable as the topic asks."""
        attempt = _Attempt(*self._durable_lane(append), append)
        missing = ""
        try:
            missing = await self._redis.persist(attempt.run, give_up_s=self._redis.settings.retry_s)
        except (*CLIENT_ERRORS, StreamlibError) as error:
            if not attempt.reply:
                raise translate(error, self._redis.settings.url) from error
            missing = f"the server could not be asked ({error})"
        if missing:
            stored = f"version {append.expected + append.count}" if append.count else "the answer of a command"
            raise NotConfirmed(
                f"{append.what}: {stored} is stored on the primary, but durability="
                f"{append.topic.durability!r} was not reached: {missing}; the same commit id or idempotency key again "
                "is safe"
            )
        return attempt.reply

    def _durable_lane(self, append: _Append) -> tuple[DurableLane, asyncio.Lock]:
        found = self._lanes.get(append.stream)
        if found is None:
            # Shorter than the connection's own timeout: a late confirmation must not look like a lost answer.
            timeout_ms = max(int(self._redis.settings.timeout_s * 800), 1)
            lane = self._redis.lane(append.stream)
            durable = DurableLane(lane, append.topic.durability, timeout_ms, settled=self._redis.settled)
            found = self._lanes[append.stream] = (durable, asyncio.Lock())
        return found

    def _read_reply(self, append: _Append, reply: list[bytes], answer: Answer | None) -> Appended:
        word, *rest = reply
        if word in (b"+", b"="):
            positions = [Position(append.topic.name, append.partition, entry.decode()) for entry in rest]
            return Appended(append.expected + append.count, positions, word == b"=")
        if word == b"a" and answer is not None:
            raise AnsweredBefore(answer.key, rest[0])
        if word == b"v":
            raise _conflict(append, int(rest[0]))
        raise TopicFull(
            f"{append.what}: {append.count} events were not stored: {append.stream} holds limits.topic_len = "
            f"{self._limits.topic_len} entries, delayed ones included, or has no room for these; let its groups catch "
            "up and retention trim it, or raise limits.topic_len"
        )


class _Attempt:
    """An append that is to be confirmed, sent as often as it takes."""

    def __init__(self, lane: DurableLane, lock: asyncio.Lock, append: _Append) -> None:
        self.reply: list[bytes] = []
        self._lane = lane
        self._lock = lock
        self._append = append

    async def run(self) -> str:
        """What is missing of the durability asked for, "" for nothing."""
        async with self._lock:
            await self._lane.begin()
            self.reply = await _append.run(self._lane, self._append.keys, self._append.args)
            return await self._lane.confirm() if self.reply[0] in (b"+", b"=", b"a") else ""


def _what(topic: TopicSpec, aggregate_id: str) -> str:
    return f"topic {topic.name!r}, aggregate {aggregate_id!r}"


def new_commit_id() -> str:
    """Twelve characters, different from every other commit of the same aggregate."""
    return secrets.token_urlsafe(9)


def commit_id_of(first: Message) -> str:
    """The same for a commit whose first event has its id by `new_event_ids`: 69 of its bits are random."""
    return b2a_base64(bytes.fromhex(first.id.replace("-", "")[-18:]), newline=False).decode()


def _conflict(append: _Append, actual: int) -> ConcurrencyConflict:
    expected = append.expected
    why = (
        "another has saved it meanwhile; load it and decide again"
        if actual > expected
        else "there would be a gap; load it again"
    )
    return ConcurrencyConflict(
        f"{append.what}: expected version {expected}, but it has version {actual}: {why}", expected, actual
    )


def _outcome_of(error: StreamlibError) -> str:
    """As the metric of publishes has them."""
    if isinstance(error, PublishError):
        return {TopicFull: "full", NotConfirmed: "not_confirmed", PayloadTooLarge: "too_large"}.get(
            type(error), "refused"
        )
    if isinstance(error, AnsweredBefore):
        return "duplicate"
    return "conflict" if isinstance(error, ConcurrencyConflict) else "error"
