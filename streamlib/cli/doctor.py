"""`streamlib doctor`: what in this Redis endangers events?"""

from __future__ import annotations

import asyncio
from collections import Counter

import click
import msgspec

from streamlib.cli.exits import Exit
from streamlib.cli.options import Given, json_option, shared_options
from streamlib.cli.output import note, print_json
from streamlib.cli.session import connected
from streamlib.logs import neutralise
from streamlib.ops.doctor import Report, examine
from streamlib.ops.findings import ORDER

_SHOWN = {"danger": "DANGER", "warning": "warning", "not_looked_at": "not looked at"}


@click.command("doctor")
@click.option("--scan", "all_keys", is_flag=True, help="Look at every key, not at the first 10,000 of each server.")
@json_option
@shared_options
def command(given: Given, all_keys: bool, as_json: bool) -> None:
    """Look at Redis and at what streamlib has in it: what endangers events, why, and what to do. Changes nothing.

    Looks at every server (primaries and replicas), group, and at keys that belong to nobody. What the user may not see
    is told as not looked at. Exits with 1 when something endangers events; warnings do not.
    """
    settings = given.settings()

    async def work() -> Report:
        async with connected(settings) as session:
            return await examine(session.redis, session.keys, settings, all_keys=all_keys)

    report = asyncio.run(work())
    if as_json:
        print_json(msgspec.to_builtins(report))
    else:
        _print(report)
    if report.endangered:
        given.ctx.exit(Exit.FAILED)


def _print(report: Report) -> None:
    for found in report.findings:
        click.echo(neutralise(f"{_SHOWN[found.severity]}: {found.where}: {found.what}"))
        click.echo(neutralise(f"    why: {found.why}"))
        click.echo(neutralise(f"    do:  {found.advice}"))
    counts = Counter(found.severity for found in report.findings)
    told = ", ".join(f"{counts[severity]} {_SHOWN[severity]}" for severity in ORDER)
    note(f"{report.servers} servers, {report.groups} groups, {report.keys} keys: {told}")
