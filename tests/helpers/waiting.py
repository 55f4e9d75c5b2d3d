"""Waiting for conditions: polls until something holds, and says what did not when it never does."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

from tests.helpers import recovery

T = TypeVar("T")

TIMEOUT_S = 15.0  # generous: a loaded two-core machine must not turn a slow answer into a failure
EVERY_S = 0.02


def wait_until(
    cond: Callable[[], T],
    timeout: float = TIMEOUT_S,
    every: float = EVERY_S,
    *,
    what: str | None = None,
    ignore: tuple[type[Exception], ...] = (),
) -> T:
    """Call `cond` until its answer is true and return that answer.

    `what` names the condition in the failure. Exceptions of the classes in `ignore` count as "not yet";
    any other goes straight up. Raises AssertionError after `timeout` seconds, with the last answer or
    exception.
    """
    deadline = time.monotonic() + timeout
    while True:
        last: object
        try:
            answer = cond()
            if answer:
                recovery.held()
                return answer
            last = answer
        except ignore as error:
            last = error
        if time.monotonic() >= deadline:
            raise AssertionError(_failure(cond, what, timeout, last))
        time.sleep(every)


@overload
async def eventually(
    cond: Callable[[], Awaitable[T]],
    timeout: float = ...,
    every: float = ...,
    *,
    what: str | None = ...,
    ignore: tuple[type[Exception], ...] = ...,
) -> T: ...
@overload
async def eventually(
    cond: Callable[[], T],
    timeout: float = ...,
    every: float = ...,
    *,
    what: str | None = ...,
    ignore: tuple[type[Exception], ...] = ...,
) -> T: ...
async def eventually(
    cond: Callable[[], Any],
    timeout: float = TIMEOUT_S,
    every: float = EVERY_S,
    *,
    what: str | None = None,
    ignore: tuple[type[Exception], ...] = (),
) -> Any:
    """`wait_until` inside a running event loop; `cond` may be a plain or a coroutine function.

    It leaves the loop as much time as a look takes: what is waited for may run on that very loop.
    """
    deadline = time.monotonic() + timeout
    while True:
        last: object
        looked = time.monotonic()
        try:
            result = cond()
            answer = await result if inspect.isawaitable(result) else result
            if answer:
                recovery.held()
                return answer
            last = answer
        except ignore as error:
            last = error
        if time.monotonic() >= deadline:
            raise AssertionError(_failure(cond, what, timeout, last))
        await asyncio.sleep(max(every, time.monotonic() - looked))


def _failure(cond: Callable[..., object], what: str | None, timeout: float, last: object) -> str:
    return f"not within {timeout:g} s: {what or _name(cond)}; last answer: {last!r}"


def _name(cond: Callable[..., object]) -> str:
    name: str = getattr(cond, "__qualname__", repr(cond))
    if "<lambda>" not in name:
        return name
    try:
        return " ".join(inspect.getsource(cond).split())
    except OSError:  # a lambda typed into an interpreter has no source
        return name
