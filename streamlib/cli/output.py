"""What commands print: JSON or tables on stdout, notes, progress and questions on stderr."""

from __future__ import annotations

import contextlib
import getpass
import json
import logging
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from streamlib.errors import Refused
from streamlib.logs import neutralise

_log = logging.getLogger("streamlib.cli")

_RELATIVE = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d|w)")
_ENTRY_ID = re.compile(r"([0-9]{12,19})(?:-[0-9]+)?")
_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_CONTROL_IN_JSON = re.compile("[\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def print_json(value: Any) -> None:
    """JSON, indented; nothing in it can steer a terminal."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    click.echo(_CONTROL_IN_JSON.sub(lambda found: f"\\u{ord(found.group()):04x}", text))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str) -> None:
    """A table on stdout; without rows a note on stderr. Numbers stand to the right."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        note(empty)
        return
    console = Console(file=sys.stdout) if sys.stdout.isatty() else Console(file=sys.stdout, width=1_000)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    numeric = [all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(columns))]
    for column, right in zip(columns, numeric, strict=True):
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    console.print(table)


def print_counts(counts: Mapping[str, Any], *, as_json: bool) -> None:
    """What a command did: JSON, or `name=value` pairs on one line."""
    if as_json:
        print_json(dict(counts))
        return
    shown = {name: json.dumps(value) if isinstance(value, bool) else value for name, value in counts.items()}
    click.echo(neutralise(" ".join(f"{name}={value}" for name, value in shown.items() if name != "dry_run")))


def note(text: str) -> None:
    """One line for the person at the terminal."""
    click.echo(neutralise(text), err=True)


@contextlib.contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """`advance(n)` for long work: a bar on stderr if that is a terminal, else nothing."""
    if not sys.stderr.isatty():
        yield lambda n: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda n: bar.advance(task, n)


def agree(act: str, *, yes: bool) -> None:
    """Ask before `act` ("delete 12 dead letters"), and log who agreed.

    Raises Refused: answered no, or nobody there to ask.
    """
    if not yes and not sys.stdin.isatty():
        raise Refused(f"refused to {act}: there is no terminal to ask; add --yes, or --dry-run to look first")
    if not yes and not click.confirm(f"Really {act}?", err=True):
        raise Refused(f"did not {act}")
    _log.info("agreed_to", extra={"act": act, "by": _user(), "host": socket.gethostname(), "asked": not yes})


def _user() -> str:
    """The name of who runs this, or the number of a user who has none, as in a container."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def when(text: str) -> int:
    """A moment in ms: `15m`, `2h`, `7d` ago, an ISO date or time (UTC unless it says so), or an entry id."""
    if found := _RELATIVE.fullmatch(text):
        ago = timedelta(seconds=float(found.group(1)) * _UNITS_S[found.group(2)])
        return max(int((datetime.now(UTC) - ago).timestamp() * 1000), 0)
    if found := _ENTRY_ID.fullmatch(text):
        return int(found.group(1))
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise click.BadParameter(
            f"{text!r} is no moment; write 15m, 2h, 7d, 2026-11-24T09:30Z or an entry id"
        ) from error
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.1f}"
    return neutralise(str(value))
