"""The circuit breaker: what opens it, what closes it, and what a failure costs meanwhile; on a clock of the test's."""

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any

import pytest

from streamlib import App, Breaker, Event
from streamlib.errors import DeclarationError
from streamlib.metrics.worker import WorkerMetrics
from streamlib.worker.circuit import Circuit
from streamlib.worker.pausing import Gate
from streamlib.worker.work import Group, Work

DOWN = ConnectionError("mail is down")


class Placed(Event):
    order_id: str


class Shipped(Event):
    order_id: str


class Highest(random.Random):
    """Draws the upper end: the longest pause."""

    def uniform(self, a: float, b: float) -> float:
        return b


class Clock:
    """Time goes on when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.due: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], None]) -> Any:
        self.due.append((self.now + delay, callback))
        return asyncio.Event()

    def go_on(self, seconds: float) -> None:
        self.now += seconds
        ready = [callback for at, callback in self.due if at <= self.now]
        self.due = [(at, callback) for at, callback in self.due if at > self.now]
        for callback in ready:
            callback()


class Rig:
    def __init__(self, policy: Breaker | None) -> None:
        self.clock, self.gate, metrics = Clock(), Gate(), WorkerMetrics()
        group = Group(topic="orders", group="email", worker_id="w", consumer="c")
        self.registry = metrics.registry
        self.circuit = Circuit(
            policy, self.gate, group, metrics.group("orders", "email"), Highest(), clock=lambda: self.clock
        )

    def fails(self, *, probe: bool = False) -> bool:
        """Whether that spends an attempt."""
        return self.circuit.spends(work(probe=probe), DOWN)

    def succeeds(self, *, probe: bool = False) -> None:
        self.circuit.succeeded(work(probe=probe))

    def opened(self) -> "Rig":
        while self.circuit.closed:
            self.fails()
        return self

    @property
    def state(self) -> str:
        assert self.gate.closed is self.circuit.open, "the gate is closed just while the circuit is open"
        return "closed" if self.circuit.closed else "open" if self.circuit.open else "half-open"

    def told(self) -> tuple[float | None, float | None]:
        """The gauge and the counter."""
        labels = {"topic": "orders", "group": "email"}
        names = "streamlib_breaker_open", "streamlib_breaker_openings_total"
        gauge, counter = (self.registry.get_sample_value(name, labels) for name in names)
        return gauge, counter


def work(*, probe: bool = False) -> Work:
    nothing: Any = None
    return Work(nothing, nothing, Event(), nothing, probe=probe)


def test_it_opens_at_the_nth_failure_in_a_row_and_a_success_begins_the_row_anew() -> None:
    rig = Rig(Breaker(failures=3))
    assert [rig.fails(), rig.fails()] == [True, True]
    rig.succeeds()
    assert [rig.fails(), rig.fails(), rig.state] == [True, True, "closed"]
    assert [rig.fails(), rig.state] == [True, "open"], "those that open it have spent their attempts"


def test_what_runs_on_while_it_is_open_decides_nothing_and_spends_nothing() -> None:
    rig = Rig(Breaker(failures=2)).opened()
    assert not any(rig.fails() for _ in range(100))
    rig.succeeds()
    assert (rig.state, len(rig.clock.due)) == ("open", 1), "its one pause goes on"


def test_after_the_pause_only_a_probe_decides() -> None:
    rig = Rig(Breaker(failures=2, pause=5)).opened()
    rig.clock.go_on(4.9)
    assert rig.state == "open"
    rig.clock.go_on(0.2)
    assert rig.state == "half-open"
    rig.succeeds()
    assert (rig.fails(), rig.state) == (False, "half-open"), "these began before it opened"
    rig.succeeds(probe=True)
    assert rig.state == "closed"


def test_a_failed_probe_doubles_the_next_pause_up_to_the_cap_and_spends_nothing() -> None:
    rig, pauses = Rig(Breaker(failures=2, pause=5, cap=60)).opened(), list[float]()
    for _ in range(6):
        [(due, _)] = rig.clock.due
        pauses.append(due - rig.clock.now)
        rig.clock.go_on(pauses[-1])
        assert (rig.state, rig.fails(probe=True), rig.state) == ("half-open", False, "open")
    assert pauses == [5, 10, 20, 40, 60, 60]


def test_a_probe_that_does_not_end_keeps_the_next_waiting_for_the_cap_only() -> None:
    rig, heard = Rig(Breaker(failures=1, pause=5, cap=20)).opened(), list[float]()
    rig.circuit.on_probe = lambda: heard.append(rig.clock.now)
    rig.clock.go_on(5)
    assert (rig.circuit.probes(0), rig.circuit.probes(1)) == (1, 1), "none was chosen"
    rig.circuit.probing()
    rig.clock.go_on(19)
    assert (rig.circuit.probes(1), heard) == (0, [])
    assert rig.circuit.probes(0) == 1, "it ended without a verdict"
    rig.clock.go_on(1)
    assert (rig.circuit.probes(1), heard) == (1, [25])
    rig.circuit.probing()
    assert rig.circuit.probes(2) == 0


def test_once_closed_it_begins_with_the_first_pause_again() -> None:
    rig = Rig(Breaker(failures=2, pause=5)).opened()
    for _ in range(3):
        rig.clock.go_on(60)
        rig.fails(probe=True)
    rig.clock.go_on(60)
    rig.succeeds(probe=True)
    assert rig.circuit.failed == 0, "a success costs nothing again"
    assert [rig.fails(), rig.state] == [True, "closed"], "and the row begins anew"
    rig.opened()
    assert rig.clock.due[0][0] - rig.clock.now == 5


def test_beyond_its_patience_failed_probes_spend_attempts() -> None:
    """An event that always fails and has no neighbours must find its end."""
    rig = Rig(Breaker(failures=1, pause=10, cap=10, patience=35)).opened()
    spent = []
    for _ in range(5):
        rig.clock.go_on(10)
        spent.append(rig.fails(probe=True))
    assert spent == [False, False, False, True, True]


def test_pauses_are_spread_over_their_whole_range() -> None:
    rng = random.Random(7)
    pauses = [Breaker(pause=1, cap=1).pause_ms(1, rng) for _ in range(2000)]
    assert {pause * 10 // 1000 for pause in pauses} >= set(range(10)), "full jitter: processes do not probe together"


def test_without_a_policy_every_failure_spends_and_nothing_is_counted() -> None:
    rig = Rig(None)
    assert all(rig.fails() for _ in range(1_000))
    assert (rig.state, rig.circuit.failed) == ("closed", 0)


def test_operators_see_it_open_and_close(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="streamlib")
    rig = Rig(Breaker(failures=2, pause=5))
    assert rig.told() == (0, 0)
    rig.opened()
    assert rig.told() == (1, 1)
    rig.clock.go_on(5)
    rig.fails(probe=True)
    assert rig.told() == (1, 1), "a failed probe is no opening"
    rig.clock.go_on(10)
    rig.succeeds(probe=True)
    assert rig.told() == (0, 1)
    opened, again, closed = caplog.records
    told = {"topic": "orders", "group": "email", "failures": 2, "error": "ConnectionError: mail is down"}
    assert (opened.levelname, opened.message) == ("WARNING", "breaker_opened")
    assert (told | {"failed_probes": 0, "pause_ms": 5000}).items() <= vars(opened).items()
    assert {"failed_probes": 1, "pause_ms": 10_000}.items() <= vars(again).items()
    assert (closed.levelname, closed.message) == ("INFO", "breaker_closed")
    assert {"topic": "orders", "group": "email", "failed_probes": 1, "open_s": 15.0}.items() <= vars(closed).items()


def test_a_gate_opens_when_nobody_keeps_it_closed() -> None:
    rig, closed = Rig(Breaker(failures=1, pause=5)).opened(), list[bool]()
    rig.gate.set(is_open=False)
    rig.clock.go_on(5)
    closed.append(rig.gate.closed)  # half-open, but an operator paused the group
    rig.gate.set(is_open=True)
    closed.append(rig.gate.closed)
    rig.fails(probe=True)
    rig.gate.set(is_open=True)
    closed.append(rig.gate.closed)  # that nobody pauses it closes no circuit
    assert closed == [True, False, True]


@pytest.mark.parametrize("other", [None, Breaker(failures=6)])
def test_the_breaker_belongs_to_the_group(other: Breaker | None) -> None:
    app = App("shop")
    orders = app.topic("orders", Placed, Shipped)

    @app.handler(orders, group="email", breaker=Breaker(failures=5))
    async def placed(event: Placed) -> None: ...

    with pytest.raises(DeclarationError, match=r"breaker=.*belongs to the group"):

        @app.handler(orders, group="email", breaker=other)
        async def shipped(event: Shipped) -> None: ...


@pytest.mark.parametrize(
    "senseless",
    [{"failures": 0}, {"pause": 0}, {"pause": 61}, {"cap": 86_401}, {"cap": float("nan")}, {"patience": -1}],
)
def test_senseless_bounds_are_refused(senseless: dict[str, Any]) -> None:
    with pytest.raises(DeclarationError, match=r"Breaker\("):
        Breaker(**senseless)
