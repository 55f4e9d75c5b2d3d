"""How the rig tells how long a recovery took."""

import pytest
import redis

from tests.helpers import recovery
from tests.helpers.waiting import eventually, wait_until


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        monkeypatch.setattr(recovery.time, "monotonic", lambda: self.now_s)  # type: ignore[attr-defined]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    recovery.take()
    return Clock(monkeypatch)


def test_it_is_the_longest_time_from_what_was_done_to_what_was_waited_for(clock: Clock) -> None:
    recovery.struck()
    clock.now_s += 3
    recovery.held()
    recovery.struck()
    clock.now_s += 1
    recovery.held()
    assert recovery.take() == 3
    assert recovery.take() is None, "the next test has its own"


def test_the_last_thing_done_counts_and_a_wait_before_it_does_not(clock: Clock) -> None:
    recovery.held()
    assert recovery.take() is None
    recovery.struck()
    clock.now_s += 10
    recovery.struck()
    clock.now_s += 2
    recovery.held()
    assert recovery.take() == 2


@pytest.mark.parametrize(
    ("command", "strikes"),
    [(("FLUSHALL",), True), (("CONFIG SET", "maxmemory", 1), True), (("client", b"kill", "TYPE", "normal"), True),
     (("CONFIG GET", "*"), False), (("GET", "FLUSHALL"), False), ((), False)],
)  # fmt: skip
def test_commands_that_strike_everybody_are_known(command: tuple[object, ...], strikes: bool) -> None:
    assert recovery.is_striking(command) == strikes


async def test_the_rig_tells_of_what_it_does_and_waits_for(client: redis.Redis) -> None:
    recovery.take()
    wait_until(lambda: client.ping())
    assert recovery.take() is None
    client.flushall()
    await eventually(lambda: True)
    assert recovery.take() is not None
