"""What every handler does, whichever library calls it: says outside that it began and that it ended.

Needs redis-py of any version and nothing of streamlib, as some libraries run in a Python of their own. Both are
lines in the list `runs` of a second server, which no fault touches: `<began|ended|cut> <n> <run> <session> <ns>`.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import redis

URL = os.environ.get("FAULTS_URL", "")
"""The server of the library, or a proxy before it."""
IDLE_S = 3.0
"""After so long without a sign of life, what a worker holds may run elsewhere; libraries that add to it say so."""
AT_ONCE = 10
"""Handlers at once in a worker, where the library lets one choose."""
RUNS = "runs"
DIE = "die-each-time"
_effects = redis.Redis.from_url(os.environ.get("FAULTS_EFFECTS", "redis://"))
_number = itertools.count()


@contextmanager
def _told(n: int) -> Iterator[None]:
    run = f"{os.getpid()}-{next(_number)}"

    def tell(what: str) -> None:
        _effects.rpush(RUNS, f"{what} {n} {run} {os.getsid(0)} {time.monotonic_ns()}")

    tell("began")
    try:
        yield
    except BaseException:
        tell("cut")
        raise
    tell("ended")


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_once() -> None:
    if _effects.set("died", 1, nx=True):
        _die()


async def deed(n: int, act: str, work_s: float) -> None:
    """The body of a handler that is a coroutine. `act` is work, block (the event loop), die (the process, each time),
    or die-after: once, when all is done and nothing acknowledged."""
    with _told(n):
        if act == DIE:
            _die()
        if act == "block":
            time.sleep(work_s)  # noqa: ASYNC251 - a handler that blocks its loop is one of the faults
        else:
            await asyncio.sleep(work_s)
    if act == "die-after":
        _die_once()


def deed_in_thread(n: int, act: str, work_s: float) -> None:
    """The same for a plain function."""
    with _told(n):
        if act == DIE:
            _die()
        time.sleep(work_s)
    if act == "die-after":
        _die_once()
