"""Runs handlers and turns whatever they do into exactly one outcome per event."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor as Threads
from typing import Any

from streamlib.codec import Fields
from streamlib.errors import PublishError, RedisError, Reject, RetryLater, StreamlibError
from streamlib.message import Message
from streamlib.redisio.dead_letter import Failure, Reason
from streamlib.redisio.publisher import Publisher
from streamlib.redisio.settler import bury, done, give_back, retry
from streamlib.topic import TopicSpec
from streamlib.worker.context import BatchContext, Context
from streamlib.worker.handlers import Function, HandlerSpec
from streamlib.worker.work import Ended, Group, Work

logger = logging.getLogger(__name__)
_EMITTED = uuid.UUID("5b0a3c52-3d5e-5d0c-9f0e-6f0f5f2a9d11")


class HandlerReturned(StreamlibError):
    """A handler returned something; success is None, failure is an exception."""


class HandlerTimeout(StreamlibError):
    """A run took longer than the handler's timeout."""


class Executor:
    """Runs the handlers of one group in one process."""

    def __init__(
        self,
        topic: TopicSpec,
        group: Group,
        publisher: Publisher,
        state: Mapping[str, Any],
        threads: Threads,
        rng: random.Random,
    ) -> None:
        self._topic = topic
        self._group = group
        self._publisher = publisher
        self._state = state
        self._threads = threads
        self._rng = rng

    async def run(self, work: Work) -> Ended | None:
        """One event through its handler; None where nothing may be recorded (claim lost, or its code still runs)."""
        if work.handler.is_batch:
            return (await self.run_batch([work]))[0]
        context = self._context(work)
        arguments = (work.event, context) if work.handler.takes_context else (work.event,)
        started = time.perf_counter()
        try:
            await self._call(work.handler, arguments)
            emitted = await self._emit(context)
        except BaseException as error:  # noqa: BLE001 - every ending of user code becomes an outcome
            if _is_cancelled(error):
                return self._cancelled(work)
            return self._failed(work, error, time.perf_counter() - started)
        return self._done(work, emitted, time.perf_counter() - started)

    async def run_batch(self, works: Sequence[Work]) -> list[Ended | None]:
        """Events of one batch handler together; if that raises, each alone, so that one cannot fail the others."""
        contexts = [(work.event, self._context(work)) for work in works]
        batch = BatchContext(contexts, self._state)
        handler = works[0].handler
        events = [work.event for work in works]
        started = time.perf_counter()
        try:
            await self._call(handler, (events, batch) if handler.takes_context else (events,))
        except BaseException as error:  # noqa: BLE001 - every ending of user code becomes an outcome
            if _is_cancelled(error):
                return [self._cancelled(work) for work in works]
            seconds = time.perf_counter() - started
            if len(works) == 1 or handler.rerun == "never":
                return [self._failed(work, error, seconds) for work in works]
            reason = Failure.of("max_attempts", error).error
            logger.info("batch_split", extra={"handler": handler.name, "events": len(works), "error": reason})
            return [(await self.run_batch([work]))[0] for work in works]
        seconds = (time.perf_counter() - started) / len(works)
        return [
            await self._end_one(work, context, batch, seconds)
            for work, (_, context) in zip(works, contexts, strict=True)
        ]

    async def _end_one(self, work: Work, context: Context, batch: BatchContext, seconds: float) -> Ended | None:
        rejected = batch.rejected.get(id(work.event))
        if rejected is not None:
            return self._failed(work, rejected, seconds)
        if id(work.event) in batch.retried:
            return self._failed(work, StreamlibError("the batch handler asked to run it again"), seconds)
        try:
            return self._done(work, await self._emit(context), seconds)
        except BaseException as error:  # noqa: BLE001 - what was emitted is user code's too; the batch has other events
            return self._cancelled(work) if _is_cancelled(error) else self._failed(work, error, seconds)

    async def _call(self, handler: HandlerSpec, arguments: tuple[Any, ...]) -> None:
        if handler.is_async:
            result = await self._call_async(handler, arguments)
        else:
            result = await self._call_in_thread(handler, arguments)
        if result is not None:
            raise HandlerReturned(
                f"{handler.name} returned {type(result).__name__}; handlers return None: raise Reject to dead-letter "
                "an event, RetryLater or any other error to run it again"
            )

    async def _call_async(self, handler: HandlerSpec, arguments: tuple[Any, ...]) -> Any:
        """Cancelled at the timeout; this returns when the coroutine has really ended, whatever it swallows."""
        timeout = asyncio.timeout(handler.timeout_s)
        try:
            async with timeout:
                return await handler.function(*arguments)
        except TimeoutError as error:
            if timeout.expired():
                raise _timed_out(handler) from error
            raise

    async def _call_in_thread(self, handler: HandlerSpec, arguments: tuple[Any, ...]) -> Any:
        """A thread cannot be stopped: past the timeout its claim is kept until it ends by itself."""
        loop = asyncio.get_running_loop()
        context = contextvars.copy_context()  # threads are used again: the next event must not see this one's variables
        future = loop.run_in_executor(self._threads, context.run, _guarded, handler.function, arguments)
        _, running = await asyncio.wait({future}, timeout=handler.timeout_s)
        if running:
            logger.error("handler_overran", extra={"handler": handler.name, "timeout_s": handler.timeout_s})
            await asyncio.wait({future})
        result, error = future.result()
        if error is not None:
            raise error
        return result

    async def _emit(self, context: Context) -> list[Fields]:
        """Publish what goes elsewhere; the fields of what joins this very stream are settled with the ack.

        Ids derive from (event id, group, n): a repeat of this run emits the same events, not more.
        """
        here: list[Fields] = []
        elsewhere: dict[str, tuple[TopicSpec, list[Message]]] = {}
        for n, (topic, event, key) in enumerate(context.emitted):
            event_id = str(uuid.uuid5(_EMITTED, f"{context.event_id}\0{self._group.group}\0{n}"))
            message = topic.message(
                event,
                event_id=event_id,
                key=key,
                correlation_id=context.correlation_id,
                causation_id=context.event_id,
            )
            if topic.name == self._topic.name and topic.partition_of(message) == context.partition:
                here.append(self._publisher.encode(topic, message))
            else:
                elsewhere.setdefault(topic.name, (topic, []))[1].append(message)
        for topic, messages in elsewhere.values():
            for sent in await self._publisher.send(topic, messages):
                if isinstance(sent, PublishError):
                    raise sent
        return here

    def _context(self, work: Work) -> Context:
        return Context(self._topic, self._group.group, work.delivery, work.message, self._state)

    def _done(self, work: Work, emitted: list[Fields], seconds: float) -> Ended:
        attempts = work.delivery.attempts + 1
        return Ended(done(work.delivery, emitted), "ok", work.handler.name, seconds, attempts=attempts)

    def _cancelled(self, work: Work) -> Ended | None:
        """Cancelled by us: the claim was lost, or the worker stops and others shall run the event at once."""
        if work.lost or not work.handler.is_async:
            return None
        if work.handler.rerun == "never":
            error = StreamlibError("the worker stopped while it ran, and its handler must not run twice")
            return self._bury(work, Failure.of("outcome_unknown", error), None)
        return Ended(give_back(work.delivery, claimed=True), "released", work.handler.name)

    def _failed(self, work: Work, error: BaseException, seconds: float) -> Ended:
        policy, attempts = work.handler.retry, work.delivery.attempts + 1
        not_its_fault = isinstance(error, PublishError) and isinstance(error.__cause__, RedisError)
        if not_its_fault and work.handler.rerun != "never":
            return Ended(give_back(work.delivery, claimed=True), "released", work.handler.name)
        if isinstance(error, Reject | HandlerReturned):
            return self._bury(work, Failure.of("rejected", error), seconds)
        last = attempts >= policy.max_attempts
        if last or work.handler.rerun == "never":
            reason: Reason = "max_attempts" if last else "outcome_unknown"
            return self._bury(work, Failure.of(reason, error), seconds)
        asked_s = error.delay if isinstance(error, RetryLater) else None
        delay_ms = policy.delay_ms(attempts, self._rng) if asked_s is None else int(asked_s * 1000)
        settlement = retry(work.delivery, delay_ms=delay_ms, attempts=attempts, now_ms=int(time.time() * 1000))
        failure = Failure.of("max_attempts", error)
        logger.info(
            "retry_scheduled",
            extra={
                "handler": work.handler.name, "event_id": work.delivery.event_id, "attempt": attempts,
                "delay_ms": delay_ms, "error": failure.error,
            },
        )  # fmt: skip
        return Ended(settlement, "retry", work.handler.name, seconds, failure, attempts)

    def _bury(self, work: Work, failure: Failure, seconds: float | None) -> Ended:
        attempts = work.delivery.attempts + 1
        return bury_as_dead(work.delivery, failure, self._group, work.handler.name, attempts, seconds)


def bury_as_dead(
    delivery: Any, failure: Failure, group: Group, handler: str, attempts: int, seconds: float | None = None
) -> Ended:
    """The outcome that puts a delivery among the dead letters, said in the log too."""
    settlement = bury(
        delivery,
        failure,
        attempts=attempts,
        group=group.group,
        consumer=group.consumer,
        now_ms=int(time.time() * 1000),
    )
    logger.warning(
        "dead_lettered",
        extra={
            "topic": group.topic, "group": group.group, "handler": handler, "event_id": delivery.event_id,
            "entry_id": delivery.origin_id, "reason": failure.reason, "error": failure.error,
        },
    )  # fmt: skip
    return Ended(settlement, "dead", handler, seconds, failure, attempts)


def _is_cancelled(error: BaseException) -> bool:
    """Whether we cancelled this lane; a CancelledError that user code made up is an error like others."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


def _timed_out(handler: HandlerSpec) -> HandlerTimeout:
    return HandlerTimeout(f"{handler.name} ran for more than its timeout of {handler.timeout_s:g} s")


def _guarded(function: Function, arguments: tuple[Any, ...]) -> tuple[Any, BaseException | None]:
    """Runs in the thread. The error travels as a value: futures cannot carry every exception (StopIteration)."""
    try:
        return function(*arguments), None
    except BaseException as error:  # noqa: BLE001 - every ending of user code becomes an outcome
        return None, error
