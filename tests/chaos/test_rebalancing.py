"""Workers that come and go under load: even shares, nothing lost or run twice, and who stays is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.ordered_bench import Emitted
from tests.chaos.rebalancing import PARTITIONS, run, table

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]


@pytest.mark.row(71)
@pytest.mark.parametrize("plan", [(1, 4, 2), (2, 3, 2)], ids=str)
def test_workers_come_and_go_and_what_need_not_move_is_left_alone(
    server_kind: str, tmp_path: Path, plan: tuple[int, ...]
) -> None:
    found = run(tmp_path, plan, server_kind)
    print(table(found))
    assert found.changes[-1].kept, "the proof is about partitions that stay"
    for change in found.changes:
        assert sum(change.shares) == PARTITIONS
        assert max(change.shares) - min(change.shares) <= 1
        assert not change.disturbed, "what stays is never released, and its epoch goes on"
        assert not change.moved_for_nothing, "nobody else's share in whatever order the others come and go"
    assert found.emitted == Emitted(out_of_order=0, lost=0, doubled=0)
    assert len(found.runs) == found.events, "handing over runs nothing twice"
    assert not found.overlapping
