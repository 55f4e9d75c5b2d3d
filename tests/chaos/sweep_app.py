"""The app of the crash sweep's workers: the chaos app, with a group of every other kind beside it.

Only worker processes import this: it adds to the app of tests/chaos/job_app.py. Each run of a group leaves a line
outside, in the list `effect:<group>`: number, key, attempt, idempotency key.
"""

from __future__ import annotations

from streamlib import Context, Event, Retry
from tests.chaos.job_app import Job, Result, app, jobs, results

LEDGER, LIMITED, NEVER, PASTS = "ledger", "limited", "never", "pasts"
FAILS_EACH = 7
"""Of so many events of the ordered group one fails at first."""


class Past(Event):
    n: int


pasts = app.topic("pasts", Past)


@app.handler(results, group=LEDGER, ordering="key", retry=Retry(max_attempts=20, base=0.01, cap=0.1))
async def in_order(event: Result, ctx: Context) -> None:
    if event.n % FAILS_EACH == 0 and ctx.attempt == 1:
        raise ValueError("the first run fails")
    await _leave_line(LEDGER, event.n, event.account, ctx)


@app.handler(jobs, group=LIMITED, group_concurrency=2)
async def two_at_once(event: Job, ctx: Context) -> None:
    await _leave_line(LIMITED, event.n, event.account, ctx)


@app.handler(jobs, group=NEVER, rerun="never")
async def never_again(event: Job, ctx: Context) -> None:
    await _leave_line(NEVER, event.n, event.account, ctx)


@app.handler(pasts, group=PASTS)
async def of_the_past(event: Past, ctx: Context) -> None:
    await _leave_line(PASTS, event.n, "-", ctx)


async def _leave_line(group: str, n: int, key: str, ctx: Context) -> None:
    await ctx.state["effects"].rpush(f"effect:{group}", f"{n} {key} {ctx.attempt} {ctx.idempotency_key}")
