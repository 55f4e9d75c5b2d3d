"""The app of the tests that kill workers of limited groups: who runs what is written down outside.

In the set `running` is what runs now, in `most` how many at once there ever were, in the list `starts` every start.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator

import redis

from streamlib import App, Context, Event

app = App("timed")
_START = """
redis.call('RPUSH', KEYS[1], ARGV[1])
redis.call('SADD', KEYS[2], ARGV[2])
local now = redis.call('SCARD', KEYS[2])
if now > tonumber(redis.call('GET', KEYS[3]) or 0) then redis.call('SET', KEYS[3], now) end
"""


@app.lifespan
async def book(_: App) -> AsyncIterator[dict[str, redis.Redis]]:
    with redis.Redis.from_url(os.environ["BOOK_URL"]) as client:
        yield {"book": client}


class Job(Event):
    n: int
    seconds: float = 0.02
    blocks: bool = False


jobs = app.topic("jobs", Job, key="n", partitions=4)


@app.handler(jobs, group="one", group_concurrency=1, concurrency=4)
async def one_at_once(event: Job, ctx: Context) -> None:
    run, client = f"{os.getpid()} {event.n}", ctx.state["book"]
    client.eval(_START, 3, "starts", "running", "most", event.n, run)
    if event.blocks:
        time.sleep(event.seconds)
    else:
        await asyncio.sleep(event.seconds)
    client.srem("running", run)


@app.handler(jobs, group="never", rerun="never", concurrency=4)
async def never_again(event: Job, ctx: Context) -> None:
    ctx.state["book"].rpush("never", event.n)
    await asyncio.sleep(event.seconds)
