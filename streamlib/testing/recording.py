"""Hears of every run that failed: wraps the handlers of an app, for their errors are not kept in Redis.

Retries of ordered groups are made to come at once here too: they wait in their owner's memory, out of reach for a test.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from streamlib.errors import RetryLater
from streamlib.event import Event, event_type
from streamlib.retry import Retry
from streamlib.worker.context import BatchContext, Context
from streamlib.worker.handlers import Function, GroupSpec, HandlerSpec


class Failed(Struct, frozen=True):
    """One run of one event that did not succeed."""

    topic: str
    group: str
    event_id: str
    type: str
    attempt: int
    error: str


def recorded(spec: GroupSpec, failures: list[Failed]) -> GroupSpec:
    """The same group, whose handlers note failed runs in `failures`; they run as before, ordered ones again without
    delay, and without a breaker: its pauses are of the clock's, and a test waits for none."""
    handlers = tuple(_recorded_handler(spec, handler, failures) for handler in spec.handlers)
    return GroupSpec(spec.topic, spec.group, handlers)


def _recorded_handler(spec: GroupSpec, handler: HandlerSpec, failures: list[Failed]) -> HandlerSpec:
    def note(event: Event, context: Context, error: str) -> None:
        name, at = event_type(type(event)), context
        failures.append(Failed(spec.topic.name, spec.group, at.event_id, name, at.attempt, error))

    def raised(what: Any, context: Any, error: BaseException) -> None:
        text = f"{type(error).__name__}: {error}".removesuffix(": ")
        if isinstance(error, asyncio.CancelledError):
            text = f"cancelled: its timeout is {handler.timeout_s:g} s"
        if not handler.is_batch:
            note(what, context, text)
        elif len(what) == 1:  # a batch that raises is run again event by event
            note(what[0], context.of(what[0]), text)

    def returned(what: Any, context: Any) -> None:
        if handler.is_batch:
            _note_marked(what, context)

    def _note_marked(events: Sequence[Event], batch: BatchContext) -> None:
        for event in events:
            if id(event) in batch.rejected:
                note(event, batch.of(event), f"Reject: {batch.rejected[id(event)]}")
            elif id(event) in batch.retried:
                note(event, batch.of(event), "the batch handler asked to run it again")

    wrap, ordered = _async if handler.is_async else _sync, handler.ordering == "key"
    function = wrap(handler.function, handler.takes_context, raised, returned)
    at_once = Retry(max_attempts=handler.retry.max_attempts, base=0, cap=0)
    return msgspec.structs.replace(
        handler,
        function=wrap(function, True, _come_at_once, _ignore) if ordered else function,
        takes_context=True,
        retry=at_once if ordered else handler.retry,
        breaker=None,
    )


def _come_at_once(what: Any, context: Any, error: BaseException) -> None:
    if isinstance(error, RetryLater):
        raise RetryLater(0, str(error)) from error


def _ignore(what: Any, context: Any) -> None:
    """Only failures matter."""


def _async(function: Function, takes_context: bool, raised: Function, returned: Function) -> Function:
    @functools.wraps(function)
    async def run(what: Any, context: Any) -> Any:
        try:
            result = await (function(what, context) if takes_context else function(what))
        except BaseException as error:
            raised(what, context, error)
            raise
        returned(what, context)
        return result

    return run


def _sync(function: Function, takes_context: bool, raised: Function, returned: Function) -> Function:
    @functools.wraps(function)
    def run(what: Any, context: Any) -> Any:
        try:
            result = function(what, context) if takes_context else function(what)
        except BaseException as error:
            raised(what, context, error)
            raise
        returned(what, context)
        return result

    return run
