"""Dramatiq: a worker that sends no heartbeat for IDLE_S is dead; up to five retries.

By default one command in a thousand looks for dead workers; here each does, as else a test would take minutes.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from benchmarks.faults.deeds import IDLE_S, URL, deed_in_thread
from benchmarks.faults.publish import Send

broker = RedisBroker(url=URL, heartbeat_timeout=int(IDLE_S * 1000), maintenance_chance=1_000_000)
dramatiq.set_broker(broker)


@dramatiq.actor(max_retries=5, min_backoff=200)
def work(n: int, act: str, work_s: float) -> None:
    deed_in_thread(n, act, work_s)


@asynccontextmanager
async def publisher() -> AsyncIterator[Send]:
    async def send(n: int, act: str, work_s: float) -> None:
        work.send(n, act, work_s)

    yield send
