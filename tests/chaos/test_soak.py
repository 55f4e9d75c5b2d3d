"""A minute of random faults, on each kind of place. `python -m tests.chaos.soak` runs it for as long as you like."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.chaos.soak import PLACES, Asked, soak

SEED = int(os.environ.get("STREAMLIB_TEST_SEED", "1"))
MINUTES = {"standalone": 1.0, "sentinel": 0.5, "cluster": 0.5}

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize("place", sorted(PLACES))
def test_random_faults_lose_nothing_and_leave_exact_rows(place: str, tmp_path: Path, server_kind: str) -> None:
    asked = Asked(minutes=MINUTES[place], seed=SEED, server=server_kind, place=place)
    result = soak(asked, tmp_path, tmp_path / "soak.jsonl")
    print(result)
    assert len(result.faults) >= asked.minutes * 60 / 10, "a fault every few seconds"
    assert result.confirmed > 100
