"""Everything that proves the promises, on every kind of server, as tables: `python -m tests.chaos.all`.

    python -m tests.chaos.all [--parts rows conformance ...] [--server valkey ...] [--rows 1,2,17] [--markdown]

`rows` are the tests of the fault catalogue, `conformance` the cases that every place must pass; each kind of server is
a process of its own, beside the others. Ends with code 1 when something failed.

The seconds are the longest recovery in a row's or a case's tests: from the last thing done to a server, a worker or the
network until what the test waits for held (tests/helpers/recovery.py). One without them is not about a recovery: it
shows an answer, a bound or a state.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product, repeat
from multiprocessing import get_context
from typing import Any

import pytest
from msgspec import Struct

from tests.chaos.catalogue import MISSING, ROWS
from tests.conformance.places import KINDS as PLACES
from tests.conftest import SERVER_ENV
from tests.helpers import recovery
from tests.helpers.servers import SERVER_KINDS, available_kinds

PARTS = ("rows", "conformance")
NUMBERS = frozenset(row.number for row in ROWS)

Line = int | tuple[str, str]
"""What a test shows: a row of the catalogue, or a case of the conformance suite in a place."""


class Result(Struct, frozen=True):
    """How a line did on one server; `word` is pass, FAIL, skip, or "-" where no test shows it."""

    word: str
    recovered_s: float | None = None

    def __str__(self) -> str:
        return self.word if self.recovered_s is None else f"{self.word} {self.recovered_s:.1f}"


Found = dict[str, dict[Line, Result]]
"""Kind of server -> line -> how it did."""


class Runs:
    """A plugin of pytest: chooses the tests that show a wanted line, and keeps how they ended."""

    def __init__(self, parts: Collection[str], rows: Collection[int]) -> None:
        self._rows = set(rows) if "rows" in parts else set[int]()
        self._cases = "conformance" in parts
        self._lines: dict[str, set[Line]] = {}
        self._words: dict[Line, set[str]] = defaultdict(set)
        self._recovered_s: dict[Line, float] = {}

    def _shown_by(self, item: pytest.Item) -> set[Line]:
        lines: set[Line] = {row for mark in item.iter_markers("row") for row in mark.args if row in self._rows}
        if self._cases and item.nodeid.startswith("tests/conformance/"):
            name, _, parameters = item.name.partition("[")
            lines.add((name, next((place for place in PLACES if place in parameters), "")))
        return lines

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        for item in items:
            self._lines[item.nodeid] = self._shown_by(item)
        config.hook.pytest_deselected(items=[item for item in items if not self._lines[item.nodeid]])
        items[:] = [item for item in items if self._lines[item.nodeid]]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        recovered_s = recovery.take() if report.when != "setup" else None
        for line in self._lines[report.nodeid]:
            if recovered_s is not None:
                self._recovered_s[line] = max(recovered_s, self._recovered_s.get(line, 0.0))
            if report.failed or report.skipped or report.when == "call":
                self._words[line].add(report.outcome)

    def results(self) -> dict[Line, Result]:
        told = {"failed": "FAIL", "passed": "pass", "skipped": "skip"}
        return {
            line: Result(next(told[word] for word in told if word in words), self._recovered_s.get(line))
            for line, words in self._words.items()
        }


def run(kind: str, parts: Collection[str], rows: Collection[int]) -> dict[Line, Result]:
    """Run the tests of these parts on one kind of server; pytest's own words go to stderr."""
    os.environ[SERVER_ENV] = kind
    runs = Runs(parts, rows)
    words = ["tests", "-q", "-n", "0", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    with contextlib.redirect_stdout(sys.stderr):
        code = pytest.main(words, plugins=[runs])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise SystemExit(f"pytest ended with {code} on {kind}: see above")
    return runs.results()


def rows_table(found: Found, rows: Collection[int]) -> list[list[str]]:
    """A line for each row of the catalogue: number, fault, and a cell for each server."""
    lines = [["row", "fault", *(f"{kind}, s" for kind in found)]]
    for row in ROWS:
        if row.number in rows:
            cells = [str(results.get(row.number, Result("-"))) for results in found.values()]
            lines.append([str(row.number), row.fault, *cells])
    return lines


def cases_table(found: Found) -> list[list[str]]:
    """A line for each case: its name, and a cell for each place on each server. What needs no servers has one cell."""
    places = [(kind, place) for kind, place in product(found, PLACES)]
    lines = [["case", *(f"{kind} {place}, s" for kind, place in places)]]
    names = sorted({line[0] for results in found.values() for line in results if isinstance(line, tuple)})
    for name in names:
        cells = [found[kind].get((name, place)) or found[kind].get((name, ""), Result("-")) for kind, place in places]
        lines.append([name.removeprefix("test_").replace("_", " "), *map(str, cells)])
    return lines


def told(lines: list[list[str]], *, markdown: bool) -> str:
    """A table as text; its first line is the head."""
    if markdown:
        under = ["--:" if lines[0][0] == "row" else "---", *["---"] * (len(lines[0]) - 1)]
        return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], under, *lines[1:]])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _numbers(text: str) -> list[int]:
    numbers = [int(part) for part in text.split(",")]
    if unknown := set(numbers) - NUMBERS:
        raise argparse.ArgumentTypeError(f"no such rows: {sorted(unknown)}; there are {min(NUMBERS)} to {max(NUMBERS)}")
    return numbers


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.all", description=(__doc__ or "").split("\n")[0])
    add: Any = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=PARTS, help="all by default")
    add("--server", nargs="+", choices=SERVER_KINDS, default=available_kinds(), help="all that are here by default")
    add("--rows", type=_numbers, default=sorted(NUMBERS), help="numbers with commas between; all by default")
    add("--markdown", action="store_true", help="tables for docs/")
    given = parser.parse_args(arguments)
    with ProcessPoolExecutor(len(given.server), mp_context=get_context("spawn")) as processes:
        every = processes.map(run, given.server, repeat(given.parts), repeat(given.rows))
        found: Found = dict(zip(given.server, every, strict=True))
    tables: Mapping[str, Callable[[], list[list[str]]]] = {
        "rows": lambda: rows_table(found, given.rows),
        "conformance": lambda: cases_table(found),
    }
    print("\n\n".join(told(tables[part](), markdown=given.markdown) for part in given.parts))
    for number, why in MISSING.items():
        if "rows" in given.parts and number in given.rows:
            print(f"\nrow {number} is shown by no test: {why}")
    return int(any(result.word == "FAIL" for results in found.values() for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
