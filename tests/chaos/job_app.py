"""The app that the chaos tests torment: every kind of effect, each one countable.

`effects` leaves an outside effect (a Redis list that no script of ours knows), emits an event into its own stream and
one into another topic. The projections count what was published and what was emitted.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator

import redis.asyncio

from streamlib import App, Context, Event, ReadModel, Retry

WORK_S = float(os.environ.get("JOB_WORK_S", "0"))

app = App("chaos")


class Job(Event):
    n: int
    account: str
    act: str = "work"


class Echoed(Event):
    n: int
    account: str


class Result(Event):
    n: int
    account: str


jobs = app.topic("jobs", Job, Echoed, key="account")
results = app.topic("results", Result, key="account")


@app.lifespan
async def resources(app: App) -> AsyncIterator[dict[str, object]]:
    client = redis.asyncio.Redis.from_url(os.environ["JOB_EFFECTS_URL"])
    yield {"effects": client}
    await client.aclose()


@app.handler(jobs, group="effects", retry=Retry(max_attempts=20, base=0.01, cap=0.1), concurrency=16)
async def leave_effects(event: Job, ctx: Context) -> None:
    if event.act == "abort":
        os.abort()
    if event.act == "fail once" and ctx.attempt == 1:
        raise ValueError("the first run fails")
    if event.act == "block":
        time.sleep(float(os.environ["JOB_BLOCK_S"]))  # blocks the loop on purpose
    await asyncio.sleep(WORK_S)
    await _die_once(event, ctx, "die before")
    await ctx.state["effects"].rpush("effect:runs", f"{event.n} {ctx.attempt} {ctx.idempotency_key}")
    ctx.publish(jobs, Echoed(n=event.n, account=event.account))
    ctx.publish(results, Result(n=event.n, account=event.account))
    await _die_once(event, ctx, "die after")


async def _die_once(event: Job, ctx: Context, when: str) -> None:
    if event.act == when and await ctx.state["effects"].set("effect:died", 1, nx=True):
        os.kill(os.getpid(), signal.SIGKILL)


class Account(ReadModel):
    account: str
    jobs: int = 0
    echoes: int = 0
    total: int = 0


accounts = app.projection("accounts", jobs, Account, key="account")


@accounts.on(Job)
def _job(row: Account | None, event: Job) -> Account:
    row = row or Account(account=event.account)
    return Account(account=row.account, jobs=row.jobs + 1, echoes=row.echoes, total=row.total + event.n)


@accounts.on(Echoed)
def _echo(row: Account | None, event: Echoed) -> Account:
    row = row or Account(account=event.account)
    return Account(account=row.account, jobs=row.jobs, echoes=row.echoes + 1, total=row.total)


class Sum(ReadModel):
    account: str
    results: int = 0


sums = app.projection("sums", results, Sum, key="account")


@sums.on(Result)
def _result(row: Sum | None, event: Result) -> Sum:
    return Sum(account=event.account, results=(row.results if row else 0) + 1)
