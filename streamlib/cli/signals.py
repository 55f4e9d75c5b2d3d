"""What signals mean to a worker process: drain, then cancel handlers, then end at once."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

_log = logging.getLogger("streamlib.run")


@contextlib.contextmanager
def steered_by_signals(stop: asyncio.Event, cancel_handlers: Callable[[], None]) -> Iterator[None]:
    """TERM and INT: the first sets `stop`, the second cancels handlers, the third ends the process.

    Plain signal handlers, not the loop's: the third one must work while a handler blocks the loop. SIGUSR2
    writes the stacks of all threads to stderr.
    """
    loop = asyncio.get_running_loop()
    seen = 0

    def act(signum: int, frame: FrameType | None) -> None:
        nonlocal seen
        seen += 1
        if seen == 1:
            loop.call_soon_threadsafe(_begin_to_drain, stop, signum)
        elif seen == 2:
            loop.call_soon_threadsafe(_cancel, cancel_handlers)
        else:
            os._exit(128 + signum)

    before = {signum: signal.signal(signum, act) for signum in (signal.SIGTERM, signal.SIGINT)}
    faulthandler.register(signal.SIGUSR2, file=sys.stderr, all_threads=True)
    try:
        yield
    finally:
        faulthandler.unregister(signal.SIGUSR2)
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _begin_to_drain(stop: asyncio.Event, signum: int) -> None:
    _log.info("draining", extra={"signal": signal.Signals(signum).name})
    stop.set()


def _cancel(cancel_handlers: Callable[[], None]) -> None:
    _log.warning("cancelling_handlers")
    cancel_handlers()
