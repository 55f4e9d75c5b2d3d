"""The crash sweep: every script, struck before and after it runs, by SIGKILL, SIGSTOP past the lease and a lost reply.

    python -m tests.chaos.sweep [--seed S] [--part N/M] [--server valkey] [--only TEXT] [--markdown]

The message is caught on the wire between a process and its server, so no product code knows of it. Prints a line for
each case, a table, and ends with code 1 when a promise did not hold. `--part` does one of M parts, which together are
the whole; `--seed` says which sending of a script is struck, where there are several.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from tests.chaos import sweep_deeds, sweep_worker
from tests.chaos.sweep_case import DRAIN, EFFECT, FAULTS, MOMENTS, TAKEN, Case
from tests.chaos.tables import told
from tests.helpers.servers import SERVER_KINDS, RedisProc

WORKER = "worker"
NOT_STRUCK = {
    "raw_claim": "the yardstick of `streamlib bench`: a consumer as somebody writes it by hand, which promises nothing",
    "raw_settle": "the same",
    "read_within": "writes nothing, and is sent only where replies outgrow the server's output buffer",
    "stream_facts": "the same",
}
"""Scripts that no case strikes, and why."""
OFTEN = ("admit", "append", "beat", "claim", "own", "publish", "read_aggregate", "replay", "settle", EFFECT)
"""What is sent more than once in every case: the seed says which sending is struck."""


class Result(Struct, frozen=True):
    """How a case ended: `recovered_s` from the fault until nothing was under way, `told` what did not hold, if any."""

    case: Case
    recovered_s: float = 0.0
    told: str = ""

    @property
    def holds(self) -> bool:
        return not self.told

    def __str__(self) -> str:
        end = f"pass {self.recovered_s:.1f}" if self.holds else f"FAIL {self.told}"
        return f"{self.case}: {end}"


def cases(seed: int) -> list[Case]:
    """All there are."""
    of_worker = [Case(WORKER, *one) for one in product(sweep_worker.SENT, MOMENTS, FAULTS)]
    effects = [Case(WORKER, EFFECT, *one) for one in product((*MOMENTS, DRAIN), FAULTS)]
    taken = [Case(WORKER, *one, TAKEN) for one in product(sweep_worker.HOLDING, MOMENTS)]
    deeds = [
        Case(name, *one) for name, deed in sweep_deeds.DEEDS.items() for one in product(deed.sends, MOMENTS, FAULTS)
    ]
    every = [*of_worker, *effects, *taken, *deeds]
    return [msgspec.structs.replace(one, nth=1 + _hash(seed, one) % 2) if one.point in OFTEN else one for one in every]


def part_of(every: Sequence[Case], number: int, parts: int) -> list[Case]:
    """The `number`-th of so many parts, from 1; a case is always in the same one."""
    return [one for one in every if _hash(one.sender, one.point, one.moment, one.fault) % parts == number - 1]


def _hash(*what: object) -> int:
    told = "/".join(map(str, what)).encode()
    return int.from_bytes(hashlib.blake2b(told, digest_size=8).digest(), "big")


def run(chosen: Sequence[Case], kind: str, directory: Path) -> Iterator[Result]:
    """One after another, on one server that is emptied before each."""
    with RedisProc(kind, directory / "server") as server:
        for number, case in enumerate(chosen):
            place = directory / f"case-{number}"
            place.mkdir()
            one = sweep_worker.run if case.sender == WORKER else sweep_deeds.run
            try:
                yield Result(case, one(case, server, place))
            except AssertionError as error:
                traceback.print_exc()
                yield Result(case, told=" ".join(str(error).split())[:300] or "see above")


def table(results: Sequence[Result]) -> list[list[str]]:
    """A line for each sender and script; a cell for each moment and fault: seconds to recover, or FAIL."""
    columns = [f"{moment} {fault}" for moment, fault in product((*MOMENTS, DRAIN), (*FAULTS, TAKEN))]
    cells = {(one.case.sender, one.case.point, f"{one.case.moment} {one.case.fault}"): one for one in results}
    columns = [column for column in columns if any(column == struck for _, _, struck in cells)]
    lines = [["sender", "script", *columns]]
    for sender, point in dict.fromkeys((one.case.sender, one.case.point) for one in results):
        found = [cells.get((sender, point, column)) for column in columns]
        lines.append([sender, point, *(_cell(one) for one in found)])
    return lines


def _cell(result: Result | None) -> str:
    if result is None:
        return ""
    return f"{result.recovered_s:.1f}" if result.holds else "FAIL"


def _part(text: str) -> tuple[int, int]:
    number, _, parts = text.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r}: N/M, the N-th of M parts")
    return int(number), int(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.sweep", description=(__doc__ or "").split("\n")[0])
    add: Any = parser.add_argument
    add("--seed", type=int, default=1)
    add("--part", type=_part, default=(1, 1), metavar="N/M")
    add("--server", choices=SERVER_KINDS, default="valkey")
    add("--only", default="", metavar="TEXT", help="cases in whose name this stands, as 'settle' or 'after, kill'")
    add("--markdown", action="store_true", help="a table for docs/")
    given = parser.parse_args(arguments)
    chosen = [one for one in part_of(cases(given.seed), *given.part) if given.only in str(one)]
    results, began_s = [], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sweep-") as directory:
        for result in run(chosen, given.server, Path(directory)):
            results.append(result)
            print(result, file=sys.stderr, flush=True)
    failed = sum(not one.holds for one in results)
    print(told(table(results), markdown=given.markdown))
    took_s = time.monotonic() - began_s
    print(f"\nseed {given.seed}, {given.server}: {len(results)} cases, {failed} failed, {took_s:.0f} s")
    return int(failed > 0 or not results)


if __name__ == "__main__":
    sys.exit(main())
