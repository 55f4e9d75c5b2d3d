"""Replies that never come back: the command was carried out, its sender does not know. Nothing is lost or doubled."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from streamlib import App, Context, Event, Retry
from streamlib.redisio.scripts import Script
from tests.helpers.delivering import burst, counted, dead_letters, outcomes, running, settings
from tests.helpers.marks import mark
from tests.helpers.oracle import assert_nothing_lost
from tests.helpers.proxy import ChaosProxy
from tests.helpers.publishing import stored_ids
from tests.helpers.waiting import eventually

COUNT = 40


class Job(Event):
    n: int


class Result(Event):
    n: int


def request(name: str) -> bytes:
    """Bytes that only requests of this script, or command, hold."""
    return b"XREADGROUP" if name == "XREADGROUP" else Script(name).sha.encode()


@pytest.mark.row(19, 21, 65)
@pytest.mark.parametrize("name", ["claim", "settle", "promote", "XREADGROUP"])
async def test_a_lost_reply_loses_and_doubles_nothing(
    proxy: ChaosProxy, client: Any, redis_url: str, name: str
) -> None:
    """Every third job fails once, every tenth is dead, every other emits into its own stream."""
    app = App("shop", settings=settings(proxy.url, lease_ms=1_000))
    jobs = app.topic("jobs", Job, Result)
    runs: Counter[int] = Counter()

    @app.handler(jobs, group="g", retry=Retry(max_attempts=2, base=0.001))
    async def handle(event: Job, ctx: Context) -> None:
        runs[event.n] += 1
        if event.n % 10 == 0:
            raise ValueError("never")
        if event.n % 3 == 0 and ctx.attempt == 1:
            raise ValueError("once")
        ctx.publish(jobs, Result(n=event.n))

    async with app:
        async with running(app):  # scripts are known to the server from here on: requests are EVALSHA
            await jobs.publish(Job(n=1_003), id="warm up")
            await jobs.publish(Job(n=1_002), id="warm up 2")
            await eventually(lambda: outcomes(app, "g").get("ok") == 2 and counted(app, "retries_scheduled_total"))
            for round_ in range(4):
                proxy.drop_next_reply(request(name))
                for n in range(round_, COUNT, 4):
                    await jobs.publish(Job(n=n), id=f"e-{n}")
                await _struck(proxy, more_than=round_)
            ids = [f"e-{n}" for n in range(COUNT)]
            await eventually(lambda: _ended(client, ids), 30, what="every event has ended")
            await eventually(lambda: client.xpending("jobs", "g")["pending"] == 0)
        assert_nothing_lost(client, "jobs", "g", ids)
    dead = {letter["id"] for letter in dead_letters(client, "jobs", "g")}
    assert dead == {f"e-{n}" for n in range(0, COUNT, 10)}
    assert len(dead_letters(client, "jobs", "g")) == len(dead), "each is dead once"
    expected = {n: 2 if n % 10 == 0 or n % 3 == 0 else 1 for n in range(COUNT)}
    assert {n: runs[n] for n in range(COUNT)} == expected
    emitted = [fields for _, fields in client.xrange("jobs") if fields[b"type"] == b"Result"]
    assert len(emitted) == len({fields[b"id"] for fields in emitted}) == COUNT - len(dead) + 2
    assert counted(app, "lease_lost_total", group="g") == 0, "our own write is no lost lease"


@pytest.mark.row(6)
async def test_a_lost_reply_to_a_renewal_costs_no_claim(proxy: ChaosProxy, client: Any, redis_url: str) -> None:
    """Two workers, a handler of several leases, and every renewal's reply lost in turn."""
    app = App("shop", settings=settings(proxy.url, lease_ms=1_000, concurrency=16))
    jobs = app.topic("jobs", Job)
    runs, release = Counter[int](), asyncio.Event()

    @app.handler(jobs, group="g")
    async def handle(event: Job) -> None:
        runs[event.n] += 1
        await release.wait()

    async with app, running(app), running(app):
        await jobs.publish_many([Job(n=n) for n in range(10)])
        await eventually(lambda: len(runs) == 10)
        for lost in range(6):
            proxy.drop_next_reply(request("renew"))
            await _struck(proxy, more_than=lost)
        release.set()
        await eventually(lambda: outcomes(app, "g").get("ok") == 10)
    assert runs == Counter(range(10))
    assert counted(app, "lease_lost_total", group="g") == 0


@pytest.mark.row(19, 21)
async def test_replies_cut_in_the_middle_lose_and_double_nothing(
    proxy: ChaosProxy, client: Any, redis_url: str
) -> None:
    """Cut anywhere: in a batch that was read, in an answer to a claim or a settle."""
    app = App("shop", settings=settings(proxy.url, lease_ms=1_000))
    jobs = app.topic("jobs", Job, Result)
    runs: Counter[int] = Counter()

    @app.handler(jobs, group="g")
    async def handle(event: Job, ctx: Context) -> None:
        runs[event.n] += 1
        ctx.publish(jobs, Result(n=event.n))

    ids = [f"e-{n}" for n in range(100)]
    async with app, running(app):
        for at, n_bytes in enumerate((3, 40, 200, 700, 1_500)):
            proxy.cut_replies_after(n_bytes)
            for n in range(at * 20, at * 20 + 20):
                await jobs.publish(Job(n=n), id=ids[n])
            await _struck(proxy, more_than=at)
        await eventually(lambda: _ended(client, ids), 30)
    assert_nothing_lost(client, "jobs", "g", ids)
    assert runs == Counter(range(100))
    stored = stored_ids(client, "jobs")
    assert len(stored) == len(set(stored)) == 200


async def test_a_proxy_that_goes_silent_costs_nothing_but_time(proxy: ChaosProxy, client: Any, redis_url: str) -> None:
    app = App("shop", settings=settings(proxy.url, lease_ms=2_000))
    jobs = app.topic("jobs", Job)
    runs: Counter[int] = Counter()

    @app.handler(jobs, group="g")
    async def handle(event: Job) -> None:
        runs[event.n] += 1
        if event.n == 20:
            proxy.blackhole()
            asyncio.get_running_loop().call_later(0.4, proxy.heal)

    async with app:
        await jobs.publish_many([Job(n=n) for n in range(COUNT)])
        assert await burst(app) == 0
    assert runs == Counter(range(COUNT))


def _ended(client: Any, ids: list[str]) -> bool:
    return all(mark(client, "jobs", "g", event_id) in (b"d", b"x") for event_id in ids)


async def _struck(proxy: ChaosProxy, *, more_than: int) -> None:
    await eventually(lambda: proxy.struck > more_than, what="a reply is lost")
