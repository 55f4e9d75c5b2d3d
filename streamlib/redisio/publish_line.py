"""The way of events into one partition stream: batches, one under way at a time, each with its number."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable
from typing import cast

from msgspec import Struct

from streamlib.codec import Fields
from streamlib.errors import (
    IdempotencyConflict,
    NotConfirmed,
    PublishError,
    RedisUnavailable,
    StreamlibError,
    TopicFull,
)
from streamlib.keys import Keys
from streamlib.message import Position
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.durability import DurableLane
from streamlib.redisio.failures import CLIENT_ERRORS, translate
from streamlib.redisio.later import pack
from streamlib.redisio.scripts import Arg, Script
from streamlib.topic import TopicSpec

BATCH_EVENTS = 500
BATCH_BYTES = 4 * 1024 * 1024

_publish = Script("publish")


class Sent(Struct, frozen=True):
    """Stored: where. A `duplicate` was there before, under the same id and with the same content."""

    position: Position
    duplicate: bool


Outcome = Sent | StreamlibError


class Order:
    """What one caller waits for: an outcome for each of its messages."""

    def __init__(self, size: int) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._outcomes: list[Outcome | None] = [None] * size
        self._missing = size

    def put(self, index: int, outcome: Outcome) -> None:
        self._outcomes[index] = outcome
        self._missing -= 1
        if not self._missing and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: BaseException | None) -> None:
        """End the wait without outcomes: with this error, or cancelled."""
        if error is None:
            self.done.cancel()
        elif not self.done.done():
            self.done.set_exception(error)

    def outcomes(self) -> list[Outcome]:
        return cast("list[Outcome]", self._outcomes)


class Waiting(Struct, frozen=True, eq=False):
    """One message on its way; `since` is when it was accepted (monotonic seconds)."""

    order: Order
    index: int
    event_id: str
    type: str
    fields: Fields
    digest: bytes
    since: float
    delay_ms: int = 0

    @property
    def size(self) -> int:
        return sum(map(len, self.fields))


class Line:
    """One partition stream of one publisher.

    The producer id is the line's own and its batches are numbered, so the script knows a batch that comes
    twice. That is why the next one leaves only when this one has its answer, or was given up.
    """

    def __init__(
        self,
        redis: RedisDoor,
        keys: Keys,
        topic: TopicSpec,
        partition: int,
        topic_len: int,
        observe: Callable[[str, str, int, float], None],
    ) -> None:
        self.task: asyncio.Task[None] | None = None
        self._redis = redis
        self._topic = topic
        self._partition = partition
        self._keys = keys.stream(topic.name, partition, topic.partitions)
        self._topic_len = topic_len
        self._observe = observe
        self._producer = uuid.uuid4().hex
        self._sequence = 0
        self._queue: deque[Waiting] = deque()
        self._under_way: list[Waiting] = []
        self._lane: DurableLane | None = None
        if topic.durability != "primary":
            # Shorter than the connection's own timeout: a late confirmation must not look like a lost answer.
            timeout_ms = max(int(redis.settings.timeout_s * 800), 1)
            lane = redis.lane(self._keys.stream)
            self._lane = DurableLane(lane, topic.durability, timeout_ms, settled=redis.settled)

    @property
    def busy(self) -> bool:
        return self.task is not None and not self.task.done()

    def add(self, waiting: Waiting) -> None:
        """Let this message go with the next batch."""
        self._queue.append(waiting)
        if not self.busy:
            self.task = asyncio.create_task(self._run(), name=f"publish {self._keys.stream}")
            self.task.add_done_callback(self._ended)

    async def close(self) -> None:
        if self._lane is not None:
            await self._lane.close()

    async def _run(self) -> None:
        while batch := self._take():
            self._under_way = batch
            started = time.monotonic()
            outcomes = await self._store(batch)
            self._under_way = []
            self._deliver(batch, outcomes, time.monotonic() - started)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Leave no caller waiting for a loop that was ended from outside, or by a bug, which they hear of."""
        error = None if task.cancelled() else task.exception()
        if error is None and not task.cancelled():
            return
        for waiting in (*self._under_way, *self._queue):
            waiting.order.fail(error)
        self._under_way = []
        self._queue.clear()

    def _take(self) -> list[Waiting]:
        """The next batch; messages whose caller has gone away stay behind."""
        batch: list[Waiting] = []
        size = 0
        while self._queue and len(batch) < BATCH_EVENTS:
            waiting = self._queue[0]
            if not waiting.order.done.cancelled():
                size += waiting.size
                if batch and size > BATCH_BYTES:
                    break
                batch.append(waiting)
            self._queue.popleft()
        return batch

    def _deliver(self, batch: list[Waiting], outcomes: list[Outcome], seconds: float) -> None:
        for waiting, outcome in zip(batch, outcomes, strict=True):
            waiting.order.put(waiting.index, outcome)
        for name, number in Counter(map(_name, outcomes)).items():
            self._observe(self._topic.name, name, number, seconds)

    async def _store(self, batch: list[Waiting]) -> list[Outcome]:
        """The outcomes of a batch. Sends it until it is answered or `redis.retry_s` have passed."""
        self._sequence += 1
        started = time.monotonic()
        keys, args = self._script_input(batch)
        attempt = _Attempt(self._redis, self._lane, keys, args)
        try:
            await self._redis.persist(attempt.run, give_up_s=self._redis.settings.retry_s)
        except (*CLIENT_ERRORS, StreamlibError) as error:
            if attempt.words is None:
                found = translate(error, self._redis.settings.url)
                if isinstance(found, RedisUnavailable):
                    self._give_up_older_than(started, found)
                return [_copy(found) for _ in batch]
            attempt.missing = f"the server could not be asked ({error})"
        if attempt.words is None:
            overtaken = f"{self._keys.stream}: batch {self._sequence} was overtaken by a later one; it may be stored"
            return [PublishError(overtaken) for _ in batch]
        return [
            self._outcome(waiting, word, attempt.missing) for waiting, word in zip(batch, attempt.words, strict=True)
        ]

    def _script_input(self, batch: list[Waiting]) -> tuple[list[str], list[Arg]]:
        window_ms = int(self._topic.dedup_window_s * 1000)
        keys = [self._keys.stream, self._keys.producers(), self._keys.later(), self._keys.later_body()]
        args: list[Arg] = [self._producer, self._sequence, self._topic_len, window_ms, len(batch)]
        for waiting in batch:
            if window_ms:
                keys.append(self._keys.dedup(waiting.event_id))
                args.append(waiting.digest)
            if waiting.delay_ms:
                args += (waiting.delay_ms, 2, waiting.event_id, pack(waiting.fields))
            else:
                args += (0, len(waiting.fields), *waiting.fields)
        return keys, args

    def _give_up_older_than(self, started: float, error: StreamlibError) -> None:
        """What waited for as long as the batch that was given up has waited long enough too."""
        while self._queue and self._queue[0].since <= started:
            waiting = self._queue.popleft()
            waiting.order.put(waiting.index, _copy(error))
            self._observe(self._topic.name, "error", 1, time.monotonic() - waiting.since)

    def _outcome(self, waiting: Waiting, word: str, missing: str) -> Outcome:
        stream, what = self._keys.stream, f"{waiting.type} {waiting.event_id}"
        if word == "F":
            return TopicFull(
                f"{what} was not stored: {stream} holds limits.topic_len = {self._topic_len} entries, delayed "
                "ones included; let "
                "its groups catch up and retention trim it, or raise limits.topic_len"
            )
        if word[0] == "#":
            return IdempotencyConflict(
                f"{what}: {stream} has {_place(word[1:])} with this event id and another content; nothing was stored"
            )
        if word[0] == "!":
            return PublishError(f"{what}: {stream} refused it: {word[1:].replace('_', ' ')}")
        duplicate = word[0] == "="
        entry_id = word[1:] if duplicate else word
        if entry_id[0] == "@":  # it waits; what its entry is going to be called nobody knows yet
            entry_id = ""
        if missing:
            return NotConfirmed(
                f"{what} is stored as {stream} {entry_id or '(delayed)'} on the primary, but durability="
                f"{self._topic.durability!r} was not reached: {missing}; publishing it again under its id is "
                "safe"
            )
        return Sent(Position(self._topic.name, self._partition, entry_id), duplicate)


class _Attempt:
    """One batch, sent as often as it takes."""

    def __init__(self, redis: RedisDoor, lane: DurableLane | None, keys: list[str], args: list[Arg]) -> None:
        self.words: list[str] | None = None
        self.missing = ""
        self._redis = redis
        self._lane = lane
        self._keys = keys
        self._args = args

    async def run(self) -> None:
        if self._lane is None:
            self._read(await _publish.run(self._redis, self._keys, self._args))
            return
        await self._lane.begin()
        self._read(await _publish.run(self._lane, self._keys, self._args))
        self.missing = await self._lane.confirm()

    def _read(self, reply: bytes | None) -> None:
        self.words = reply.decode().split(" ") if reply is not None else None


def _copy(error: StreamlibError) -> StreamlibError:
    """An exception of its own for each caller: each gets its own traceback."""
    copy = type(error)(*error.args)
    copy.__cause__ = error.__cause__
    return copy


def _place(word: str) -> str:
    return "a delayed event" if word[0] == "@" else word


def _name(outcome: Outcome) -> str:
    if isinstance(outcome, Sent):
        return "duplicate" if outcome.duplicate else "stored"
    if isinstance(outcome, TopicFull):
        return "full"
    if isinstance(outcome, IdempotencyConflict):
        return "conflict"
    if isinstance(outcome, NotConfirmed):
        return "not_confirmed"
    return "error"
