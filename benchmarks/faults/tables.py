"""The results as tables, one for each fault, and several runs of the command put together."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Result = dict[str, int | float | str | None]
Told = dict[str, dict[str, Any]]
"""Peer -> its versions, its settings, and for each fault what was counted."""


def merged(files: Iterable[Path]) -> Told:
    """Later files win, fault by fault."""
    told: Told = {}
    for file in files:
        for peer, about in json.loads(file.read_text()).items():
            known = told.setdefault(peer, about)
            known["faults"] |= about["faults"]
            known |= {"versions": about["versions"], "settings": about["settings"]}
    return told


def markdown(told: Mapping[str, Mapping[str, Any]]) -> str:
    faults = list(dict.fromkeys(fault for about in told.values() for fault in about["faults"]))
    return "\n\n".join(_table(fault, told) for fault in faults)


def _table(fault: str, told: Mapping[str, Mapping[str, Any]]) -> str:
    rows = {peer: about["faults"][fault] for peer, about in told.items() if fault in about["faults"]}
    columns = [name for name in dict.fromkeys(name for row in rows.values() for name in row) if name != "took_s"]
    words = [["library", *(column.replace("_", " ") for column in columns)], ["---"] * (len(columns) + 1)]
    words += [[_who(peer, told), *(_cell(row.get(column)) for column in columns)] for peer, row in rows.items()]
    return f"## {fault}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in words)


def _who(peer: str, told: Mapping[str, Mapping[str, Any]]) -> str:
    package, version = next(iter(told[peer]["versions"].items()))
    return f"{package} {version}"


def _cell(value: float | str | None) -> str:
    return "-" if value is None else str(value)
