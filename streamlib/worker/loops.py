"""Keeps background work going: each step again and again, through everything that Redis may answer."""

from __future__ import annotations

import asyncio
import enum
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

from streamlib.errors import RedisError
from streamlib.redisio.failures import CLIENT_ERRORS, error_code

logger = logging.getLogger(__name__)
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.05, 5.0

_CANCELS, _CANCEL_S = 10, 0.5

T = TypeVar("T")

Heal = Callable[[], Awaitable[None]]


class Never(enum.Enum):
    """What `unless` answers when it did not wait for the end."""

    NEVER = enum.auto()


NEVER = Never.NEVER


async def repeat(
    name: str,
    step: Callable[[], Awaitable[float]],
    *,
    heal: Heal,
    on_error: Callable[[str, Exception], None],
    stopping: Callable[[], bool] = bool,
) -> None:
    """Run `step` until cancelled, or until `stopping()` after a step; it returns the seconds to wait before the next.

    Errors of the client are reported and the step is tried again with backoff; NOGROUP calls `heal` first. Any other
    error is a bug and ends the loop, and with it the worker: a process must not look alive without this loop.
    """
    pause_s = _FIRST_PAUSE_S
    while not stopping():
        try:
            wait_s = await step()
            pause_s = _FIRST_PAUSE_S
        except CLIENT_ERRORS as error:
            on_error(name, error)
            logger.warning("loop_failed", extra={"loop": name, "error": str(error)})
            if error_code(error) == "NOGROUP":
                await _try_heal(name, heal, on_error)
            wait_s, pause_s = pause_s * random.uniform(0.5, 1.5), min(pause_s * 2, _LAST_PAUSE_S)
        await asyncio.sleep(wait_s)


async def end(tasks: Iterable[asyncio.Task[Any]], *, grace_s: float = 0.0) -> bool:
    """Let tasks end by themselves for a while, then cancel them; False if some do not even end then."""
    waiting = set(tasks)
    if grace_s and waiting:
        _, waiting = await asyncio.wait(waiting, timeout=grace_s)
    for _ in range(_CANCELS):  # more than once: a client inside a timeout of its own can swallow a cancellation
        for task in waiting:
            task.cancel()
        if waiting:
            _, waiting = await asyncio.wait(waiting, timeout=_CANCEL_S)
    for task in waiting:
        logger.error("task_does_not_end", extra={"task": task.get_name()})
    return not waiting


async def first_set(*events: asyncio.Event, timeout_s: float | None = None) -> None:
    """Wait until one of the events is set, at most `timeout_s`."""
    if any(event.is_set() for event in events):
        return
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def unless(work: Coroutine[Any, Any, T] | asyncio.Task[T], *events: asyncio.Event) -> T | Never:
    """The result of `work`, or NEVER when one of the events is set before; `work` is cancelled then."""
    task = work if isinstance(work, asyncio.Task) else asyncio.create_task(work)
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait({task, *waits}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else NEVER
    finally:
        for one in (task, *waits):
            await cancel(one)


async def cancel(task: asyncio.Task[Any]) -> None:
    """End a task whose result nobody wants any more, also one that has failed."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()


async def _try_heal(name: str, heal: Heal, on_error: Callable[[str, Exception], None]) -> None:
    try:
        await heal()
    except (*CLIENT_ERRORS, RedisError) as error:
        on_error(name, error)
