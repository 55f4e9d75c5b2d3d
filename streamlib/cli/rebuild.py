"""`streamlib rebuild`: a view is built anew beside the live one, then readers go over to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click
import msgspec

from streamlib.app import App
from streamlib.cli.app_import import load_app
from streamlib.cli.counting import counting
from streamlib.cli.options import Given, json_option, shared_options
from streamlib.cli.output import agree, note, print_counts, print_json, print_table
from streamlib.cli.session import Session, connected
from streamlib.errors import NotFound, Refused
from streamlib.ops import views
from streamlib.ops.comparing import Difference
from streamlib.ops.dropping import drop
from streamlib.ops.histories import AggregateHistory, FileHistory
from streamlib.ops.rebuild import Rebuild, Result, Source, roll_back
from streamlib.ops.views import View
from streamlib.redisio import registry

_COLUMNS = ("view", "topic", "generation", "role", "group", "rows", "behind", "fed")
Flags = dict[str, Any]
_ACTS = ("rollback", "drop", "abandon", "list")


@click.command("rebuild")
@click.argument("app_path", metavar="APP")
@click.argument("view_name", metavar="VIEW", required=False)
@click.option("--list", "list_", is_flag=True, help="List the generations of all views, or of VIEW.")
@click.option("--rollback", is_flag=True, help="Go back to the generation that was live before; again: forth.")
@click.option("--drop", "drop_", is_flag=True, help="Delete the generation that is kept for a rollback.")
@click.option("--abandon", is_flag=True, help="Delete a generation that was begun and is not wanted any more.")
@click.option("--restart", is_flag=True, help="Start over, though a rebuild by the same code broke off.")
@click.option("--require-equal", is_flag=True, help="Refuse to switch when rows differ, whatever --yes says.")
@click.option("--no-switch", is_flag=True, help="Build and compare only; run again to catch up and switch.")
@click.option("--from-aggregates", is_flag=True, help="Of a trimmed topic: begin with what the aggregates keep.")
@click.option(
    "--from", "file", type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Of a trimmed topic: begin with this file, as `streamlib replay --out` wrote it.",
)  # fmt: skip
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@json_option
@shared_options
def command(given: Given, app_path: str, view_name: str | None, as_json: bool, **flags: Any) -> None:
    """Rebuild VIEW of APP, given as module:attribute, from its topic, while workers and readers go on.

    The code that is here folds the whole topic into a new generation beside the live one, catches up, compares both,
    and lets readers see the new one at once. Where rows differ it asks first. The generation before is kept and fed
    until --drop, so that --rollback is possible. A rebuild that was killed goes on when it is run again.
    """
    acts = [name for name in _ACTS if flags[f"{name}_" if name in ("drop", "list") else name]]
    if len(acts) > 1:
        raise click.UsageError(f"--{acts[0]} and --{acts[1]} at once: which one?")
    if flags["from_aggregates"] and flags["file"] is not None:
        raise click.UsageError("--from-aggregates and --from at once: which one?")
    if view_name is None and acts != ["list"]:
        raise click.UsageError("which view? Name it, or look at all of them with --list")
    app = load_app(app_path)
    app.configure(given.settings())
    app.check_declared()
    act = _VERBS[acts[0]] if acts else _rebuild
    asyncio.run(act(app, view_name, flags, as_json))


async def _list(app: App, view_name: str | None, flags: Flags, as_json: bool) -> None:
    async with connected(app.settings) as session:
        known = await registry.topics(session.redis, session.keys)
        there = sorted(name for name, one in app.projections.items() if one.topic.name in known)
        wanted = [view_name] if view_name is not None else there
        found = [row for name in wanted for row in await views.rows(_view(app, name, session))]
    if as_json:
        print_json(msgspec.to_builtins(found))
        return
    cells = [[msgspec.to_builtins(row)[name] for name in _COLUMNS] for row in found]
    print_table(_COLUMNS, cells, empty="no view of this app is in this Redis")


async def _rebuild(app: App, view_name: str | None, flags: Flags, as_json: bool) -> None:
    async with _opened(app, view_name) as view:
        job = Rebuild(view, restart=flags["restart"], history=_history(view, flags))
        outlook = await job.look()
        about = {"view": view.projection.name, "topic": view.projection.topic.name}
        if flags["dry_run"]:
            print_counts(about | msgspec.to_builtins(outlook) | {"dry_run": True}, as_json=as_json)
            return
        if outlook.goes_on:
            lease_s = view.settings.worker.lease_ms / 1000
            note(
                f"generation {outlook.generation} was begun before: going on with it (after {lease_s:g} s at most, if "
                "the process that began it was killed)"
            )
        elif outlook.starts_over:
            note(f"generation {outlook.generation} was begun by other code: starting over")
        with counting("rebuilding") as advance:
            result = await job.run(_consent(view, flags), advance)
    told = _told(result)
    print_counts(about | told, as_json=as_json)
    if result.switched:
        note(f"generation {result.kept} is kept and fed: --rollback goes back to it, --drop deletes it")
    else:
        note(
            f"generation {result.generation} was not made live: run this again to catch up and switch, or --abandon it"
        )


def _history(view: View, flags: Flags) -> Source | None:
    if flags["from_aggregates"]:
        return AggregateHistory(view)
    return FileHistory(view, flags["file"]) if flags["file"] is not None else None


def _consent(view: View, flags: Flags) -> Callable[[Difference], Awaitable[bool]]:
    async def consent(found: Difference) -> bool:
        if flags["no_switch"]:
            return False
        if found.equal and not found.changing:
            return True
        examples = f" (for example {', '.join(found.examples)})" if found.examples else ""
        how = (
            f"{found.differing} rows differ, {found.only_live} are in the live generation only and {found.only_new} in "
            f"the new one only{examples}; {found.changing} changed too often to be compared"
        )
        if flags["require_equal"]:
            raise Refused(f"{view.label} was not switched: {how}")
        note(how)
        await asyncio.to_thread(agree, f"let readers of {view.label} see the new generation", yes=flags["yes"])
        return True

    return consent


async def _roll_back(app: App, view_name: str | None, flags: Flags, as_json: bool) -> None:
    async with _opened(app, view_name) as view:
        now = await view.standing()
        about: dict[str, Any] = {"view": view.projection.name, "topic": view.projection.topic.name}
        if flags["dry_run"]:
            print_counts(
                about | {"live": now.live, "would_be_live": now.kept or None, "dry_run": True}, as_json=as_json
            )
            return
        if now.kept:
            agree(f"let readers of {view.label} see generation {now.kept} instead of {now.live}", yes=flags["yes"])
        after = await roll_back(view)
        print_counts(about | {"live": after.live, "kept": after.kept}, as_json=as_json)


async def _drop(app: App, view_name: str | None, flags: Flags, as_json: bool) -> None:
    await _delete(app, view_name, flags, as_json, "kept")


async def _abandon(app: App, view_name: str | None, flags: Flags, as_json: bool) -> None:
    await _delete(app, view_name, flags, as_json, "building")


async def _delete(app: App, view_name: str | None, flags: Flags, as_json: bool, role: str) -> None:
    async with _opened(app, view_name) as view:
        now = await view.standing()
        generation = now.dropping or (now.kept if role == "kept" else now.building)
        if not generation:
            raise NotFound(f"no generation of {view.label} is {'kept' if role == 'kept' else 'being built'}")
        about = {"view": view.projection.name, "topic": view.projection.topic.name, "generation": generation}
        if flags["dry_run"]:
            print_counts(about | {"role": now.roles[generation], "dry_run": True}, as_json=as_json)
            return
        agree(f"delete generation {generation} of {view.label} for good", yes=flags["yes"])
        deleted = await drop(view, now, generation)
        print_counts(about | {"keys_deleted": deleted}, as_json=as_json)


_VERBS = {"list": _list, "rollback": _roll_back, "drop": _drop, "abandon": _abandon}


@asynccontextmanager
async def _opened(app: App, view_name: str | None) -> AsyncIterator[View]:
    _projection(app, view_name or "")
    async with connected(app.settings) as session:
        yield _view(app, view_name or "", session)


def _view(app: App, name: str, session: Session) -> View:
    return View(projection=_projection(app, name), redis=session.redis, keys=session.keys, settings=app.settings)


def _projection(app: App, name: str) -> Any:
    if name not in app.projections:
        there = ", ".join(sorted(app.projections)) or "none"
        raise NotFound(f"app {app.name!r} has no projection {name!r}; it has {there}")
    return app.projections[name]


def _told(result: Result) -> dict[str, Any]:
    found = result.difference
    told: dict[str, Any] = msgspec.to_builtins(result)
    del told["difference"]
    return told | {
        "equal": found.equal,
        "rows": found.rows_new,
        "rows_before": found.rows_live,
        "checksum": f"{found.checksum_new:016x}",
        "checksum_before": f"{found.checksum_live:016x}",
        "differing": found.differing,
        "only_before": found.only_live,
        "only_new": found.only_new,
        "changing": found.changing,
    }
