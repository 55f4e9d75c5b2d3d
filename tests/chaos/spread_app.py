"""The chaos app for several servers: a topic of several partitions, every kind of effect, each one countable.

What handlers leave outside goes to a server of its own, which no failover touches: a line per run. What they leave in
the app's Redis is an event emitted into the own partition, one into another topic, and two read models.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator

import redis.asyncio

from streamlib import App, Context, Retry
from tests.chaos.job_app import Account, Echoed, Job, Result, Sum

ACCOUNTS = tuple(f"acc-{n}" for n in range(24))
RUNS = "effect:runs"


class Spread:
    """The app with its topics and views. `emits` is off where no event may depend on another partition."""

    def __init__(self, *, partitions: int, durability: str = "primary", emits: bool = True) -> None:
        self.app = App("spread")
        self.jobs = self.app.topic("jobs", Job, Echoed, key="account", partitions=partitions, durability=durability)
        self.results = self.app.topic("results", Result, key="account", partitions=partitions, durability=durability)
        self.accounts = self.app.projection("accounts", self.jobs, Account, key="account")
        self.sums = self.app.projection("sums", self.results, Sum, key="account")
        self._emits = emits
        self._declare_handler()
        self._declare_views()

    def _declare_handler(self) -> None:
        @self.app.lifespan
        async def resources(app: App) -> AsyncIterator[dict[str, object]]:
            client = redis.asyncio.Redis.from_url(os.environ["JOB_EFFECTS_URL"])
            yield {"effects": client}
            await client.aclose()

        @self.app.handler(self.jobs, group="effects", retry=Retry(max_attempts=1_000, base=0.02, cap=0.2))
        async def leave_effects(event: Job, ctx: Context) -> None:
            line = f"{event.n} {ctx.partition} {time.time():.4f} {ctx.idempotency_key}"
            await ctx.state["effects"].rpush(RUNS, line)
            ctx.publish(self.jobs, Echoed(n=event.n, account=event.account))
            if self._emits:
                ctx.publish(self.results, Result(n=event.n, account=event.account))

    def _declare_views(self) -> None:
        @self.accounts.on(Job)
        def job(row: Account | None, event: Job) -> Account:
            row = row or Account(account=event.account)
            return Account(account=row.account, jobs=row.jobs + 1, echoes=row.echoes, total=row.total + event.n)

        @self.accounts.on(Echoed)
        def echo(row: Account | None, event: Echoed) -> Account:
            row = row or Account(account=event.account)
            return Account(account=row.account, jobs=row.jobs, echoes=row.echoes + 1, total=row.total)

        @self.sums.on(Result)
        def result(row: Sum | None, event: Result) -> Sum:
            return Sum(account=event.account, results=(row.results if row else 0) + 1)


def from_environment() -> App:
    """The app of a worker process."""
    settings = os.environ
    return Spread(
        partitions=int(settings["JOB_PARTITIONS"]),
        durability=settings["JOB_DURABILITY"],
        emits=settings["JOB_EMITS"] == "1",
    ).app


def __getattr__(name: str) -> App:
    """`app`, made only in a worker process."""
    if name != "app":
        raise AttributeError(name)
    return from_environment()
