"""What is measured: a worker with default settings, and the loop written by hand beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from streamlib.app import App
from streamlib.bench.events import OrderCreated
from streamlib.keys import StreamKeys
from streamlib.redisio.load import RawLoop

GROUP = "bench"

Handle = Callable[[OrderCreated], Awaitable[None]]
Consume = Callable[[App, StreamKeys, Handle, asyncio.Event], Awaitable[None]]
"""Consumes for the group GROUP until the event is set; `handle` is declared as the app's handler, too."""


async def worker(app: App, stream: StreamKeys, handle: Handle, stop: asyncio.Event) -> None:
    """Every guarantee, metrics, renewal, reclaim and retry loops."""
    await app.worker().run(stop)


async def raw_loop(app: App, stream: StreamKeys, handle: Handle, stop: asyncio.Event) -> None:
    settings, decoder = app.settings, msgspec.json.Decoder(OrderCreated)
    window_ms = int(settings.idempotency.window_s * 1000)
    loop = RawLoop(app.redis, stream, GROUP, lease_ms=settings.worker.lease_ms, window_ms=window_ms)
    looping = asyncio.create_task(loop.run(decoder.decode, handle))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({looping, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if looping.done():
            looping.result()
    finally:
        looping.cancel()
        stopping.cancel()
        await asyncio.wait({looping, stopping})


CONSUMERS: dict[str, Consume] = {"raw_loop": raw_loop, "worker": worker}
