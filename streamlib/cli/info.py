"""`streamlib info`: topics and groups at a glance."""

from __future__ import annotations

import asyncio
from typing import Any

import click
import msgspec

from streamlib.cli.options import Given, json_option, partition_option, shared_options
from streamlib.cli.output import print_json, print_table
from streamlib.cli.session import connected
from streamlib.errors import NotFound
from streamlib.ops.inspect import GroupInfo, TopicInfo, inspect

_COUNTS = ("lag", "pending", "retrying", "dead", "consumers", "oldest_seconds")


@click.command("info")
@click.argument("topic", required=False)
@partition_option
@json_option
@shared_options
def command(given: Given, topic: str | None, partition: int | None, as_json: bool) -> None:
    """Show topics and their groups, or one TOPIC: what waits, what is under way, what died.

    The partitions are added up; --partition shows one of them. delayed counts events that are not due yet, lag events
    never delivered to the group, pending those delivered and not finished, retrying those that come again, dead its
    dead letters; oldest_seconds is the age of the oldest one not finished. owned tells how many partitions of an
    ordered group or projection have a worker; with a TOPIC a second table names them.
    """
    settings = given.settings()

    async def work() -> list[TopicInfo]:
        async with connected(settings) as session:
            found = await inspect(session.redis, session.keys, topic, partition=partition)
            if partition is not None and not found:
                raise NotFound(f"no topic has a partition {partition}")
            return found

    topics = asyncio.run(work())
    if as_json:
        print_json(msgspec.to_builtins(topics))
        return
    rows: list[list[object]] = []
    for one in topics:
        about: list[object] = [one.topic, one.partitions, one.length, one.delayed]
        rows += [about + _row(group, _numbers(one)) for group in one.groups]
        if not one.groups:
            rows.append(about + [None] * (len(_COUNTS) + 4))
    columns = ("topic", "partitions", "length", "delayed", "group", "kind", *_COUNTS, "owned", "state")
    print_table(columns, rows, empty="no topics yet: an app declares them when it is loaded (run, publish)")
    if topic is not None:
        _print_owners(topics)


def _row(group: GroupInfo, numbers: range) -> list[object]:
    counts: list[Any] = [getattr(group, name) for name in _COUNTS]
    owned = None if group.kind == "handler" else f"{len(group.owners)}/{len(numbers)}"
    return [group.group, group.kind, *counts, owned, _state(group)]


def _state(group: GroupInfo) -> str | None:
    halted = f"{group.halted_keys} keys halted" if group.halted_keys else ""
    return ", ".join(filter(None, ["paused" if group.paused else "", halted])) or None


def _numbers(topic: TopicInfo) -> range:
    """The partitions that were looked at."""
    only = topic.partition
    return range(topic.partitions) if only is None else range(only, only + 1)


def _print_owners(topics: list[TopicInfo]) -> None:
    rows: list[list[object]] = []
    for one in topics:
        for group in one.groups:
            owners = {owner.partition: owner.worker for owner in group.owners}
            if group.kind != "handler":
                rows += [[group.group, number, owners.get(number)] for number in _numbers(one)]
    if rows:
        print_table(("group", "partition", "owner"), rows, empty="")
