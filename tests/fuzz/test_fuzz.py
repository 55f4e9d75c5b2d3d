"""A share of the fuzzing that `python -m tests.fuzz` does: nothing but named outcomes, in bounded time and memory."""

import pytest

from tests.fuzz.__main__ import told
from tests.fuzz.run import drawn, run
from tests.fuzz.targets import PAYLOAD_BYTES, TARGETS

CASES = 5_000
CPU_MS = 500.0
"""Ten times the aim, for machines that do many things at once."""
MOST_PER_BYTE = 100
"""Bytes in memory for each byte of an event at the limit: an empty map is one byte of msgpack, and 72 in Python."""
MOST_KEPT = 100
"""How many times the limit a process may grow by all these cases: what they leave behind, and the allocator's own."""


@pytest.mark.parametrize("share", range(4))
def test_whatever_lies_in_redis_ends_as_an_event_or_a_named_outcome(share: int) -> None:
    tally = run(seed=7, cases=range(share * CASES, (share + 1) * CASES))
    assert not tally.wrong, told(tally, 0)
    assert tally.cases == CASES
    assert {word.partition(":")[0] for word in tally.outcomes} == {target.name for target in TARGETS}
    assert tally.slowest[0].ms < CPU_MS, told(tally, 0)
    assert tally.peak_bytes < MOST_PER_BYTE * PAYLOAD_BYTES, told(tally, 0)
    assert tally.grown_bytes < MOST_KEPT * PAYLOAD_BYTES, told(tally, 0)


def test_a_case_is_the_same_whenever_it_is_drawn() -> None:
    for case in range(200):
        (target, given), (other, again) = drawn(3, case), drawn(3, case)
        assert (target.name, given) == (other.name, again)
