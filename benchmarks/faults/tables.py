"""The results as tables, one for each fault; several runs of the command stand side by side."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Result = dict[str, int | float | str | None]
Told = dict[str, dict[str, Any]]
"""Peer -> its versions, its settings, and for each fault what was counted, once for each run."""


def merged(runs: Iterable[Told]) -> Told:
    """Raises ValueError where one has other versions or settings: such runs are no rounds of one thing."""
    told: Told = {}
    for run in runs:
        for peer, about in run.items():
            known = told.setdefault(peer, about | {"faults": {}})
            if any(known[what] != about[what] for what in ("versions", "settings")):
                raise ValueError(f"runs of {peer} with different versions or settings")
            for fault, results in about["faults"].items():
                known["faults"].setdefault(fault, []).extend(results)
    return told


def read(files: Iterable[Path]) -> Told:
    return merged(json.loads(file.read_text()) for file in files)


def markdown(told: Told) -> str:
    """Settings, then a table for each fault; where runs counted differently a cell has all of their values."""
    faults = list(dict.fromkeys(fault for about in told.values() for fault in about["faults"]))
    settings = [[_who(peer, told), about["settings"]] for peer, about in told.items()]
    return "\n\n".join([_lines(["library", "settings"], settings), *(_table(fault, told) for fault in faults)])


def _table(fault: str, told: Told) -> str:
    rows = {peer: about["faults"][fault] for peer, about in told.items() if fault in about["faults"]}
    names = dict.fromkeys(name for results in rows.values() for result in results for name in result)
    columns = [name for name in names if name != "took_s"]
    cells = [[_who(peer, told), *(_cell(results, column) for column in columns)] for peer, results in rows.items()]
    return f"## {fault}\n\n" + _lines(["library", *(column.replace("_", " ") for column in columns)], cells)


def _lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def _who(peer: str, told: Told) -> str:
    package, version = next(iter(told[peer]["versions"].items()))
    return f"{package} {version}"


def _cell(results: Sequence[Mapping[str, Any]], column: str) -> str:
    values = ["-" if result.get(column) is None else str(result[column]) for result in results]
    return values[0] if len(set(values)) == 1 else " / ".join(values)
