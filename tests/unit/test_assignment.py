"""Who should own which partition: even shares, and a worker that comes or goes moves no more than it must."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from streamlib.worker.assignment import assign

SALT = "moves:ledger"
SEEDS = range(50)


def workers(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    return [f"{rng.getrandbits(64):016x}" for _ in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 11])
def test_shares_differ_by_at_most_one_whoever_asks(count: int) -> None:
    for seed in SEEDS:
        names = workers(seed, count)
        shares = assign(8, names, SALT)
        assert sorted(shares) == list(range(8))
        load = Counter(shares.values())
        assert max(load.values()) - min(load[name] for name in names) <= 1
        assert assign(8, [*reversed(names)], SALT) == shares


@pytest.mark.parametrize("count", [2, 3, 4, 8])
@pytest.mark.parametrize("leaving", [1, 2])
def test_a_worker_that_drains_is_to_the_others_as_if_it_had_gone(count: int, leaving: int) -> None:
    """Else partitions would move when it begins to drain, and others once more when it has gone."""
    for seed in SEEDS:
        names = workers(seed, count)
        draining = {name: frozenset(range(8)) for name in names[:leaving]}
        assert assign(8, names, SALT, draining) == assign(8, names[leaving:], SALT)


def test_what_one_refuses_goes_to_others_and_what_all_refuse_to_nobody() -> None:
    for seed in SEEDS:
        first, second, third = workers(seed, 3)
        refused = {first: {0, 1, 7}, second: {1, 7}, third: {7}}
        shares = assign(8, [first, second, third], SALT, refused)
        assert sorted(shares) == list(range(7))
        assert shares[0] in (second, third)
        assert shares[1] == third
        load = Counter(shares.values())
        assert max(load.values()) - min(load.values()) <= 1
