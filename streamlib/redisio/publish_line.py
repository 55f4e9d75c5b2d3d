"""The way of events into one partition stream: batches, one under way at a time, each with its number."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable

from streamlib.errors import PublishError, RedisUnavailable, StreamlibError
from streamlib.keys import Keys
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.durability import DurableLane
from streamlib.redisio.failures import CLIENT_ERRORS, translate
from streamlib.redisio.publish_answer import Answers, name_of_outcome
from streamlib.redisio.publish_batch import Outcome, Waiting, args_of, keys_of
from streamlib.redisio.scripts import Arg, Script
from streamlib.topic import TopicSpec

BATCH_EVENTS = 500
BATCH_BYTES = 4 * 1024 * 1024

_publish = Script("publish")


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
        self._keys = keys.stream(topic.name, partition, topic.partitions)
        self._topic_len = topic_len
        self._answers = Answers(topic, partition, self._keys.stream, topic_len)
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
                size += sum(map(len, waiting.fields))
                if batch and size > BATCH_BYTES:
                    break
                batch.append(waiting)
            self._queue.popleft()
        return batch

    def _deliver(self, batch: list[Waiting], outcomes: list[Outcome], seconds: float) -> None:
        for waiting, outcome in zip(batch, outcomes, strict=True):
            waiting.order.put(waiting.index, outcome)
        for name, number in Counter(map(name_of_outcome, outcomes)).items():
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
            if attempt.answer is None:
                found = translate(error, self._redis.settings.url)
                if isinstance(found, RedisUnavailable):
                    self._give_up_older_than(started, found)
                return [_copy(found) for _ in batch]
            attempt.missing = f"the server could not be asked ({error})"
        if attempt.answer is None:
            overtaken = f"{self._keys.stream}: batch {self._sequence} was overtaken by a later one; it may be stored"
            return [PublishError(overtaken) for _ in batch]
        return self._answers.outcomes(batch, attempt.answer, attempt.missing)

    def _script_input(self, batch: list[Waiting]) -> tuple[list[str], list[Arg]]:
        window_ms = int(self._topic.dedup_window_s * 1000)
        args = [self._producer, self._sequence, self._topic_len, window_ms, len(batch), *args_of(batch, window_ms)]
        return keys_of(batch, self._keys, window_ms), args

    def _give_up_older_than(self, started: float, error: StreamlibError) -> None:
        """What waited for as long as the batch that was given up has waited long enough too."""
        while self._queue and self._queue[0].order.since <= started:
            waiting = self._queue.popleft()
            waiting.order.put(waiting.index, _copy(error))
            self._observe(self._topic.name, "error", 1, time.monotonic() - waiting.order.since)


class _Attempt:
    """One batch, sent as often as it takes."""

    def __init__(self, redis: RedisDoor, lane: DurableLane | None, keys: list[str], args: list[Arg]) -> None:
        self.answer: str | None = None
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
        self.answer = reply.decode() if reply is not None else None


def _copy(error: StreamlibError) -> StreamlibError:
    """An exception of its own for each caller: each gets its own traceback."""
    copy = type(error)(*error.args)
    copy.__cause__ = error.__cause__
    return copy
