"""`streamlib check`: does an app load, and does it fit its Redis?"""

from __future__ import annotations

import asyncio
from typing import Any

import click

from streamlib.cli.app_import import load_app
from streamlib.cli.exits import Exit
from streamlib.cli.options import Given, json_option, shared_options
from streamlib.cli.output import print_json, print_table
from streamlib.cli.session import connected
from streamlib.ops.check import Declared, check
from streamlib.redisio.server import Finding


@click.command("check")
@click.argument("app_path", metavar="APP")
@json_option
@shared_options
def command(given: Given, app_path: str, as_json: bool) -> None:
    """Check that APP, given as module:attribute, loads and fits its Redis. Changes nothing.

    Exits with 1 when something would keep the app from starting or from keeping its promises. Warnings do not.
    """
    settings = given.settings()
    app = load_app(app_path)
    app.configure(settings)
    groups = [Declared(spec.topic, spec.group, spec.kind) for spec in app.groups.values()]
    groups += [Declared(view.topic, view.name, "projection") for view in app.projections.values()]
    counts = f"{len(app.topics)} topics, {len(app.groups)} groups, {len(app.projections)} projections"

    async def work() -> list[Finding]:
        async with connected(settings) as session:
            specs = [topic.spec for topic in app.topics.values()]
            return await check(session.redis, session.keys, settings, specs, groups)

    findings = [Finding("app", True, f"{app_path} loads: {counts}", fatal=True), *asyncio.run(work())]
    rows = [_row(finding) for finding in findings]
    if as_json:
        print_json(rows)
    else:
        shown = {(True, False): "ok", (True, True): "warning", (False, False): "FAILED"}
        table = [(row["check"], shown[row["ok"], row["warning"]], row["detail"]) for row in rows]
        print_table(("check", "result", "detail"), table, empty="")
    if not all(row["ok"] for row in rows):
        given.ctx.exit(Exit.FAILED)


def _row(finding: Finding) -> dict[str, Any]:
    """`ok` says whether the app may start; what is only unwise is a warning."""
    warning = not finding.ok and not finding.fatal
    return {
        "check": finding.check,
        "ok": finding.ok or warning,
        "detail": finding.detail,
        "warning": warning,
    }
