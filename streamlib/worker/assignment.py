"""Who should own which partition: pure arithmetic, so that every worker comes to the same answer by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from hashlib import blake2b

_NOTHING: Mapping[str, AbstractSet[int]] = {}


def assign(
    partitions: int, workers: Sequence[str], salt: str, refused: Mapping[str, AbstractSet[int]] = _NOTHING
) -> dict[int, str]:
    """Partition -> worker. The same in every process, whatever the order of `workers`.

    Shares are floor(P/N) or one more; which workers get one more goes by an order of `salt`'s own, so that many groups
    of one partition do not all go to one worker. Within the shares, pairs are formed by the highest hash of worker and
    partition first, so that most of them stay when a worker comes or goes.

    What a worker has `refused` goes to the others, first of all and about as evenly as that allows; what all
    refuse is in nobody's share. Who refuses everything, as it drains, counts as gone: nothing moves again when it is.
    """
    wanted = set(range(partitions))
    takes_part = {worker for worker in workers if not wanted <= set(refused.get(worker, ()))}
    order = sorted(takes_part, key=lambda worker: (_score(salt, worker), worker))
    load = dict.fromkeys(order, 0)
    shares: dict[int, str] = {}
    some_refuse = {number for worker in order for number in refused.get(worker, ())} & wanted
    takers = {n: [worker for worker in order if n not in refused.get(worker, ())] for n in some_refuse}
    quotas = _levelled(load, partitions - sum(not able for able in takers.values()))
    for number in sorted(some_refuse, key=lambda n: (len(takers[n]), n)):
        if takers[number]:
            able = [worker for worker in takers[number] if load[worker] < quotas[worker]]
            chosen = _best(salt, number, able or _least(load, takers[number]))
            shares[number] = chosen
            load[chosen] += 1
    free = sorted(wanted - some_refuse)
    quotas = _levelled(load, len(free))
    pairs = sorted(((_score(salt, worker, n), worker, n) for worker in order for n in free), reverse=True)
    for _, worker, number in pairs:
        if number not in shares and load[worker] < quotas[worker]:
            shares[number] = worker
            load[worker] += 1
    return shares


def _levelled(load: Mapping[str, int], more: int) -> dict[str, int]:
    """The loads after `more` partitions, each given to the least loaded worker, the first in order among equals."""
    levels = dict(load)
    for _ in range(more if levels else 0):
        levels[min(levels, key=levels.__getitem__)] += 1
    return levels


def _least(load: Mapping[str, int], workers: Sequence[str]) -> list[str]:
    least = min(load[worker] for worker in workers)
    return [worker for worker in workers if load[worker] == least]


def _best(salt: str, number: int, workers: Sequence[str]) -> str:
    return max(workers, key=lambda worker: (_score(salt, worker, number), worker))


def _score(salt: str, worker: str, number: int | None = None) -> int:
    text = f"{salt}\0{worker}\0{'' if number is None else number}"
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())
