"""`streamlib info`: topics and groups at a glance."""

from __future__ import annotations

import asyncio
from typing import Any

import click
import msgspec

from streamlib.cli.options import Given, json_option, shared_options
from streamlib.cli.output import print_json, print_table
from streamlib.cli.session import connected
from streamlib.ops.inspect import TopicInfo, inspect

_COLUMNS = ("group", "kind", "lag", "pending", "retrying", "dead", "consumers", "oldest_seconds")


@click.command("info")
@click.argument("topic", required=False)
@json_option
@shared_options
def command(given: Given, topic: str | None, as_json: bool) -> None:
    """Show topics and their groups, or one TOPIC: what waits, what is under way, what died.

    delayed counts events that are not due yet, lag events never delivered to the group, pending those delivered and
    not finished, retrying those that come again, dead its dead letters; oldest_seconds is the age of the oldest one
    not finished.
    """
    settings = given.settings()

    async def work() -> list[TopicInfo]:
        async with connected(settings) as session:
            return await inspect(session.redis, session.keys, topic)

    topics: list[dict[str, Any]] = msgspec.to_builtins(asyncio.run(work()))
    if as_json:
        print_json(topics)
        return
    rows: list[list[object]] = []
    for one in topics:
        about = [one["topic"], one["partitions"], one["length"], one["delayed"]]
        rows += [[*about, *(group[name] for name in _COLUMNS)] for group in one["groups"]]
        if not one["groups"]:
            rows.append([*about, *(None for _ in _COLUMNS)])
    columns = ("topic", "partitions", "length", "delayed", *_COLUMNS)
    print_table(columns, rows, empty="no topics yet: an app declares them when it is loaded (run, publish)")
