"""FastStream: a subscriber of a group and, as its documentation advises, a second one that claims what lies idle.

Both acknowledge after a run without an error. Its own claim while reading needs Redis 8.4.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from faststream import AckPolicy, FastStream
from faststream.redis import RedisBroker, StreamSub
from pydantic import BaseModel

from benchmarks.faults.deeds import IDLE_S, URL, deed
from benchmarks.faults.publish import Send

broker = RedisBroker(URL)
app = FastStream(broker)
CONSUMER = f"c-{os.getpid()}"


class Job(BaseModel):
    n: int
    act: str
    work_s: float


new = StreamSub("events", group="work", consumer=CONSUMER, max_records=1)
idle = StreamSub("events", group="work", consumer=f"{CONSUMER}-claims", min_idle_time=int(IDLE_S * 1000))


@broker.subscriber(stream=new, ack_policy=AckPolicy.NACK_ON_ERROR)
@broker.subscriber(stream=idle, ack_policy=AckPolicy.NACK_ON_ERROR)
async def work(event: Job) -> None:
    await deed(event.n, event.act, event.work_s)


@asynccontextmanager
async def publisher() -> AsyncIterator[Send]:
    async with broker:

        async def send(n: int, act: str, work_s: float) -> None:
            await broker.publish(Job(n=n, act=act, work_s=work_s), stream="events")

        yield send
