"""Reads a million hostile entries: `python -m tests.fuzz [--cases 1000000] [--seed S] [--minutes M] [--only CASE]`.

Every case is drawn from the seed and its number alone: `--only` reads one of them again. Ends with code 1 when anything
but a named outcome came of a case.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

from streamlib.cli.run import tame_collector
from tests.fuzz.run import Tally, drawn, run
from tests.fuzz.targets import PAYLOAD_BYTES, show

_CHUNK = 5_000


def chunk(seed: int, first: int, last: int) -> Tally:
    """The cases from `first` to before `last`; the garbage collector is set as `streamlib run` sets it."""
    logging.disable(logging.CRITICAL)
    tame_collector()
    return run(seed, range(first, last))


def fuzz(seed: int, cases: int, processes: int, seconds: float) -> Tally:
    """Run that many cases, or as many as end in that time. A process that dies of one raises BrokenProcessPool."""
    tally = Tally()
    with ProcessPoolExecutor(processes) as pool:
        starts = range(0, cases, _CHUNK)
        waiting = [pool.submit(chunk, seed, first, min(first + _CHUNK, cases)) for first in starts]
        try:
            for done in as_completed(waiting, timeout=seconds):
                tally.merge(done.result())
                print(f"\r{tally.cases:,} of {cases:,}", end="", file=sys.stderr, flush=True)
        except TimeoutError:
            pool.shutdown(cancel_futures=True)
    print(file=sys.stderr)
    return tally


def told(tally: Tally, seconds: float) -> str:
    """The tally for people."""
    lines = [f"{tally.cases:,} cases in {seconds:.0f} s"]
    lines += [f"  {word:<36}{count:>10,}" for word, count in sorted(tally.outcomes.items())]
    lines.append("slowest, ms of CPU:")
    lines += [f"  {one.ms:8.1f}  case {one.case}, {one.target}, {one.size:,} bytes" for one in tally.slowest]
    lines.append(
        f"memory of one case: at most {tally.peak_bytes / PAYLOAD_BYTES:.1f} x limits.payload_bytes (case "
        f"{tally.peak_case}); a process grew by at most {tally.grown_bytes / PAYLOAD_BYTES:.1f} x in {_CHUNK:,} cases"
    )
    return "\n".join([*lines, *(f"\n{wrong}" for wrong in tally.wrong.values())])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").split("\n")[0])
    add: Any = parser.add_argument
    add("--cases", type=int, default=1_000_000)
    add("--seed", type=int, default=1)
    add("--minutes", type=float, default=24 * 60.0, help="end then, whatever is left; a day")
    add("--processes", type=int, default=os.cpu_count() or 1)
    add("--only", type=int, metavar="CASE", help="read this one alone, and let what it raises out")
    given = parser.parse_args(arguments)
    if given.only is not None:
        target, case = drawn(given.seed, given.only)
        print(f"{target.name}: {str(case)[:2_000]}")
        word, letter = target.read(case)
        print(word)
        if letter is not None:
            show(letter)
        return 0
    started = time.monotonic()
    tally = fuzz(given.seed, given.cases, given.processes, given.minutes * 60)
    print(told(tally, time.monotonic() - started))
    return int(bool(tally.wrong))


if __name__ == "__main__":
    sys.exit(main())
