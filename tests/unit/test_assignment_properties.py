"""Assignment over many random settings: exact shares, few needless moves, refusals kept, no favourite worker."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

import pytest

from streamlib.worker.assignment import assign

SEEDS = range(200)
SIZES = [(1, 3), (2, 5), (7, 3), (8, 8), (16, 5), (64, 7), (3, 64)]


def workers(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    return [f"{rng.getrandbits(64):016x}" for _ in range(count)]


def refusals(seed: int, names: Sequence[str], partitions: int, share: float) -> dict[str, set[int]]:
    rng = random.Random(f"refused {seed}")
    return {name: {n for n in range(partitions) if rng.random() < share} for name in names}


@pytest.mark.parametrize(("partitions", "count"), SIZES)
def test_every_worker_has_its_floor_and_the_rest_go_one_to_each(partitions: int, count: int) -> None:
    for seed in SEEDS:
        names = workers(seed, count)
        shares = assign(partitions, names, f"salt {seed}")
        assert sorted(shares) == list(range(partitions))
        load = Counter(shares.values())
        floor, more = divmod(partitions, count)
        assert sorted(load[name] for name in names) == [floor] * (count - more) + [floor + 1] * more


def test_the_same_whatever_the_order_of_workers_and_however_often_they_are_named() -> None:
    for seed in SEEDS:
        names = workers(seed, 6)
        expected = assign(20, names, "s")
        shuffled = [*names, *names[:3]]
        random.Random(seed).shuffle(shuffled)
        assert assign(20, shuffled, "s") == expected


def test_nobody_lives_nobody_owns() -> None:
    assert assign(4, [], "s") == {}
    assert assign(0, ["w"], "s") == {}


@pytest.mark.parametrize(("partitions", "count"), [(8, 3), (16, 5), (64, 8)])
def test_a_worker_that_comes_or_goes_moves_little_but_its_own(partitions: int, count: int) -> None:
    """Shares must stay even, so a few others may move; most of what stays with the living must not."""
    needless = []
    for seed in SEEDS:
        names = workers(seed, count + 1)
        before, after = assign(partitions, names, "s"), assign(partitions, names[:-1], "s")
        stayed = [n for n in range(partitions) if before[n] != names[-1]]
        moved = sum(before[n] != after[n] for n in stayed)
        needless.append(moved / len(stayed))
        assert moved <= len(stayed) / 2
    assert sum(needless) / len(needless) < 0.15


def test_of_many_groups_with_one_partition_each_worker_gets_its_part() -> None:
    names = workers(1, 4)
    load = Counter(assign(1, names, f"topic{n}:group")[0] for n in range(4_000))
    assert sorted(load) == sorted(names)
    assert all(800 < load[name] < 1_200 for name in names), load


@pytest.mark.parametrize("share", [0.05, 0.35, 0.7])
@pytest.mark.parametrize(("partitions", "count"), [(6, 3), (16, 5), (64, 4)])
def test_nobody_gets_what_it_refused_and_nothing_is_left_that_somebody_takes(
    partitions: int, count: int, share: float
) -> None:
    for seed in SEEDS:
        names = workers(seed, count)
        refused = refusals(seed, names, partitions, share)
        shares = assign(partitions, names, "s", refused)
        assert [n for n, worker in shares.items() if n in refused[worker]] == []
        assert set(shares) == {n for n in range(partitions) if any(n not in refused[name] for name in names)}
        assert assign(partitions, names[::-1], "s", dict(reversed(refused.items()))) == shares


def test_refusals_of_partitions_that_do_not_exist_change_nothing() -> None:
    names = workers(3, 3)
    assert assign(5, names, "s", {names[0]: {5, 17, -1}, "gone": {0, 1}}) == assign(5, names, "s")


def test_shares_with_refusals_are_as_even_as_any_but_for_one() -> None:
    for seed in SEEDS:
        rng = random.Random(seed)
        names, partitions = workers(seed, 3), rng.randint(1, 6)
        refused = refusals(seed, names, partitions, 0.35)
        load = Counter(assign(partitions, names, "s", refused).values())
        assert max(load.values(), default=0) <= _least_most(partitions, names, refused) + 1


def _least_most(partitions: int, names: Sequence[str], refused: Mapping[str, AbstractSet[int]]) -> int:
    """The largest load of the best of all assignments."""
    able = [[name for name in names if n not in refused[name]] for n in range(partitions)]
    every = itertools.product(*filter(None, able))
    return min(max(Counter(one).values(), default=0) for one in every)
