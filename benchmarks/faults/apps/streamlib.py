"""streamlib: `streamlib run` with a short lease; server and lease come from the environment."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.faults.deeds import AT_ONCE, deed
from benchmarks.faults.publish import Send
from streamlib import App, Context, Event, Retry

app = App("faults")


class Job(Event):
    n: int
    act: str
    work_s: float


events = app.topic("events", Job)


@app.handler(events, group="work", retry=Retry(max_attempts=5, base=0.2), concurrency=AT_ONCE)
async def work(event: Job, ctx: Context) -> None:
    await deed(event.n, event.act, event.work_s)


@asynccontextmanager
async def publisher() -> AsyncIterator[Send]:
    async with app:

        async def send(n: int, act: str, work_s: float) -> None:
            await events.publish(Job(n=n, act=act, work_s=work_s))

        yield send
