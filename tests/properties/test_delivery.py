"""Whatever happens to publishers and workers, in any order: every event is where the promises say."""

from __future__ import annotations

import pytest

from tests.properties.delivery_machine import DeliveryMachine
from tests.properties.running import Place, at, run_machine

pytestmark = pytest.mark.timeout(900)
"""What fails is made small first, which takes its time."""


def test_the_promises_hold_after_every_step_on_the_redis_inside_the_process() -> None:
    machine = at(DeliveryMachine, Place())
    run_machine(machine, examples=60, steps=40)
    assert machine.met["done"], "events ran to their end"


def test_the_promises_hold_after_every_step_on_a_real_server(redis_url: str) -> None:
    machine = at(DeliveryMachine, Place(redis_url))
    run_machine(machine, examples=40, steps=40)
    assert machine.met["done"], "events ran to their end"
