"""Ordered groups whose workers are killed and frozen and whose handlers fail: the order of each key stays exact."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.ordered import run, table
from tests.chaos.ordered_bench import Emitted

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]


@pytest.mark.row(71)
def test_kills_freezes_and_failing_handlers_leave_the_order_of_each_key_exact(server_kind: str, tmp_path: Path) -> None:
    found = run(tmp_path, seed=3, each=200, seconds=8, kind=server_kind)
    print(table([found]))
    assert found.events == 16 * 200
    assert found.kills > 0
    assert found.freezes > 0
    assert found.raised > 0
    assert found.emitted == Emitted(out_of_order=0, lost=0, doubled=0)
    assert not found.overlaps.while_held, "two runs of a key at one time, while leases held"
