"""streaQ: idle tasks are taken over after IDLE_S; up to five tries."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from streaq import Worker

from benchmarks.faults.deeds import AT_ONCE, IDLE_S, URL, deed
from benchmarks.faults.publish import Send

worker = Worker(redis_url=URL, concurrency=AT_ONCE, idle_timeout=IDLE_S)


@worker.task(max_tries=5)
async def work(n: int, act: str, work_s: float) -> None:
    await deed(n, act, work_s)


@asynccontextmanager
async def publisher() -> AsyncIterator[Send]:
    async with worker:

        async def send(n: int, act: str, work_s: float) -> None:
            await work.enqueue(n, act, work_s)

        yield send
