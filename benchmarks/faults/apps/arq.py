"""arq: a job that has been under way for its timeout and ten seconds may be started again, up to five times."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from arq import create_pool, func
from arq.connections import RedisSettings

from benchmarks.faults.deeds import AT_ONCE, IDLE_S, URL, deed
from benchmarks.faults.publish import Send


async def work(ctx: Any, n: int, act: str, work_s: float) -> None:
    await deed(n, act, work_s)


class WorkerSettings:
    functions = (func(work, name="work"),)
    redis_settings = RedisSettings.from_dsn(URL)
    max_jobs = AT_ONCE
    job_timeout = IDLE_S
    max_tries = 5
    retry_jobs = True


@asynccontextmanager
async def publisher() -> AsyncIterator[Send]:
    pool = await create_pool(WorkerSettings.redis_settings)

    async def send(n: int, act: str, work_s: float) -> None:
        await pool.enqueue_job("work", n, act, work_s, _job_id=f"job-{n}")

    yield send
    await pool.close(close_connection_pool=True)
