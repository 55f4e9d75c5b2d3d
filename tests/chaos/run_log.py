"""What ran when, and in which process: the lines that the ordered app's runs leave outside, read and judged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from msgspec import Struct

_JUST_WOKEN_NS = 100_000_000


class Run(Struct, frozen=True):
    """One run of one event, by the machine's monotonic clock. A run that was killed ended with its process."""

    pid: int
    key: str
    n: int
    began_ns: int
    ended_ns: int
    ending: str


class Freeze(Struct, frozen=True):
    """A process stood still between these."""

    pid: int
    start_ns: int
    end_ns: int


class Overlaps(Struct, frozen=True):
    """Runs of one key at one time."""

    of_frozen: set[Run]
    """Their process was stopped for longer than its lease: it could not know that it had lost it."""
    while_held: list[tuple[Run, Run]]
    """There is no excuse for these: an earlier run, and one that began before its end."""


def read_runs(path: Path, killed_ns: Mapping[int, int]) -> list[Run]:
    """All runs in the order in which they began. Raises AssertionError for one that never ended though nobody killed
    its process (`killed_ns`: pid -> when)."""
    began: dict[tuple[int, int], tuple[int, str, int]] = {}
    ended: dict[tuple[int, int], tuple[int, str]] = {}
    for line in path.read_text().splitlines():
        at_ns, what, pid, number, *rest = line.split(" ")
        ident = int(pid), int(number)
        if what == "began":
            began[ident] = int(at_ns), rest[0], int(rest[1])
        else:
            ended[ident] = int(at_ns), rest[0]
    runs = []
    for ident, (began_ns, key, n) in began.items():
        process = ident[0]
        if ident not in ended:
            assert process in killed_ns, f"event {n} of {key} began in process {process} and never ended"
        ended_ns, ending = ended.get(ident) or (killed_ns[process], "killed")
        runs.append(Run(process, key, n, began_ns, ended_ns, ending))
    return sorted(runs, key=lambda run: run.began_ns)


def overlaps(runs: Iterable[Run], freezes: Sequence[Freeze]) -> Overlaps:
    """What began before an earlier run of its key had ended."""
    found = Overlaps(set(), [])
    open_runs: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        still = [earlier for earlier in open_runs[run.key] if earlier.ended_ns > run.began_ns]
        open_runs[run.key] = [*still, run]
        for earlier in still:
            frozen = {one for one in (earlier, run) if _was_frozen(one, freezes)}
            found.of_frozen.update(frozen)
            if not frozen:
                found.while_held.append((earlier, run))
    return found


def _was_frozen(run: Run, freezes: Sequence[Freeze]) -> bool:
    """Stopped while it ran, or between the last look at its lease and its first line."""
    return any(
        freeze.pid == run.pid and freeze.start_ns < run.ended_ns and freeze.end_ns + _JUST_WOKEN_NS > run.began_ns
        for freeze in freezes
    )
