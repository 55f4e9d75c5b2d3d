"""Every script that there is, struck before and after it runs, in the process that sends it: a third of the cases here.

Each of three weeks has another third. `python -m tests.chaos.sweep` runs them all.
"""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import pytest

from tests.chaos.sweep import NOT_STRUCK, WORKER, cases, part_of, run
from tests.helpers.wire import SCRIPTS

pytestmark = [pytest.mark.chaos]

SEED_ENV = "STREAMLIB_SWEEP_SEED"
PARTS = 3


def test_every_script_is_struck_or_it_is_said_why_not() -> None:
    assert {one.point for one in cases(1)} & set(SCRIPTS) == set(SCRIPTS) - set(NOT_STRUCK)
    assert set(NOT_STRUCK) < set(SCRIPTS)


def test_the_parts_of_a_sweep_are_the_whole() -> None:
    every = cases(1)
    assert len(set(every)) == len(every)
    assert sorted(one for number in (1, 2, 3) for one in part_of(every, number, PARTS)) == sorted(every)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.row(1, 2, 4, 21, 65, 67)
@pytest.mark.parametrize("half", ["what a worker sends", "what others send"])
def test_a_process_struck_at_any_script_loses_nothing_and_doubles_nothing(
    server_kind: str, tmp_path: Path, half: str
) -> None:
    seed = int(os.environ.get(SEED_ENV) or datetime.datetime.now(datetime.UTC).isocalendar().week)
    print(f"{SEED_ENV}={seed}")
    mine = [one for one in cases(seed) if (one.sender == WORKER) == (half == "what a worker sends")]
    results = list(run(part_of(mine, 1 + seed % PARTS, PARTS), server_kind, tmp_path))
    print(*results, sep="\n")
    assert results
    assert not [str(one) for one in results if not one.holds]
