"""Celery: acknowledged late, given back when a process of the pool is lost, visible again after IDLE_S.

By default the main process looks for what is visible again every 100 s; here every second, as else it takes
minutes.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from celery import Celery

from benchmarks.faults.deeds import IDLE_S, URL, deed_in_thread
from benchmarks.faults.publish import Send

app = Celery("faults", broker=URL, set_as_current=False)
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
    broker_transport_options={
        "visibility_timeout": IDLE_S,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    },
)


@app.task(name="work", autoretry_for=(Exception,), max_retries=5)
def work(n: int, act: str, work_s: float) -> None:
    deed_in_thread(n, act, work_s)


@asynccontextmanager
async def publisher() -> AsyncIterator[Send]:
    async def send(n: int, act: str, work_s: float) -> None:
        work.delay(n, act, work_s)

    yield send
