"""taskiq-redis: the stream broker, acknowledged after the task, idle messages claimed after IDLE_S."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from taskiq import SmartRetryMiddleware
from taskiq_redis import RedisStreamBroker

from benchmarks.faults.deeds import AT_ONCE, IDLE_S, URL, deed
from benchmarks.faults.publish import Send

broker = RedisStreamBroker(
    URL,
    consumer_id="0",  # of a group that is made: what was published before it counts too
    xread_count=AT_ONCE,
    xread_block=1000,
    idle_timeout=int(IDLE_S * 1000),
    unacknowledged_lock_timeout=IDLE_S,
).with_middlewares(SmartRetryMiddleware(default_retry_count=5))


@broker.task(task_name="work", retry_on_error=True)
async def work(n: int, act: str, work_s: float) -> None:
    await deed(n, act, work_s)


@asynccontextmanager
async def publisher() -> AsyncIterator[Send]:
    await broker.startup()
    yield work.kiq
    await broker.shutdown()
