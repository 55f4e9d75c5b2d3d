"""The fault catalogue is whole: each row is shown by a test or says why not, and tests name no other rows."""

from __future__ import annotations

import argparse
import ast
import re
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.all import Found, Result, Runs, _numbers, cases_table, rows_table, written
from tests.chaos.catalogue import MISSING, ROWS
from tests.chaos.mutations import MUTATIONS
from tests.chaos.tables import told

TESTS = Path(__file__).parents[1]


def marked() -> dict[int, list[str]]:
    """Row number -> where tests carry it, read from the sources of all tests."""
    found: dict[int, list[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.row":
                for number in node.args:
                    assert isinstance(number, ast.Constant), f"{path}:{node.lineno}: a row is a plain number"
                    found.setdefault(int(str(number.value)), []).append(f"{path.name}:{node.lineno}")
    return found


def test_rows_are_78_and_say_something() -> None:
    assert [row.number for row in ROWS] == list(range(1, 79))
    assert all(row.fault and row.must for row in ROWS)
    assert len({row.fault for row in ROWS}) == len(ROWS)


def test_each_row_has_a_test_or_says_why_not() -> None:
    assert sorted(marked().keys() | MISSING.keys()) == [row.number for row in ROWS]
    assert not marked().keys() & MISSING.keys(), "a row that is shown is not missing"


PROBE = """
import pytest

@pytest.mark.row(1, 2)
def test_good(): assert True

@pytest.mark.row(2)
def test_bad(): assert False

@pytest.mark.row(3)
@pytest.mark.skip
def test_skipped(): assert True

@pytest.mark.row(4)
def test_not_wanted(): assert False

def test_of_no_row(): assert False
"""


def test_a_row_passes_when_all_its_tests_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "test_probe.py").write_text(PROBE)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = row(*numbers)\n")
    runs = Runs(["rows"], [1, 2, 3])
    quiet = ["-p", "no:cacheprovider", "-p", "no:asyncio", "-p", "no:xdist", "-p", "no:streamlib"]
    assert pytest.main([str(tmp_path), "-c", str(tmp_path / "pytest.ini"), "-q", *quiet], plugins=[runs]) == 1
    assert "4 failed" not in capsys.readouterr().out
    assert {row: result.word for row, result in runs.results().items()} == {1: "pass", 2: "FAIL", 3: "skip"}


def test_the_table_has_a_line_for_each_row_and_a_cell_for_each_server() -> None:
    found: Found = {"valkey": {1: Result("pass", 1.25)}, "redis8": {1: Result("FAIL"), 2: Result("skip")}}
    header, first, second = told(rows_table(found, [1, 2]), markdown=False).splitlines()
    assert header.split() == ["row", "fault", "valkey,", "s", "redis8,", "s"]
    assert first.endswith("pass 1.2   FAIL")
    assert second.endswith("-          skip")
    assert told(rows_table(found, [1]), markdown=True).splitlines()[1:] == [
        "| --: | --- | --- | --- |",
        f"| 1 | {ROWS[0].fault} | pass 1.2 | FAIL |",
    ]


def test_a_case_has_a_cell_for_each_place_and_one_of_no_place_the_same_in_all() -> None:
    cases: Any = {("test_it_holds", "cluster"): Result("pass", 0.5), ("test_of_no_server", ""): Result("pass")}
    lines = cases_table({"valkey": cases})
    assert lines == [
        ["case", "valkey standalone, s", "valkey sentinel, s", "valkey cluster, s"],
        ["it holds", "-", "-", "pass 0.5"],
        ["of no server", "pass", "pass", "pass"],
    ]


def test_rows_that_are_not_there_are_refused() -> None:
    assert _numbers("1,17") == [1, 17]
    with pytest.raises(argparse.ArgumentTypeError, match="no such rows: \\[79\\]; there are 1 to 78"):
        _numbers("1,79")


def test_a_table_takes_the_place_of_the_one_before() -> None:
    page = "before\n<!-- rows -->\nold\n<!-- end of rows -->\nafter\n"
    once = written(page, "rows", "new")
    assert once == "before\n<!-- rows -->\n\nnew\n\n<!-- end of rows -->\nafter\n"
    assert written(once, "rows", "new") == once
    with pytest.raises(ValueError, match="no lines <!-- conformance -->"):
        written(page, "conformance", "new")


GUARANTEES = (TESTS.parent / "docs/guarantees.md").read_text()


def _cells(part: str) -> list[list[str]]:
    table = GUARANTEES.partition(f"<!-- {part} -->")[2].partition(f"<!-- end of {part} -->")[0]
    return [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")][2:]


def test_the_page_of_guarantees_has_each_row_as_it_is_and_none_that_failed() -> None:
    rows = _cells("rows")
    assert [(int(number), fault) for number, fault, *_ in rows] == [(row.number, row.fault) for row in ROWS]
    for number, _, *cells in rows:
        assert all(cell.startswith(("pass", "skip")) or int(number) in MISSING for cell in cells), number


def test_the_page_of_guarantees_has_each_mistake_and_all_are_caught() -> None:
    assert [cells[0] for cells in _cells("mutations")] == [one.name for one in MUTATIONS]
    assert all(cells[-1] == "caught" for cells in _cells("mutations"))


def test_the_promises_name_rows_and_mistakes_that_there_are() -> None:
    table = GUARANTEES.partition("| promise |")[2].partition("\n\n")[0]
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    assert len(lines) == 9
    rest = {
        int(number)
        for number in re.findall(r"\((\d+)\)", GUARANTEES.partition("What no promise names")[2].partition("\n\n")[0])
    }
    assert {int(number) for line in lines for number in line[2].split()} | rest == {row.number for row in ROWS}
    mistakes = {name for line in lines for name in line[3].split(", ")}
    assert mistakes == {one.name for one in MUTATIONS}
