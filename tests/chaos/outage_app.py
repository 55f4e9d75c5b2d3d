"""The app of the outage: its handler calls a service over TCP, which the test starts and stops."""

from __future__ import annotations

import asyncio
import os

from streamlib import App, Breaker, Context, Event, Retry

app = App("outage")
FAILURES, CONCURRENCY, ATTEMPTS = 20, 16, 3
_BREAKER = Breaker(failures=FAILURES, pause=0.5, cap=2.0)


class Job(Event):
    n: int


jobs = app.topic("jobs", Job)


@app.handler(
    jobs,
    group="mail",
    retry=Retry(max_attempts=ATTEMPTS, base=0.2, cap=1.0),
    concurrency=CONCURRENCY,
    breaker=_BREAKER if os.environ.get("OUTAGE_BREAKER") == "on" else None,
)
async def mail(event: Job, ctx: Context) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(os.environ["OUTAGE_PORT"]))
    try:
        writer.write(f"{event.n} {ctx.attempt}\n".encode())
        if await reader.readline() != b"ok\n":
            raise ConnectionError("the service hung up")
    finally:
        writer.close()
