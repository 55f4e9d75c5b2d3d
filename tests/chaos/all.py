"""Runs the tests of the fault catalogue and prints what each row did on each kind of server.

    python -m tests.chaos.all [--server valkey ...] [--rows 1,2,17] [--markdown]

Each kind of server is a process of its own, beside the others. Ends with code 1 when a row failed. The seconds are the
longest recovery in the row's tests: from the last thing done to a server, a worker or the network until what the test
waits for held (tests/helpers/recovery.py). A row without them is not about a recovery: it shows an answer, a bound or a
state.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections import defaultdict
from collections.abc import Collection, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from typing import Any

import pytest
from msgspec import Struct

from tests.chaos.catalogue import MISSING, ROWS
from tests.conftest import SERVER_ENV
from tests.helpers import recovery
from tests.helpers.servers import SERVER_KINDS, available_kinds


class Result(Struct, frozen=True):
    """How a row did on one server; `word` is pass, FAIL, skip, or "-" where no test shows it."""

    word: str
    recovered_s: float | None = None

    def __str__(self) -> str:
        return self.word if self.recovered_s is None else f"{self.word} {self.recovered_s:.1f}"


class RowRuns:
    """A plugin of pytest: chooses the tests of these rows, and keeps how they ended."""

    def __init__(self, wanted: Collection[int]) -> None:
        self._wanted = set(wanted)
        self._rows: dict[str, set[int]] = {}
        self._words: dict[int, set[str]] = defaultdict(set)
        self._recovered_s: dict[int, float] = {}

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        for item in items:
            self._rows[item.nodeid] = {row for mark in item.iter_markers("row") for row in mark.args} & self._wanted
        config.hook.pytest_deselected(items=[item for item in items if not self._rows[item.nodeid]])
        items[:] = [item for item in items if self._rows[item.nodeid]]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        recovered_s = recovery.take() if report.when != "setup" else None
        for row in self._rows[report.nodeid]:
            if recovered_s is not None:
                self._recovered_s[row] = max(recovered_s, self._recovered_s.get(row, 0.0))
            if report.failed or report.skipped or report.when == "call":
                self._words[row].add(report.outcome)

    def results(self) -> dict[int, Result]:
        words = {row: next(word for word in ("failed", "passed", "skipped") if word in self._words[row])
                 for row in self._words}  # fmt: skip
        told = {"failed": "FAIL", "passed": "pass", "skipped": "skip"}
        return {row: Result(told[word], self._recovered_s.get(row)) for row, word in words.items()}


def run(kind: str, wanted: Collection[int]) -> dict[int, Result]:
    """Run the tests of these rows on one kind of server; pytest's own words go to stderr."""
    os.environ[SERVER_ENV] = kind
    runs = RowRuns(wanted)
    words = ["tests", "-q", "-n", "0", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    with contextlib.redirect_stdout(sys.stderr):
        code = pytest.main(words, plugins=[runs])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise SystemExit(f"pytest ended with {code} on {kind}: see above")
    return runs.results()


def table(results: dict[str, dict[int, Result]], wanted: Collection[int], *, markdown: bool) -> str:
    """A line for each row: number, fault, and a cell for each server."""
    lines = [["row", "fault", *(f"{kind}, s" for kind in results)]]
    for row in ROWS:
        if row.number in wanted:
            cells = [str(found.get(row.number, Result("-"))) for found in results.values()]
            lines.append([str(row.number), row.fault, *cells])
    if markdown:
        lines.insert(1, ["--:", *["---"] * (len(lines[0]) - 1)])
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _numbers(text: str) -> list[int]:
    known = {row.number for row in ROWS}
    numbers = [int(part) for part in text.split(",")]
    if unknown := set(numbers) - known:
        raise argparse.ArgumentTypeError(f"no such rows: {sorted(unknown)}; there are {min(known)} to {max(known)}")
    return numbers


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.all", description=(__doc__ or "").split("\n")[0])
    add: Any = parser.add_argument
    add("--server", nargs="+", choices=SERVER_KINDS, default=available_kinds(), help="all that are here by default")
    add("--rows", type=_numbers, default=[row.number for row in ROWS], help="numbers with commas between; all")
    add("--markdown", action="store_true", help="a table for docs/")
    given = parser.parse_args(arguments)
    with ProcessPoolExecutor(len(given.server), mp_context=get_context("spawn")) as processes:
        found = processes.map(run, given.server, repeat(given.rows))
        results = dict(zip(given.server, found, strict=True))
    print(table(results, given.rows, markdown=given.markdown))
    for number, why in MISSING.items():
        if number in given.rows:
            print(f"\nrow {number} is shown by no test: {why}")
    return int(any(result.word == "FAIL" for found in results.values() for result in found.values()))


if __name__ == "__main__":
    sys.exit(main())
