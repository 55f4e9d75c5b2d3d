"""`streamlib schema export | check`: the schemas of an app's events in a file, and what changes would break."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from streamlib.app import App
from streamlib.cli.app_import import load_app
from streamlib.cli.exits import Exit
from streamlib.cli.options import Given, json_option, shared_options
from streamlib.cli.output import note, print_json, print_table
from streamlib.errors import SchemaFileError
from streamlib.ops.schema import Document, export, parse, text_of
from streamlib.ops.schema_changes import Change, compare

_COLUMNS = ("result", "topic", "type", "version", "field", "change", "breaks")


@click.group("schema")
@shared_options
def command(given: Given) -> None:
    """Keep the schemas of an app's events in a file, and find changes that break stored events or older workers.

    Works from the app alone, without Redis.
    """


@command.command("export")
@click.argument("app_path", metavar="APP")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path), required=False)
@shared_options
def export_(given: Given, app_path: str, file: Path | None) -> None:
    """Write the JSON Schema of every topic, type and version of APP to FILE, or to standard output.

    The same schemas give the same text. Keep the file beside the app and let CI run `streamlib schema check`.
    """
    given.settings()
    text = text_of(_schemas(load_app(app_path)))
    if file is None:
        click.echo(text, nl=False)
        return
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SchemaFileError(f"cannot write {file}: {error.strerror}") from error
    note(f"wrote {file}")


@command.command("check")
@click.argument("app_path", metavar="APP")
@click.argument("file", type=click.Path(path_type=Path))
@json_option
@shared_options
def check(given: Given, app_path: str, file: Path, as_json: bool) -> None:
    """Compare the events of APP with the schemas kept in FILE.

    Exits with 1 when a change breaks "stored events" (they could no longer be read) or "older workers" (which run
    beside newer ones during a deploy).
    """
    given.settings()
    changes = compare(_kept(app_path, file), _schemas(load_app(app_path)))
    if as_json:
        print_json([msgspec.to_builtins(one) | {"breaking": bool(one.breaks)} for one in changes])
    else:
        print_table(_COLUMNS, [_row(one) for one in changes], empty=f"nothing has changed since {file} was written")
    breaking = sum(bool(one.breaks) for one in changes)
    if breaking:
        note(_way_out(breaking, changes))
        given.ctx.exit(Exit.FAILED)
    if changes:
        note(f"nothing breaks; write {file} anew once this is deployed: streamlib schema export {app_path} {file}")


def _schemas(app: App) -> Document:
    return export(topic.spec for topic in app.topics.values())


def _kept(app_path: str, file: Path) -> Document:
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise SchemaFileError(
            f"cannot read {file}: {error.strerror}; write it from the app as it is deployed: "
            f"streamlib schema export {app_path} {file}"
        ) from error
    return parse(raw, str(file))


def _row(one: Change) -> list[Any]:
    result = "BREAKING" if one.breaks else "ok"
    breaks = "stored events and older workers" if one.breaks == "both" else one.breaks
    return [result, one.topic, one.type or None, one.version, one.field or None, one.change, breaks or None]


def _way_out(breaking: int, changes: list[Change]) -> str:
    text = f"{breaking} breaking {'change' if breaking == 1 else 'changes'}"
    first = next((one for one in changes if one.breaks and one.version is not None and "gone" not in one.change), None)
    if first is None or first.version is None:
        return text
    return (
        f"{text}; give the changed class the next version, class {first.type}(..., version={first.version + 1}), and "
        f"raise what is stored with @app.upcast({first.type}, from_version={first.version})"
    )
