"""Limits and delays as they are declared, and in an app under test without a server."""

from typing import Any

import pytest

from streamlib import App, Event
from streamlib.errors import DeclarationError
from streamlib.redisio.limits import Limits, Rate, parse_rate, read_limits
from streamlib.testing import run_app


class Job(Event):
    n: int


class Other(Event):
    n: int


@pytest.mark.parametrize(
    ("text", "starts", "period_s"),
    [("100/s", 100, 1), ("5/m", 5, 60), ("1000/h", 1_000, 3_600), ("1/d", 1, 86_400), (" 7 / s ", 7, 1)],
)
def test_rates(text: str, starts: int, period_s: int) -> None:
    assert parse_rate("here", text) == Rate(starts, period_s)


@pytest.mark.parametrize(
    "text", ["", "100", "0/s", "-1/s", "1.5/s", "100/ms", "100/w", "s/100", "1e3/s", "100//s", 100]
)
def test_what_is_no_rate(text: Any) -> None:
    with pytest.raises(DeclarationError, match=r"group 'g'.*rate="):
        read_limits("group 'g'", text, None)


@pytest.mark.parametrize("number", [0, -1, 1_000_001, True])
def test_what_is_no_number_at_once(number: int) -> None:
    with pytest.raises(DeclarationError, match="group_concurrency="):
        read_limits("group 'g'", None, number)


def test_limits_belong_to_the_group() -> None:
    app = App("shop")
    jobs = app.topic("jobs", Job, Other)

    @app.handler(jobs, group="g", rate="10/s", group_concurrency=3)
    async def one(event: Job) -> None: ...

    assert app.groups["jobs", "g"].limits == Limits(Rate(10, 1), 3)
    for other in ({}, {"rate": "10/s"}, {"rate": "11/s", "group_concurrency": 3}):
        with pytest.raises(DeclarationError, match=r"belong to the group.*another group"):

            @app.handler(jobs, group="g", **other)
            async def two(event: Other) -> None: ...

    @app.handler(jobs, group="g", rate="10/s", group_concurrency=3)
    async def three(event: Other) -> None: ...

    assert len(app.groups["jobs", "g"].handlers) == 2


async def test_an_app_under_test_keeps_its_limits_and_its_delays() -> None:
    app = App("shop")
    jobs = app.topic("jobs", Job)
    handled: list[int] = []

    @app.handler(jobs, group="g", rate="500/s", group_concurrency=2)
    async def handle(event: Job) -> None:
        handled.append(event.n)

    async with run_app(app) as harness:
        for n in range(5):
            await harness.publish(jobs, Job(n=n))
        assert (await harness.publish(jobs, Job(n=5), delay=3_600)).entry_id == ""
        await harness.drain()
        assert sorted(handled) == [0, 1, 2, 3, 4]
        assert await harness.release_delayed() == 1
        await harness.drain()
        assert sorted(handled) == [0, 1, 2, 3, 4, 5]
        assert await harness.release_delayed() == 0
