"""SAQ: a job that has run for its timeout is stuck and is swept up every second; up to five tries."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from saq import Queue

from benchmarks.faults.deeds import AT_ONCE, IDLE_S, URL, deed
from benchmarks.faults.publish import Send

queue = Queue.from_url(URL)


async def work(ctx: Any, *, n: int, act: str, work_s: float) -> None:
    await deed(n, act, work_s)


settings = {"queue": queue, "functions": [("work", work)], "concurrency": AT_ONCE, "timers": {"sweep": 1}}


@asynccontextmanager
async def publisher() -> AsyncIterator[Send]:
    await queue.connect()

    async def send(n: int, act: str, work_s: float) -> None:
        times = {"timeout": int(IDLE_S), "retries": 5}
        await queue.enqueue("work", key=f"job-{n}", n=n, act=act, work_s=work_s, **times)

    yield send
    await queue.disconnect()
