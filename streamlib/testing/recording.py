"""Hears of every run that failed: wraps the handlers of an app, for their errors are not kept in Redis."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from streamlib.event import Event, event_type
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
    """The same group, whose handlers note failed runs in `failures`; they run as before."""
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

    wrap = _async if handler.is_async else _sync
    function = wrap(handler.function, handler.takes_context, raised, returned)
    return msgspec.structs.replace(handler, function=function, takes_context=True)


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
