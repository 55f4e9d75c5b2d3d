"""Runs handlers and turns whatever they do into exactly one outcome per event."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor as Threads
from typing import Any

from streamlib.codec import Fields
from streamlib.errors import PublishError, StreamlibError
from streamlib.message import Message, derived_id
from streamlib.redisio.dead_letter import Failure
from streamlib.redisio.publisher import Publisher
from streamlib.topic import TopicSpec
from streamlib.worker.context import BatchContext, Context
from streamlib.worker.handlers import Function, HandlerSpec
from streamlib.worker.outcomes import HandlerReturned, HandlerTimeout, Outcomes
from streamlib.worker.work import Ended, Group, OnEnd, Work

logger = logging.getLogger(__name__)

Follow = Callable[[Work], Work | None]
"""From a thread: this event's run simply succeeded; the next one to run, or None, and then no note was taken of that
end."""


class Executor:
    """Runs the handlers of one group in one process."""

    def __init__(
        self,
        topic: TopicSpec,
        group: Group,
        publisher: Publisher,
        state: Mapping[str, Any],
        threads: Threads,
        outcomes: Outcomes,
    ) -> None:
        self._topic = topic
        self._group = group
        self._publisher = publisher
        self._state = state
        self._threads = threads
        self._outcomes = outcomes

    async def run(self, works: list[Work], on_end: OnEnd, follow: Follow) -> None:
        """Run what a lane took: one event, or the events of one batch. `on_end` hears of each as it ends, with None
        where nothing may be recorded: the claim was lost, or its code still runs.

        A thread goes on with what `follow` gives it: then `works` holds the event that runs, and at last the one whose
        end `on_end` hears of here."""
        handler = works[0].handler
        if handler.is_batch:
            await self._run_batch(works, on_end)
            return
        try:
            if handler.is_async:
                context = self._context(works[0])
                await self._call(works[0], _arguments(handler, works[0].event, context))
            else:
                context = await self._run_in_thread(works, follow)
            ended = self.done(works[0], await self._emit(context) if context.emitted else ())
        except BaseException as error:  # noqa: BLE001 - every ending of user code becomes an outcome
            on_end(works[0], self._outcomes.of_error(works[0], error, works[0].seconds))
        else:
            on_end(works[0], ended)

    def done(self, work: Work, emitted: Sequence[Fields] = ()) -> Ended:
        """The outcome of a run that ended well."""
        return self._outcomes.done(work, emitted)

    async def _run_batch(self, works: Sequence[Work], on_end: OnEnd) -> None:
        first, handler = works[0], works[0].handler
        events = [work.event for work in works]  # kept beside what the handler gets, which may change its list
        batch = BatchContext(events, lambda place: self._context(works[place]), self._state)
        try:
            await self._call(first, _arguments(handler, list(events), batch))
        except BaseException as error:  # noqa: BLE001 - every ending of user code becomes an outcome
            if len(works) == 1 or handler.rerun == "never" or self._outcomes.is_ours(first, error):
                for work in works:
                    on_end(work, self._outcomes.of_error(work, error, first.seconds))
            else:
                await self._split(works, error, on_end)
            return
        seconds = first.seconds / len(works)
        for work in works:
            context = batch.contexts.get(id(work.event))
            if context is None:  # the handler said nothing of it
                on_end(work, self._outcomes.done(work, (), seconds))
            else:
                on_end(work, await self._end_one(work, context, batch, seconds))

    async def _split(self, works: Sequence[Work], error: BaseException, on_end: OnEnd) -> None:
        """A batch that raised: each of its events alone, so that one cannot fail the others; until so many have failed
        that no more may start."""
        reason = Failure.of("max_attempts", error).error
        logger.info("batch_split", extra={"handler": works[0].handler.name, "events": len(works), "error": reason})
        for work in works:
            if work.cancelled or work.lost or self._outcomes.circuit.open:
                on_end(work, None if work.lost else self._outcomes.unstarted(work))
            else:
                await self._run_batch([work], on_end)

    async def _end_one(self, work: Work, context: Context, batch: BatchContext, seconds: float) -> Ended | None:
        rejected = batch.rejected.get(id(work.event))
        if rejected is not None:
            return self._outcomes.of_error(work, rejected, seconds)
        if id(work.event) in batch.retried:
            asked = StreamlibError("the batch handler asked to run it again")
            return self._outcomes.of_error(work, asked, seconds)
        try:
            return self._outcomes.done(work, await self._emit(context) if context.emitted else (), seconds)
        except BaseException as error:  # noqa: BLE001 - what was emitted is user code's too; the batch has other events
            return self._outcomes.of_error(work, error, seconds)

    async def _call(self, work: Work, arguments: tuple[Any, ...]) -> None:
        """Returns when the handler has really ended. Its lane cancels a coroutine at its timeout, which may swallow
        that; a thread cannot be stopped, and its claim is kept until it ends by itself."""
        handler = work.handler
        work.timed_out, work.started = False, time.perf_counter()  # it may have run before, as one of a batch
        try:
            if handler.is_async:
                result = await handler.function(*arguments)
            else:
                result = await self._call_in_thread(handler.function, arguments)
        except asyncio.CancelledError as error:
            if work.timed_out and not (work.lost or work.cancelled):
                raise HandlerTimeout(
                    f"{handler.name} ran for more than its timeout of {handler.timeout_s:g} s"
                ) from error
            raise
        finally:
            work.seconds, work.started = time.perf_counter() - work.started, 0.0
            if work.timed_out:
                _uncancel()
        _check_returned(handler, result)

    async def _run_in_thread(self, works: list[Work], follow: Follow) -> Context:
        """The context of the last event that the thread ran; raises what that run raised."""
        loop, variables = asyncio.get_running_loop(), contextvars.copy_context()
        context, result, error = await loop.run_in_executor(self._threads, self._go_on, works, variables, follow)
        if error is not None:
            raise error
        _check_returned(works[0].handler, result)
        return context

    def _go_on(
        self, works: list[Work], variables: contextvars.Context, follow: Follow
    ) -> tuple[Context, Any, BaseException | None]:
        """In the thread: run one event after another while they simply succeed and others follow. Waking the event loop
        for each of them, and a thread for the next, costs more than most handlers do."""
        while True:
            work = works[0]
            context, handler = self._context(work), work.handler
            arguments = _arguments(handler, work.event, context)
            work.started = time.perf_counter()
            # Threads are used again: the next event must not see this one's variables.
            result, error = variables.copy().run(_guarded, handler.function, arguments)
            work.seconds, work.started = time.perf_counter() - work.started, 0.0
            plain = error is None and result is None and not context.emitted
            following = follow(work) if plain else None
            if following is None:
                return context, result, error
            works[0] = following

    async def _call_in_thread(self, function: Function, arguments: tuple[Any, ...]) -> Any:
        loop = asyncio.get_running_loop()
        context = contextvars.copy_context()  # threads are used again: the next event must not see this one's variables
        result, error = await loop.run_in_executor(self._threads, context.run, _guarded, function, arguments)
        if error is not None:
            raise error
        return result

    async def _emit(self, context: Context) -> list[Fields]:
        """Publish what goes elsewhere, or later; the fields of what joins this very stream are settled with the ack.

        Ids derive from (event id, group, n): a repeat of this run emits the same events, not more.
        """
        here: list[Fields] = []
        elsewhere: dict[str, tuple[TopicSpec, list[Message], list[int]]] = {}
        for n, one in enumerate(context.emitted):
            topic = one.topic
            message = topic.message(
                one.event,
                event_id=derived_id(context.event_id, self._group.group, n),
                key=one.key,
                correlation_id=context.correlation_id,
                causation_id=context.event_id,
            )
            same = topic.name == self._topic.name and topic.partition_of(message) == context.partition
            if same and not one.delay_ms:
                here.append(self._publisher.encode(topic, message))
            else:
                _, messages, delays_ms = elsewhere.setdefault(topic.name, (topic, [], []))
                messages.append(message)
                delays_ms.append(one.delay_ms)
        for topic, messages, delays_ms in elsewhere.values():
            for sent in await self._publisher.send(topic, messages, delays_ms=delays_ms):
                if isinstance(sent, PublishError):
                    raise sent
        return here

    def _context(self, work: Work) -> Context:
        return Context(self._topic, self._group.group, work.delivery, work.message, self._state)


def _arguments(handler: HandlerSpec, event: Any, context: Any) -> tuple[Any, ...]:
    return (event, context) if handler.takes_context else (event,)


def _check_returned(handler: HandlerSpec, result: Any) -> None:
    if result is not None:
        raise HandlerReturned(
            f"{handler.name} returned {type(result).__name__}; handlers return None: raise Reject to dead-letter "
            "an event, RetryLater or any other error to run it again"
        )


def _uncancel() -> None:
    """The cancellation of a run that took too long ends with it: what its lane runs next knows nothing of it."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        task.uncancel()


def _guarded(function: Function, arguments: tuple[Any, ...]) -> tuple[Any, BaseException | None]:
    """Runs in the thread. The error travels as a value: futures cannot carry every exception (StopIteration)."""
    try:
        return function(*arguments), None
    except BaseException as error:  # noqa: BLE001 - every ending of user code becomes an outcome
        return None, error
