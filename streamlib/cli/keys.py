"""`streamlib keys ls | resume | skip`: keys of ordered groups whose first event fails or halted."""

from __future__ import annotations

import asyncio
from typing import Any

import click

from streamlib.cli.options import Given, json_option, shared_options
from streamlib.cli.output import agree, print_counts, print_json, print_table
from streamlib.cli.session import connected
from streamlib.ops import halted
from streamlib.ops.halted import FailingKey, failing_keys, halted_key
from streamlib.settings import Settings

_COLUMNS = ("topic", "group", "partition", "key", "state", "attempts", "due_ms", "event_id", "entry_id", "error")
_ERROR_WIDTH = 100


def _unicode(_: click.Context, __: click.Parameter, key: str) -> str:
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise click.BadParameter("a key is valid UTF-8") from error
    return key


@click.group("keys")
@shared_options
def command(given: Given) -> None:
    """List keys of ordered groups that wait for a failing event; let halted ones go on.

    A key halts when its event has no attempts left and the group's handler is declared with on_dead="block". The events
    behind it wait until somebody resumes it or skips that event.
    """


@command.command("ls")
@click.argument("topic", required=False)
@click.argument("group", required=False)
@click.option("--halted", "only_halted", is_flag=True, help="Only those that wait for you.")
@json_option
@shared_options
def ls(given: Given, topic: str | None, group: str | None, only_halted: bool, as_json: bool) -> None:
    """List the keys whose first event has failed: of all ordered groups, of TOPIC, or of one GROUP.

    state is halted, parked (no worker knows the type of its event) or retrying; due_ms is when it is tried again, in ms
    of the server's time.
    """
    settings = given.settings()

    async def work() -> list[FailingKey]:
        async with connected(settings) as session:
            return await failing_keys(session.redis, session.keys, topic, group)

    rows = [_row(one) for one in asyncio.run(work()) if one.state.halted or not only_halted]
    if as_json:
        print_json(rows)
        return
    cells = [[_short(row[name]) for name in _COLUMNS] for row in rows]
    print_table(_COLUMNS, cells, empty="no halted keys" if only_halted else "no failing keys")


@command.command("resume")
@click.argument("topic")
@click.argument("group")
@click.argument("key", callback=_unicode)
@json_option
@shared_options
def resume(given: Given, topic: str, group: str, key: str, as_json: bool) -> None:
    """Let a halted KEY go on at the event at which it halted, with all attempts ahead of it."""
    settings = given.settings()

    async def work() -> FailingKey:
        async with connected(settings) as session:
            found = await halted_key(session.redis, session.keys, topic, group, key)
            await halted.resume(session.redis, found)
            return found

    print_counts({"resumed": 1} | _named(asyncio.run(work())), as_json=as_json)


@command.command("skip")
@click.argument("topic")
@click.argument("group")
@click.argument("key", callback=_unicode)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@json_option
@shared_options
def skip(given: Given, topic: str, group: str, key: str, yes: bool, dry_run: bool, as_json: bool) -> None:
    """Move the event at which KEY halted to the dead letters; the key goes on with the next.

    `dlq replay` would run that event again, after later ones of its key.
    """
    settings = given.settings()
    found = asyncio.run(_look(settings, topic, group, key))
    if dry_run:
        print_counts({"dry_run": True, "would_skip": 1} | _named(found), as_json=as_json)
        return
    event = found.state.event_id or found.state.entry_id
    agree(f"move event {event}, at which key {key!r} of group {group} halted, to the dead letters", yes=yes)
    asyncio.run(_skip(settings, found))
    print_counts({"skipped": 1} | _named(found), as_json=as_json)


async def _look(settings: Settings, topic: str, group: str, key: str) -> FailingKey:
    async with connected(settings) as session:
        return await halted_key(session.redis, session.keys, topic, group, key)


async def _skip(settings: Settings, found: FailingKey) -> None:
    async with connected(settings) as session:
        await halted.skip(session.redis, found, window_s=settings.idempotency.window_s)


def _row(one: FailingKey) -> dict[str, Any]:
    state = one.state
    return {
        "topic": one.place.topic,
        "group": one.place.group,
        "partition": one.place.partition,
        "key": state.key,
        "state": "halted" if state.halted else "parked" if state.parked_ms else "retrying",
        "attempts": state.attempts,
        "due_ms": None if state.halted else state.due_ms,
        "event_id": state.event_id or None,
        "entry_id": state.entry_id,
        "error": state.error,
    }


def _named(one: FailingKey) -> dict[str, Any]:
    return {
        name: value for name, value in _row(one).items() if name in ("topic", "group", "partition", "key", "event_id")
    }


def _short(value: Any) -> Any:
    return f"{value[:_ERROR_WIDTH]}..." if isinstance(value, str) and len(value) > _ERROR_WIDTH else value
