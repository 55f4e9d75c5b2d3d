"""Everything that proves the promises, on every kind of server, as tables: `python -m tests.chaos.all`.

    python -m tests.chaos.all [--parts rows conformance sweep mutations] [--server valkey ...] [--into FILE]

`rows` are the tests of the fault catalogue, `conformance` the cases that every place must pass; each kind of server is
a process of its own, beside the others. `sweep` is the whole of tests/chaos/sweep.py, `mutations` all of
tests/chaos/mutations.py. With `--into` each table goes into a page in Markdown, between the lines that name its part.
Ends with code 1 when something failed.

The seconds are the longest recovery in a row's or a case's tests: from the last thing done to a server, a worker or the
network until what the test waits for held (tests/helpers/recovery.py). One without them is not about a recovery: it
shows an answer, a bound or a state.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import product, repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Struct

from tests.chaos import sweep
from tests.chaos.catalogue import MISSING, ROWS
from tests.chaos.mutations import Verdict
from tests.chaos.tables import told
from tests.conformance.places import KINDS as PLACES
from tests.conftest import SERVER_ENV
from tests.helpers import recovery
from tests.helpers.servers import SERVER_KINDS, available_kinds, server_binary

PARTS = ("rows", "conformance", "sweep", "mutations")
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
        recovered_s = recovery.take()  # fixtures strike too, when they make a server ready
        for line in self._lines[report.nodeid]:
            if recovered_s is not None and report.when == "call":
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


def swept(kind: str) -> list[list[str]]:
    """The table of a whole sweep on one kind of server."""
    with tempfile.TemporaryDirectory(prefix="sweep-") as directory:
        return sweep.table(list(sweep.run(sweep.cases(seed=1), kind, Path(directory))))


def sweep_table(kinds: Sequence[str], processes: Executor) -> list[list[str]]:
    """The tables of the sweeps on these kinds of server, one below the other."""
    tables = dict(zip(kinds, processes.map(swept, kinds), strict=True))
    lines = [[kind, *line] for kind, (_, *table) in tables.items() for line in table]
    return [["server", *tables[kinds[0]][0]], *lines]


def mutations_table() -> list[list[str]]:
    """A line for each seeded mistake: what it is, the test that notices, and whether it did."""
    command = [sys.executable, "-m", "tests.chaos.mutations", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    verdicts = msgspec.json.decode(done.stdout, type=list[Verdict])
    lines = [
        [one.mutation.name, one.mutation.mistake, one.mutation.test, "caught" if one.is_caught else "FAIL"]
        for one in verdicts
    ]
    return [["name", "mistake", "noticed by", ""], *lines]


def _numbers(text: str) -> list[int]:
    numbers = [int(part) for part in text.split(",")]
    if unknown := set(numbers) - NUMBERS:
        raise argparse.ArgumentTypeError(f"no such rows: {sorted(unknown)}; there are {min(NUMBERS)} to {max(NUMBERS)}")
    return numbers


def written(page: str, part: str, text: str) -> str:
    """The page with this text between the lines that name its part. Raises ValueError where they are not there."""
    begin, end = f"<!-- {part} -->\n", f"<!-- end of {part} -->\n"
    before, found_begin, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise ValueError(f"the page has no lines {begin.strip()} and {end.strip()}")
    return f"{before}{begin}\n{text}\n\n{end}{after}"


def versions() -> str:
    """When and with what: a sentence."""
    servers = [
        subprocess.run([str(server_binary(kind)), "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout
        for kind in available_kinds()
    ]
    names = " and ".join(" ".join(words.split()[:3]).replace(" server v=", " ") for words in servers)
    python = platform.python_version()
    return (
        f"{datetime.now(UTC):%Y-%m-%d}: {names}, Python {python}, redis-py {version('redis')}, {os.cpu_count()} cores."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.all", description=(__doc__ or "").split("\n")[0])
    add: Any = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=PARTS, help="all by default")
    add("--server", nargs="+", choices=SERVER_KINDS, default=available_kinds(), help="all that are here by default")
    add("--rows", type=_numbers, default=sorted(NUMBERS), help="numbers with commas between; all by default")
    add("--into", type=Path, help="a page that gets the tables")
    given = parser.parse_args(arguments)
    with ProcessPoolExecutor(len(given.server), mp_context=get_context("spawn")) as processes:
        found: Found = {}
        if {"rows", "conformance"} & set(given.parts):
            every = processes.map(run, given.server, repeat(given.parts), repeat(given.rows))
            found = dict(zip(given.server, every, strict=True))
        makers: dict[str, Callable[[], list[list[str]]]] = {
            "rows": lambda: rows_table(found, given.rows),
            "conformance": lambda: cases_table(found),
            "sweep": lambda: sweep_table(given.server, processes),
            "mutations": mutations_table,
        }
        failed = False
        for part in given.parts:
            table = makers[part]()
            failed |= any("FAIL" in cell for line in table[1:] for cell in line[1:])
            print(told(table, markdown=False), end="\n\n", flush=True)
            if given.into is not None:
                text = f"{versions()}\n\n{told(table, markdown=True)}"
                given.into.write_text(written(given.into.read_text(), part, text))
    for number, why in MISSING.items():
        if "rows" in given.parts and number in given.rows:
            print(f"row {number} is shown by no test: {why}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
