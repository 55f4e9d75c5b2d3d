"""Failovers under load: nothing confirmed is lost, effects in Redis stay exact, and events flow again soon.

Three by default; `python -m tests.chaos.failovers --times 10 --seed S` runs more of them and prints the same table.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.chaos.failovers import FAULTS, run, table

TIMES = int(os.environ.get("STREAMLIB_TEST_FAILOVERS", "3"))

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(120 + 40 * TIMES)]


@pytest.mark.row(46, 47, 48, 49, 74)
def test_failovers_under_load_lose_nothing_that_was_confirmed(tmp_path: Path, server_kind: str) -> None:
    failovers = run(tmp_path, TIMES, seed=TIMES, kind=server_kind)
    print(table(failovers, 0.8))
    assert len(failovers) == TIMES
    assert {one.fault for one in failovers} == set(FAULTS[:TIMES])
