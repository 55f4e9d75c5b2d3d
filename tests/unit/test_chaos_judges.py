"""What the chaos proofs of ordered groups judge by: runs that overlap, partitions that stayed or were given up."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.owner_watch import Owned, Sample, given_up, stayed
from tests.chaos.run_log import Freeze, Run, overlaps, read_runs

SECOND = 1_000_000_000


def test_runs_are_read_with_their_ends_and_one_without_is_told(tmp_path: Path) -> None:
    path = tmp_path / "runs.log"
    path.write_text("10 began 1 0 a 7\n20 began 2 0 b 1\n30 ended 1 0 raised\n40 began 1 1 a 7\n50 ended 1 1 done\n")
    assert read_runs(path, {2: 35}) == [
        Run(1, "a", 7, 10, 30, "raised"),
        Run(2, "b", 1, 20, 35, "killed"),
        Run(1, "a", 7, 40, 50, "done"),
    ]
    with pytest.raises(AssertionError, match="event 1 of b began in process 2 and never ended"):
        read_runs(path, {})


def test_runs_of_one_key_at_one_time_are_found_unless_their_process_was_frozen() -> None:
    first, second = Run(1, "a", 0, 0, 5 * SECOND, "done"), Run(2, "a", 0, 3 * SECOND, 4 * SECOND, "done")
    beside, after = Run(2, "b", 0, 1, 2, "done"), Run(2, "a", 1, 5 * SECOND, 6 * SECOND, "done")
    runs = [first, beside, second, after]
    assert overlaps(runs, []).while_held == [(first, second)]
    while_it_ran = overlaps(runs, [Freeze(1, SECOND, 4 * SECOND)])
    assert (while_it_ran.while_held, while_it_ran.of_frozen) == ([], {first})
    just_before = overlaps(runs, [Freeze(2, 0, 3 * SECOND - 1_000)])
    assert (just_before.while_held, just_before.of_frozen) == ([], {second})
    assert overlaps(runs, [Freeze(2, 0, SECOND), Freeze(1, 6 * SECOND, 7 * SECOND)]).while_held == [(first, second)]


def test_partitions_that_stayed_are_told_from_those_that_moved_or_were_taken_again() -> None:
    def sample(*owned: Owned) -> Sample:
        return Sample(0, owned, {})

    kept, moved = Owned("w1", 5, True, False), Owned("w2", 9, True, False)
    again, released = Owned("w1", 8, True, False), Owned("w1", 5, False, True)
    samples = [sample(kept, kept, kept, kept), sample(kept, moved, released, again), sample(kept, kept, kept, again)]
    assert stayed(samples) == [0, 2, 3]
    assert given_up(samples, stayed(samples)) == [2, 3]
    assert samples[0].levelled(["w1"])
    assert not samples[0].levelled(["w1", "w2"]), "one holds all and the other nothing"
    assert not samples[1].levelled(["w1", "w2"]), "one is in nobody's hands"
