"""`streamlib dlq ls | groups | show | export`: look at dead letters, from Redis alone."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import click
import msgspec

from streamlib.cli.dlq_act import edit, purge, replay
from streamlib.cli.letters import dead_letters, filter_options, shown_in_full, summary
from streamlib.cli.options import Given, json_option, shared_options
from streamlib.cli.output import note, print_counts, print_json, print_table, progress
from streamlib.logs import neutralise
from streamlib.ops.archive import ArchiveFile, letter_line
from streamlib.ops.dead_letters import ErrorGroup, Filters, Found

SHOWN = 100
ERROR_WIDTH = 100
_FAILING = "cannot write {path}: {error}; there is no file now"
_CAUSE_COLUMNS = (
    "fingerprint", "count", "topic", "group", "reason", "error", "first_at", "last_at", "sample_id",
)  # fmt: skip


@click.group("dlq")
@shared_options
def command(given: Given) -> None:
    """List, show, export, replay, edit and purge dead letters.

    Works from Redis alone, without the app. The ids that `ls` prints are good for `show`, `replay`, `edit` and
    `purge`.
    """


@command.command("ls")
@filter_options(SHOWN)
@json_option
@shared_options
def ls(given: Given, filters: Filters, as_json: bool) -> None:
    """List dead letters, newest first."""
    settings = given.settings()

    async def work() -> list[Found]:
        async with dead_letters(settings) as letters:
            return await letters.newest(filters)

    rows = [summary(found) for found in asyncio.run(work())]
    if as_json:
        print_json(rows)
        return
    _print(("id", "event_id", "type", "reason", "error", "attempts", "at", "fingerprint"), rows)
    if filters.limit and len(rows) == filters.limit:
        note(f"these are the newest {filters.limit}; --limit shows more")


@command.command("groups")
@filter_options(0)
@json_option
@shared_options
def groups(given: Given, filters: Filters, as_json: bool) -> None:
    """Group dead letters by cause, the most frequent first."""
    settings = given.settings()

    async def work() -> list[ErrorGroup]:
        async with dead_letters(settings) as letters:
            return await letters.by_cause(filters)

    rows = [msgspec.to_builtins(cause) for cause in asyncio.run(work())]
    if as_json:
        print_json(rows)
        return
    columns = (
        "fingerprint",
        "count",
        "topic",
        "group",
        "reason",
        "error",
        "first_at",
        "last_at",
        "sample_id",
    )
    _print(columns, rows)


@command.command("show")
@click.argument("dead_letter_id", metavar="ID")
@json_option
@shared_options
def show(given: Given, dead_letter_id: str, as_json: bool) -> None:
    """Show one dead letter in full: event, error, traceback."""
    settings = given.settings()

    async def work() -> Found:
        async with dead_letters(settings) as letters:
            return await letters.get(dead_letter_id)

    full = shown_in_full(asyncio.run(work()))
    if as_json:
        print_json(full)
        return
    width = max(map(len, full)) + 2
    for name, value in full.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        lines = text.rstrip().split("\n") if name == "traceback" else [text]
        click.echo(f"{name:<{width}}" + f"\n{'':<{width}}".join(map(neutralise, lines)))


@command.command("export")
@filter_options(0)
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@json_option
@shared_options
def export(given: Given, filters: Filters, file: Path, as_json: bool) -> None:
    """Write dead letters to FILE, which is new: a JSON line for each, with its event, error and traceback.

    They stay dead letters. What lies under `event` in a line is a line for `streamlib publish`. Without any there is
    no file.
    """
    settings = given.settings()

    async def work() -> int:
        async with dead_letters(settings) as letters:
            with ArchiveFile(file, failing=_FAILING) as lines, progress("exporting") as advance:
                async for found in letters.find(filters):
                    lines.write(letter_line(found))
                    advance(1)
        return lines.lines

    print_counts({"exported": asyncio.run(work())}, as_json=as_json)


command.add_command(replay)
command.add_command(edit)
command.add_command(purge)


def _print(columns: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    cut = [row | {"error": _short(row["error"])} for row in rows]
    print_table(columns, [[row[name] for name in columns] for row in cut], empty="no dead letters")


def _short(text: str) -> str:
    return text if len(text) <= ERROR_WIDTH else f"{text[:ERROR_WIDTH]}..."
