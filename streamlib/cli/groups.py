"""`streamlib groups ls | create | pause | resume | rm`: the groups of topics, from Redis alone."""

from __future__ import annotations

import asyncio
import re

import click
import msgspec

from streamlib.cli.groups_rm import rm
from streamlib.cli.options import Given, json_option, shared_options
from streamlib.cli.output import note, print_counts, print_json, print_table, when
from streamlib.cli.session import connected
from streamlib.ops.groups import BEGIN, END, Change, GroupRow, change, create, rows
from streamlib.redisio.registry import GroupKind

_ENTRY_ID = re.compile(r"[0-9]{1,19}-[0-9]{1,19}")
_COLUMNS = ("topic", "group", "kind", "paused", "workers", "lag", "pending", "retrying", "dead", "halted_keys")


def _start(_: click.Context, __: click.Parameter, text: str) -> str:
    """`begin`, `end`, or the id of the first entry that is wanted."""
    if text in (BEGIN, END):
        return text
    return text if _ENTRY_ID.fullmatch(text) else f"{when(text)}-0"


@click.group("groups")
@shared_options
def command(given: Given) -> None:
    """List, create, pause, resume and remove the groups of topics.

    Works from Redis alone, without the app.
    """


@command.command("ls")
@click.argument("topic", required=False)
@json_option
@shared_options
def ls(given: Given, topic: str | None, as_json: bool) -> None:
    """List the groups of all topics, or of TOPIC, with the workers that run them."""
    settings = given.settings()

    async def work() -> list[GroupRow]:
        async with connected(settings) as session:
            return await rows(session.redis, session.keys, topic, settings.worker.lease_ms)

    found = asyncio.run(work())
    if as_json:
        print_json(msgspec.to_builtins(found))
        return
    cells: list[list[object]] = []
    for one in found:
        shown = msgspec.to_builtins(one) | {"paused": "yes" if one.paused else "no", "workers": len(one.workers)}
        cells.append([shown[name] for name in _COLUMNS])
    print_table(_COLUMNS, cells, empty="no groups yet: an app declares them when its workers start")


@command.command("create")
@click.argument("topic")
@click.argument("group")
@click.option(
    "--kind", type=click.Choice(["handler", "ordered", "projection"]), default="handler", show_default=True,
    help="As the app will declare it.",
)  # fmt: skip
@click.option(
    "--from", "start", default=BEGIN, show_default=True, metavar="begin|end|ID|TIME", callback=_start,
    help="The first event that it gets: an entry id, 15m, 2h, 7d (ago) or an ISO time.",
)  # fmt: skip
@json_option
@shared_options
def create_(given: Given, topic: str, group: str, kind: GroupKind, start: str, as_json: bool) -> None:
    """Create GROUP of TOPIC before a worker runs it.

    From now on the topic keeps events for it. A worker would make it too, but always from the first event.
    """
    settings = given.settings()

    async def work() -> list[str]:
        async with connected(settings) as session:
            return await create(session.redis, session.keys, topic, group, kind, start)

    behind = asyncio.run(work())
    if as_json:
        print_json({"topic": topic, "group": group, "kind": kind, "begins_behind": behind})
        return
    click.echo(f"created={topic}:{group} kind={kind} begins_behind={','.join(behind)}")


@command.command("pause")
@click.argument("topic")
@click.argument("group")
@json_option
@shared_options
def pause(given: Given, topic: str, group: str, as_json: bool) -> None:
    """Let GROUP's workers take nothing new; what they have begun they finish."""
    if not _change(given, topic, group, "pause", as_json):
        note(f"group {group!r} of topic {topic!r} was paused already")


@command.command("resume")
@click.argument("topic")
@click.argument("group")
@json_option
@shared_options
def resume(given: Given, topic: str, group: str, as_json: bool) -> None:
    """Let the workers of a paused GROUP go on."""
    if not _change(given, topic, group, "resume", as_json):
        note(f"group {group!r} of topic {topic!r} was not paused")


command.add_command(rm)


def _change(given: Given, topic: str, group: str, act: Change, as_json: bool) -> bool:
    settings = given.settings()

    async def work() -> bool:
        async with connected(settings) as session:
            return await change(session.redis, session.keys, topic, group, act)

    changed = asyncio.run(work())
    print_counts({"topic": topic, "group": group, "paused": act == "pause", "changed": changed}, as_json=as_json)
    return changed
