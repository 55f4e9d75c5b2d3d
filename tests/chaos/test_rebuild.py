"""A view is rebuilt under load, with kills: no reader sees a missing, half-built or older view.

The large run: `python -m tests.chaos.rebuild`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.rebuild import run, table

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]


@pytest.mark.row(3, 75)
def test_a_rebuild_killed_twice_under_load_is_exact_and_no_reader_notices(server_kind: str, tmp_path: Path) -> None:
    found = run(tmp_path, 12_000, server_kind)
    print(table(found))
    assert found.result["switched"]
    assert found.result["events"] >= found.events
    assert found.wrong_live == []
    assert found.wrong_kept == []
    assert found.wrong_answers == []
    assert found.asked > 1_000
    assert found.waited > 50
