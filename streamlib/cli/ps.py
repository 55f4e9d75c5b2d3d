"""`streamlib ps`: the workers that live."""

from __future__ import annotations

import asyncio
from typing import Any

import click
import msgspec

from streamlib.cli.options import Given, json_option, shared_options
from streamlib.cli.output import print_json, print_table
from streamlib.cli.session import connected
from streamlib.ops.dead_letters import iso_time
from streamlib.ops.workers import LiveWorker, Work, live_workers


@click.command("ps")
@json_option
@shared_options
def command(given: Given, as_json: bool) -> None:
    """Show the workers that live: host, pid, groups and the partitions they own.

    A worker that was silent for three quarters of worker.lease_ms is not shown. orders:email is a handler group, whose
    workers share all partitions; orders:view[0,2] owns these two.
    """
    settings = given.settings()

    async def work() -> list[LiveWorker]:
        async with connected(settings) as session:
            return await live_workers(session.redis, session.keys, settings.worker.lease_ms)

    found = asyncio.run(work())
    if as_json:
        print_json([_as_dict(one) for one in found])
        return
    rows = [
        [one.worker, one.host, one.pid, iso_time(one.since_ms), one.last_beat_seconds, " ".join(map(_name, one.groups))]
        for one in found
    ]
    columns = ("worker", "host", "pid", "since", "last_beat_seconds", "groups")
    print_table(columns, rows, empty="no worker lives here: `streamlib run` starts one")


def _as_dict(worker: LiveWorker) -> dict[str, Any]:
    told: dict[str, Any] = msgspec.to_builtins(worker)
    since_ms = told.pop("since_ms")
    return {name: told[name] for name in ("worker", "host", "pid")} | {"since": iso_time(since_ms)} | told


def _name(work: Work) -> str:
    owned = "" if work.partitions is None else f"[{','.join(map(str, work.partitions))}]"
    return f"{work.topic}:{work.group}{owned}"
