"""The pace of a replay: never more per second than asked for, whatever the batches; nothing waits without a rate."""

import pytest

from streamlib.ops.pace import AT_ONCE, Pace


class Clock:
    """Time that passes only in sleep."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize("per_second", [0.5, 3.0, 100.0, 50_000.0])
async def test_the_rate_is_kept_and_used(per_second: float) -> None:
    clock = Clock()
    pace, started, done = Pace(per_second, clock=clock, sleep=clock.sleep), clock.now, 0
    for _ in range(50):
        await pace.wait()
        assert done <= per_second * (clock.now - started) + 1e-6, "what went before has had its time"
        pace.spend(pace.at_once)
        done += pace.at_once
    assert clock.now - started == pytest.approx((done - pace.at_once) / per_second)


async def test_time_that_was_not_used_is_not_made_up_for() -> None:
    clock = Clock()
    pace = Pace(10, clock=clock, sleep=clock.sleep)
    clock.now += 60
    pace.spend(10)
    before = clock.now
    await pace.wait()
    assert clock.now - before == pytest.approx(1)


async def test_without_a_rate_nothing_waits() -> None:
    clock = Clock()
    pace = Pace(clock=clock, sleep=clock.sleep)
    for _ in range(3):
        await pace.wait()
        pace.spend(pace.at_once)
    assert (pace.at_once, clock.now) == (AT_ONCE, 100.0)


@pytest.mark.parametrize(("per_second", "at_once"), [(0.1, 1), (10, 1), (300, 30), (1_000_000, AT_ONCE)])
def test_batches_are_a_tenth_of_a_second(per_second: float, at_once: int) -> None:
    assert Pace(per_second).at_once == at_once
