"""Runs cases and keeps what came of them: outcomes, what should not have happened, the slowest, the memory."""

from __future__ import annotations

import gc
import random
import resource
import time
import traceback
import tracemalloc
from collections import Counter
from collections.abc import Iterable
from typing import Any

from msgspec import Struct

from tests.fuzz.targets import TARGETS, Target, show

_LARGE = 100_000
"""Bytes from which the memory of a case is measured, which takes much longer than the case itself."""
_SAMPLED = 500
"""Of the smaller ones every so manieth is measured, too."""
_SHOWN = 4
_LARGE_SHOWN = 20
"""Of so many cases one is also shown if it is a dead letter: printing takes longer than reading."""
_SLOWEST = 5
_SHOWN_CHARS = 1_500


class Slow(Struct, order=True):
    """How long a case took, ms of its thread's CPU time."""

    ms: float
    case: int
    target: str
    size: int


class Tally(Struct):
    """What came of some cases. `peak_bytes` is the most that one case had in memory beside its own input."""

    cases: int = 0
    outcomes: dict[str, int] = {}
    wrong: dict[str, str] = {}
    slowest: list[Slow] = []
    peak_bytes: int = 0
    peak_case: int = 0
    grown_bytes: int = 0

    def merge(self, other: Tally) -> None:
        self.cases += other.cases
        self.outcomes = dict(Counter(self.outcomes) + Counter(other.outcomes))
        self.wrong = {**other.wrong, **self.wrong}
        self.slowest = sorted([*self.slowest, *other.slowest], reverse=True)[:_SLOWEST]
        self.peak_bytes, self.peak_case = max((self.peak_bytes, self.peak_case), (other.peak_bytes, other.peak_case))
        self.grown_bytes = max(self.grown_bytes, other.grown_bytes)


def drawn(seed: int, case: int) -> tuple[Target, Any]:
    """The target and the input of a case: the same for ever from the same two numbers."""
    rng = random.Random(seed << 40 | case)
    (target,) = rng.choices(TARGETS, [one.often for one in TARGETS])
    return target, target.make(rng)


def run(seed: int, cases: Iterable[int]) -> Tally:
    """Run these cases."""
    tally, outcomes = Tally(), Counter[str]()
    gc.collect()
    before = _resident()
    for case in cases:
        target, given = drawn(seed, case)
        size = _size(given)
        measured = size > _LARGE or case % _SAMPLED == 0
        outcomes[f"{target.name}: {_timed(tally, target, given, case, size)}"] += 1
        if measured and (peak := _peak(target, given)) > tally.peak_bytes:
            tally.peak_bytes, tally.peak_case = peak, case
        tally.cases += 1
    del given
    gc.collect()
    tally.outcomes, tally.grown_bytes = dict(outcomes), max(_resident() - before, 0)
    return tally


def _timed(tally: Tally, target: Target, given: Any, case: int, size: int) -> str:
    """Read a case, and look at the dead letter that came of it, which is not timed: people do that one by one."""
    started = time.thread_time()
    try:
        try:
            word, letter = target.read(given)
        finally:
            ms = (time.thread_time() - started) * 1000
            if len(tally.slowest) < _SLOWEST or ms > tally.slowest[-1].ms:
                tally.slowest = sorted([*tally.slowest, Slow(ms, case, target.name, size)], reverse=True)[:_SLOWEST]
        if letter is not None and case % (_SHOWN if size < _LARGE else _LARGE_SHOWN) == 0:
            show(letter)
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = "".join(traceback.format_exception(error))[-_SHOWN_CHARS:]
        place = f"{type(error).__name__} at {where.filename}:{where.lineno}"
        tally.wrong.setdefault(place, f"case {case}, {target.name}: {text}")
        return f"WRONG {type(error).__name__}"
    return word


def _peak(target: Target, given: Any) -> int:
    """Bytes that reading this took at its highest."""
    tracemalloc.start()
    try:
        target.read(given)
    except Exception:  # noqa: BLE001, S110 - it was told already
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return peak


def _size(given: Any) -> int:
    if isinstance(given, bytes):
        return len(given)
    if isinstance(given, dict):
        given = [*given, *given.values()]
    return sum(len(part) for part in (given[2] if isinstance(given, tuple) else given))


def _resident() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()
