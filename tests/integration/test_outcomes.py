"""Whatever a handler does, each event ends in exactly one outcome and its neighbours are not harmed."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from streamlib import App, Context, Event, Reject, Retry, RetryLater
from tests.helpers.delivering import burst, counted, dead_letters, outcomes, running, settings
from tests.helpers.marks import mark
from tests.helpers.oracle import assert_nothing_lost, ledger
from tests.helpers.waiting import eventually

TWICE = Retry(max_attempts=2, base=0.001)


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("no words for it")


class Job(Event):
    act: str = "ok"


class Other(Event):
    act: str = "ok"


RAISED: dict[str, tuple[Callable[[], BaseException], str]] = {
    "value": (lambda: ValueError("broken 17"), "ValueError: broken 17"),
    "exit": (lambda: SystemExit(3), "SystemExit: 3"),
    "interrupt": (KeyboardInterrupt, "KeyboardInterrupt"),
    "cancelled": (asyncio.CancelledError, "CancelledError"),
    "recursion": (lambda: RecursionError("too deep"), "RecursionError"),
    "memory": (MemoryError, "MemoryError"),
    "stop": (lambda: StopIteration(1), "StopIteration"),
    "generator exit": (GeneratorExit, "GeneratorExit"),
    "timeout": (TimeoutError, "TimeoutError"),
    "unprintable": (Unprintable, "Unprintable"),
    "surrogate": (lambda: ValueError("\ud800"), "ValueError"),
    "nul": (lambda: ValueError("a\x00b"), "ValueError: a?b"),
}


def act(event: Job, attempt: int) -> None:
    """What both kinds of handlers do."""
    if event.act in RAISED:
        raise RAISED[event.act][0]()
    if event.act == "reject":
        raise Reject("never good")
    if event.act == "later" and attempt == 1:
        raise RetryLater(delay=0.01)
    if event.act == "once" and attempt == 1:
        raise ValueError("the first time")


@pytest.mark.row(16)
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_every_ending_of_a_handler_is_an_outcome(redis_url: str, client: Any, kind: str) -> None:
    app = App("shop", settings=settings(redis_url))
    jobs = app.topic("jobs", Job)
    runs: Counter[str] = Counter()

    if kind == "async":

        @app.handler(jobs, group="g", retry=TWICE)
        async def run_async(event: Job, ctx: Context) -> None:
            runs[event.act] += 1
            act(event, ctx.attempt)
            return 7 if event.act == "return" else None  # type: ignore[return-value]
    else:

        @app.handler(jobs, group="g", retry=TWICE)
        def run_sync(event: Job, ctx: Context) -> None:
            runs[event.act] += 1
            act(event, ctx.attempt)
            return 7 if event.act == "return" else None  # type: ignore[return-value]

    good = [f"ok {n}" for n in range(20)]
    acts = [*RAISED, "reject", "return", "later", "once", *good]
    async with app:
        for name in acts:
            await jobs.publish(Job(act=name), id=name)
        assert await burst(app) == 0
        received = counted(app, "events_received_total", group="g")
        assert received == sum(outcomes(app, "g").values()), "one outcome per delivery"
    assert ledger(client, "jobs", "g", acts).settled
    assert_nothing_lost(client, "jobs", "g", acts)
    letters = {letter["id"]: letter for letter in dead_letters(client, "jobs", "g")}
    assert set(letters) == {*RAISED, "reject", "return"}
    for name, (_, error) in RAISED.items():
        letter = letters[name]
        assert (letter["dl-reason"], letter["dl-attempts"], runs[name]) == ("max_attempts", "2", 2), name
        assert error in letter["dl-error"]
        assert letter["dl-fingerprint"]
        assert "def act" not in letter["dl-error"]
        assert "raise RAISED" in letter["dl-traceback"], "the traceback leads to the line"
    assert (letters["reject"]["dl-reason"], letters["reject"]["dl-error"]) == ("rejected", "Reject: never good")
    assert (letters["return"]["dl-reason"], runs["return"]) == ("rejected", 1)
    assert "returned int" in letters["return"]["dl-error"]
    assert (runs["later"], runs["once"]) == (2, 2)
    assert all(runs[name] == 1 for name in good)


async def test_failures_of_one_cause_have_one_fingerprint(redis_url: str, client: Any) -> None:
    app = App("shop", settings=settings(redis_url))
    jobs = app.topic("jobs", Job)

    @app.handler(jobs, group="g", retry=Retry(max_attempts=1))
    async def fail(event: Job) -> None:
        if event.act == "other":
            raise KeyError("another cause")
        raise ValueError(f"order {event.act} is broken")

    async with app:
        await jobs.publish_many([Job(act="17"), Job(act="18"), Job(act="other")])
        await burst(app)
    marks = Counter(letter["dl-fingerprint"] for letter in dead_letters(client, "jobs", "g"))
    assert sorted(marks.values()) == [1, 2]


async def test_retry_later_waits_as_long_as_it_was_asked_to(redis_url: str, client: Any) -> None:
    app = App("shop", settings=settings(redis_url))
    jobs = app.topic("jobs", Job)

    @app.handler(jobs, group="g")
    async def later(event: Job) -> None:
        raise RetryLater(delay=3_600)

    async with app, running(app):
        position = await jobs.publish(Job(), id="e-1")
        await eventually(lambda: client.zcard("{jobs}:retry:g"), what="the retry is scheduled")
    [(_, due_ms)] = client.zrange("{jobs}:retry:g", 0, -1, withscores=True)
    waits_s = due_ms / 1000 - int(position.entry_id.partition("-")[0]) / 1000
    assert 3_600 <= waits_s < 3_700


@pytest.mark.row(7)
async def test_a_handler_past_its_timeout_is_cancelled_and_counts_as_failed(redis_url: str, client: Any) -> None:
    app = App("shop", settings=settings(redis_url))
    jobs = app.topic("jobs", Job)
    ended: list[str] = []

    @app.handler(jobs, group="g", retry=TWICE, timeout=0.05)
    async def hang(event: Job) -> None:
        if event.act == "hang":
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(event.act)

    async with app:
        await jobs.publish_many([Job(act="hang"), Job(), Job()])
        assert await burst(app) == 0
    [letter] = dead_letters(client, "jobs", "g")
    assert ended == ["hang", "hang"]
    assert letter["dl-error"].startswith("HandlerTimeout: ")
    assert "0.05 s" in letter["dl-error"]
    assert outcomes(app, "g") == {"ok": 2, "retry": 1, "dead": 1}


@pytest.mark.parametrize("place", [0, 1, 2])
async def test_one_that_hangs_in_a_batch_times_out_alone_too(redis_url: str, client: Any, place: int) -> None:
    """The batch is cancelled at its timeout and split: then each event has that time for itself."""
    app = App("shop", settings=settings(redis_url))
    jobs = app.topic("jobs", Job)
    acts = ["ok"] * 3
    acts[place] = "hang"

    @app.handler(jobs, group="g", retry=TWICE, timeout=0.05, concurrency=1)
    async def handle(events: list[Job]) -> None:
        if any(event.act == "hang" for event in events):
            await asyncio.Event().wait()

    async with app:
        await jobs.publish_many([Job(act=act) for act in acts])
        assert await burst(app) == 0
    [letter] = dead_letters(client, "jobs", "g")
    assert letter["dl-error"].startswith("HandlerTimeout: ")
    assert outcomes(app, "g") == {"ok": 2, "retry": 1, "dead": 1}


@pytest.mark.row(7, 16)
async def test_what_swallows_its_cancellation_keeps_its_claim_until_it_ends(redis_url: str, client: Any) -> None:
    """Longer than a lease past its timeout, beside a worker that would gladly take the event over."""
    app = App("shop", settings=settings(redis_url, lease_ms=600))
    jobs = app.topic("jobs", Job)
    runs, release, swallowed = Counter[str](), asyncio.Event(), asyncio.Event()

    @app.handler(jobs, group="g", timeout=0.05)
    async def stubborn(event: Job, ctx: Context) -> None:
        runs[event.act] += 1
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            swallowed.set()
            await release.wait()

    async with app, running(app), running(app):
        await jobs.publish(Job(act="hang"), id="e-1")
        await swallowed.wait()
        await _idle_for_three_leases(client, "jobs")
        assert runs == {"hang": 1}
        assert _pending(client) == 1, "not acked while it runs"
        release.set()
        await eventually(lambda: _pending(client) == 0)
        assert runs == {"hang": 1}
        assert mark(client, "jobs", "g", "e-1") == b"d", "it returned: that is success"


async def test_a_thread_past_its_timeout_keeps_its_claim_until_it_ends(redis_url: str, client: Any) -> None:
    app = App("shop", settings=settings(redis_url, lease_ms=600))
    jobs = app.topic("jobs", Job)
    started, release, runs = threading.Event(), threading.Event(), Counter[str]()

    @app.handler(jobs, group="g", timeout=0.05)
    def stubborn(event: Job) -> None:
        runs[event.act] += 1
        started.set()
        release.wait(30)

    async with app, running(app), running(app):
        await jobs.publish(Job(act="hang"), id="e-1")
        await eventually(started.is_set)
        await _idle_for_three_leases(client, "jobs")
        assert runs == {"hang": 1}
        assert _pending(client) == 1
        release.set()
        await eventually(lambda: mark(client, "jobs", "g", "e-1") == b"d")
        assert runs == {"hang": 1}


async def test_rerun_never_sends_what_failed_to_the_dead_letters(redis_url: str, client: Any) -> None:
    app = App("shop", settings=settings(redis_url))
    jobs = app.topic("jobs", Job, Other)
    runs: Counter[str] = Counter()

    @app.handler(jobs, group="g", rerun="never")
    async def charge(event: Job) -> None:
        runs[event.act] += 1
        act(event, 1)

    @app.handler(jobs, group="g", rerun="never")
    async def charge_many(events: list[Other]) -> None:
        for event in events:
            runs[event.act] += 1
        raise ValueError("half of it was charged")

    async with app:
        for name in ("ok", "value", "reject"):
            await jobs.publish(Job(act=name), id=name)
        for n in range(3):
            await jobs.publish(Other(act=f"batch {n}"), id=f"batch {n}")
        assert await burst(app) == 0
    reasons = {letter["id"]: letter["dl-reason"] for letter in dead_letters(client, "jobs", "g")}
    batches = {f"batch {n}": "outcome_unknown" for n in range(3)}
    assert reasons == {"value": "outcome_unknown", "reject": "rejected", **batches}
    assert set(runs.values()) == {1}, "nothing ran twice, a batch that raised neither"


async def test_rerun_never_is_not_handed_back_when_a_drain_cancels_it(redis_url: str, client: Any) -> None:
    app = App("shop", settings=settings(redis_url, drain_s=0.1))
    jobs = app.topic("jobs", Job)
    started, runs = asyncio.Event(), Counter[str]()

    @app.handler(jobs, group="g", rerun="never")
    async def charge(event: Job) -> None:
        runs[event.act] += 1
        started.set()
        await asyncio.sleep(60)

    async with app:
        await jobs.publish(Job(), id="e-1")
        async with running(app) as one:
            await started.wait()
            assert await one.stop() == 7
        assert await burst(app) == 0
    assert runs == {"ok": 1}
    assert [letter["dl-reason"] for letter in dead_letters(client, "jobs", "g")] == ["outcome_unknown"]


async def _idle_for_three_leases(client: Any, stream: str) -> None:
    """Until renewal has moved the claim's deadline on by more than three leases of 600 ms."""

    def deadline() -> int:
        return int((client.get("{" + stream + "}:idem:g:e-1") or b"c0:")[1:].partition(b":")[0])

    first = deadline()
    assert first
    await eventually(lambda: deadline() > first + 1_800, what="three leases have passed")


def _pending(client: Any) -> int:
    return int(client.xpending("jobs", "g")["pending"])
