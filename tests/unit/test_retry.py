"""Retry delays: exponential ceilings, full jitter, never past the cap; and the errors handlers raise."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlib.errors import DeclarationError, RetryLater
from streamlib.retry import Retry


class Highest(random.Random):
    """Draws the upper end: the ceiling itself."""

    def uniform(self, a: float, b: float) -> float:
        return b


@given(
    attempt=st.integers(1, 10**9),
    base=st.floats(0, 100),
    extra=st.floats(0, 10_000),
    seed=st.integers(),
)
def test_a_delay_lies_between_zero_and_the_cap(attempt: int, base: float, extra: float, seed: int) -> None:
    policy = Retry(base=base, cap=base + extra)
    delay_ms = policy.delay_ms(attempt, random.Random(seed))
    assert 0 <= delay_ms <= policy.cap * 1000
    assert delay_ms <= base * 2.0 ** min(attempt - 1, 1000) * 1000


@pytest.mark.row(66)
def test_the_ceiling_doubles_until_the_cap() -> None:
    policy = Retry(base=0.5, cap=10)
    ceilings = [policy.delay_ms(attempt, Highest()) for attempt in range(1, 8)]
    assert ceilings == [500, 1000, 2000, 4000, 8000, 10_000, 10_000]


@pytest.mark.row(66)
def test_jitter_spreads_over_the_whole_range() -> None:
    rng = random.Random(7)
    delays = [Retry(base=1, cap=1).delay_ms(1, rng) for _ in range(2000)]
    tenths = {delay * 10 // 1000 for delay in delays}
    assert tenths >= set(range(10)), "full jitter: no part of the range stays empty"
    assert 450 < sum(delays) / len(delays) < 550


def test_the_defaults_are_eight_runs_and_five_minutes() -> None:
    assert (Retry().max_attempts, Retry().base, Retry().cap) == (8, 0.5, 300.0)


@pytest.mark.parametrize("max_attempts", [0, -1])
def test_the_first_run_counts_as_an_attempt(max_attempts: int) -> None:
    with pytest.raises(DeclarationError, match="at least 1, the first run"):
        Retry(max_attempts=max_attempts)


@pytest.mark.parametrize(
    ("base", "cap"), [(-1, 300), (2, 1), (0.5, float("inf")), (float("nan"), 1), (0.5, float("nan"))]
)
def test_senseless_bounds_are_refused(base: float, cap: float) -> None:
    with pytest.raises(DeclarationError, match="0 <= base <= cap <= 2592000 seconds"):
        Retry(base=base, cap=cap)


@pytest.mark.parametrize("delay", [-0.001, 30 * 86_400 + 1, float("nan"), float("inf")])
def test_retry_later_takes_zero_seconds_to_thirty_days(delay: float) -> None:
    with pytest.raises(ValueError, match="0 seconds to 30 days"):
        RetryLater(delay=delay)


def test_retry_later_says_why() -> None:
    assert str(RetryLater(delay=5)) == "the handler asked to be run again in 5 s"
    assert str(RetryLater(5, "mail server is down")) == "mail server is down"
    assert RetryLater(2.5).delay == 2.5
