"""Whatever happens to the owners of a view, in any order: each generation is the fold of its stream, exactly."""

from __future__ import annotations

import pytest

from streamlib.ops import dropping
from tests.properties.running import Place, at, run_machine
from tests.properties.view_machine import ViewMachine

pytestmark = pytest.mark.timeout(900)
"""What fails is made small first, which takes its time."""


@pytest.fixture(autouse=True)
def readers_follow_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are none that a deletion would have to wait for."""
    monkeypatch.setattr(dropping, "READERS_S", 0.0)


def test_a_view_is_the_fold_of_its_stream_after_every_step_on_the_redis_inside_the_process() -> None:
    machine = at(ViewMachine, Place())
    run_machine(machine, examples=50, steps=40)
    assert machine.met["OK"], "something was folded"


def test_a_view_is_the_fold_of_its_stream_after_every_step_on_a_real_server(redis_url: str) -> None:
    machine = at(ViewMachine, Place(redis_url))
    run_machine(machine, examples=40, steps=40)
    assert machine.met["OK"], "something was folded"
