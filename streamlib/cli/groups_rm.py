"""`streamlib groups rm`: a group goes, what it owes goes into a file."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from streamlib.cli.options import Given, json_option, shared_options
from streamlib.cli.output import agree, note, print_counts, progress
from streamlib.cli.session import Session, connected
from streamlib.errors import Refused
from streamlib.ops.places import places
from streamlib.ops.removal import Holdings, archive, holdings, remove
from streamlib.redisio.members import Member
from streamlib.settings import Settings


@click.command("rm")
@click.argument("topic")
@click.argument("group")
@click.option(
    "--archive", "file", type=click.Path(path_type=Path, dir_okay=False),
    help="New file for what the group owes.  [default: TOPIC.GROUP.TIMESTAMP.jsonl]",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Also under workers that run it.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@json_option
@shared_options
def rm(
    given: Given, topic: str, group: str, file: Path | None, force: bool, yes: bool, dry_run: bool, as_json: bool
) -> None:
    """Remove GROUP of TOPIC for good: its place in the topic, its retries, dead letters, rows and idempotency keys.

    First its pending and retrying events and its dead letters are written to a file, one JSON line each, whose `event`
    is what `streamlib publish` reads. A group that workers run is refused: stop them, or deploy an app without it. With
    --force one that runs on makes the group again and begins with the first event. May be run again if it breaks off;
    until it is done the group is paused.
    """
    settings = given.settings()
    has = asyncio.run(_look(settings, topic, group))
    about = {"topic": topic, "group": group}
    if dry_run:
        print_counts(about | _told(has) | {"dry_run": True}, as_json=as_json)
        return
    if has.workers and not force:
        raise Refused(
            f"group {group!r} of topic {topic!r} is run by {_names(has.workers)}; stop them or deploy an app without "
            "it; --force removes it under them, but whoever runs on makes it again from the first event"
        )
    path = file or Path(f"{topic}.{group}.{datetime.now(UTC):%Y%m%dT%H%M%S}.jsonl")
    agree(_question(has, path), yes=yes)
    archived, deleted = asyncio.run(_remove(settings, topic, group, path))
    written = {"archived": archived, "archive": str(path) if archived else None}
    print_counts(about | written | {"keys_deleted": deleted}, as_json=as_json)
    if has.workers:
        note(f"{_names(has.workers)} ran it; whoever runs on makes the group again from the first event")


async def _look(settings: Settings, topic: str, group: str) -> Holdings:
    async with connected(settings) as session:
        return await holdings(session.redis, session.keys, topic, group, settings.worker.lease_ms)


async def _remove(settings: Settings, topic: str, group: str, path: Path) -> tuple[int, int]:
    async with connected(settings) as session:
        archived = await archive(session.redis, session.keys, topic, group, path)
        if archived:
            note(f"{archived} events are archived in {path}")
        return archived, await _delete(session, topic, group)


async def _delete(session: Session, topic: str, group: str) -> int:
    partitions = len(await places(session.redis, session.keys, topic, group))
    with progress("removing", total=partitions) as advance:
        return await remove(session.redis, session.keys, topic, group, advance)


def _told(has: Holdings) -> dict[str, Any]:
    return {
        "kind": has.kind,
        "would_archive": has.to_archive,
        "pending": has.pending,
        "retrying": has.retrying,
        "dead": has.dead,
        "undelivered": has.undelivered,
        "workers": [member.worker_id for member in has.workers],
    }


def _question(has: Holdings, path: Path) -> str:
    parts = [f"remove group {has.group} ({has.kind}) of topic {has.topic} for good"]
    if has.kind == "projection":
        parts.append("with all rows of the view")
    if has.to_archive:
        parts.append(
            f"with {has.pending} pending and {has.retrying} retrying events and {has.dead} dead letters, "
            f"which go to {path}"
        )
    if has.undelivered != 0:
        parts.append(f"and {has.undelivered if has.undelivered is not None else 'some'} events that it has not got yet")
    return ", ".join(parts)


def _names(workers: list[Member]) -> str:
    return ", ".join(f"{one.worker_id} ({one.host}, pid {one.pid})" for one in workers)
