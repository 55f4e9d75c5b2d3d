"""`streamlib replay`: run a range of a topic again for one group, or write it into a file."""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from streamlib.cli.exits import Exit
from streamlib.cli.options import Given, json_option, shared_options
from streamlib.cli.output import agree, note, print_counts, print_json, print_table, progress, when
from streamlib.cli.session import Session, connected
from streamlib.errors import DeclarationError, RedisUnavailable
from streamlib.event import type_of_stored
from streamlib.message import entry_order
from streamlib.ops.pace import Pace
from streamlib.ops.range_file import RangeFile
from streamlib.ops.ranges import BEGIN, FIRST, Asked
from streamlib.ops.replay import Outlook, Replay
from streamlib.redisio.limits import parse_rate
from streamlib.redisio.registry import live_types
from streamlib.redisio.replays import Totals
from streamlib.settings import Settings

_ENTRY_ID = re.compile(r"[0-9]{1,19}-[0-9]{1,19}")
_LAST_OF_A_MS = (1 << 64) - 1


def _start(_: click.Context, __: click.Parameter, text: str) -> tuple[str, str]:
    """As it was put, and `begin`, `first` or the smallest entry id that is meant."""
    if text in (BEGIN, FIRST) or _ENTRY_ID.fullmatch(text):
        return text, text
    return text, f"{when(text)}-0"


def _end(_: click.Context, __: click.Parameter, text: str | None) -> tuple[str, str] | None:
    """As it was put, and the greatest entry id that is meant."""
    if text is None:
        return None
    return text, text if _ENTRY_ID.fullmatch(text) else f"{when(text)}-{_LAST_OF_A_MS}"


def _rate(_: click.Context, __: click.Parameter, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return parse_rate("--rate", text).per_second
    except DeclarationError as error:
        raise click.BadParameter(f"{text!r}: write a number and a period, s, m, h or d: 100/s") from error


@click.command("replay")
@click.option("--topic", required=True, help="The topic.")
@click.option("--group", help="The group that is to run its events again.")
@click.option(
    "--from", "start", required=True, metavar="ID|TIME|begin|first", callback=_start,
    help="The first event: an entry id, 15m, 2h, 7d (ago), an ISO time; all there ever were; all that are left.",
)  # fmt: skip
@click.option("--to", "end", metavar="ID|TIME", callback=_end, help="The last one.  [default: what is there now]")
@click.option("--type", "types", multiple=True, metavar="TYPE", help="Only events of this type; may be repeated.")
@click.option("--key", "keys", multiple=True, metavar="KEY", help="Only events of this key; may be repeated.")
@click.option("--rate", metavar="N/s", callback=_rate, help="Not faster than that.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False),
    help="Write them into this new file, for `streamlib publish`, instead of running them.",
)  # fmt: skip
@click.option("--anew", is_flag=True, help="Give up a replay of the group that broke off, and begin this one.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@json_option
@shared_options
def command(
    given: Given, topic: str, group: str | None, start: tuple[str, str], end: tuple[str, str] | None,
    types: tuple[str, ...], keys: tuple[str, ...], rate: float | None, out: Path | None, anew: bool, yes: bool,
    dry_run: bool, as_json: bool,
) -> None:  # fmt: skip
    """Run a range of TOPIC again for one GROUP, or write it into a file.

    The events are copied into the stream that this group reads beside the topic; no other group notices. Each runs with
    all its attempts ahead of it, under the same event id and idempotency key. Left alone are events that the group was
    not given yet, that are being processed or come again anyway, and dead letters (`streamlib dlq replay`).

    The same command goes on where it stopped when it was interrupted. Works from Redis alone, without the app.
    """
    if group is None and out is None:
        raise click.UsageError("Missing option '--group', or '--out' for a file.")
    if out is not None and dry_run:
        raise click.UsageError("--out has no --dry-run: it changes nothing in Redis")
    asked = _asked(topic, start, end, types, keys)
    settings = given.settings()
    pace = Pace(rate)
    if out is not None:
        _to_file(given, settings, asked, group, out, pace, as_json)
    elif group is not None:
        _to_group(given, settings, asked, group, pace, anew=anew, yes=yes, dry_run=dry_run, as_json=as_json)


def _asked(
    topic: str, start: tuple[str, str], end: tuple[str, str] | None, types: Sequence[str], keys: Sequence[str]
) -> Asked:
    """Raises UsageError for a range that ends before it begins."""
    if end is not None and start[1] not in (BEGIN, FIRST) and entry_order(start[1]) > entry_order(end[1]):
        raise click.UsageError(f"--from {start[0]} is behind --to {end[0]}")
    told = ["--topic", topic, "--from", start[0], *(("--to", end[0]) if end is not None else ())]
    for option, values in (("--type", types), ("--key", keys)):
        for value in sorted(set(values)):
            told += (option, value)
    return Asked(
        topic=topic,
        start=start[1],
        end=end[1] if end is not None else None,
        types=frozenset(types),
        keys=frozenset(keys),
        told=shlex.join(told),
    )


# -- for a group ------------------------------------------------------------------------------------------------------


def _to_group(
    given: Given, settings: Settings, asked: Asked, group: str, pace: Pace, *, anew: bool, yes: bool, dry_run: bool,
    as_json: bool,
) -> None:  # fmt: skip
    outlook = asyncio.run(_look(settings, asked, group, anew=anew, counting=dry_run))
    if outlook is not None:
        _print_outlook(outlook, as_json=as_json)
        return
    agree(f"run a range of events again for group {group} ({asked.told})", yes=yes)
    seen: list[Replay] = []
    try:
        totals = asyncio.run(_run(settings, asked, group, pace, anew=anew, seen=seen))
    except (RedisUnavailable, KeyboardInterrupt):
        if seen:
            note(f"stopped: {seen[0].totals.replayed} events were replayed; the same command goes on from there")
        raise
    print_counts(_counts(totals, "replayed"), as_json=as_json)
    _tell(totals)
    if totals.dead or totals.foreign:
        given.ctx.exit(Exit.PARTLY)


async def _look(settings: Settings, asked: Asked, group: str, *, anew: bool, counting: bool) -> Outlook | None:
    """What the replay would do, if that is wanted. Raises what is in its way."""
    async with connected(settings) as session:
        replay = _replay(session, asked, group)
        await replay.check(anew=anew)
        for text in replay.notes:
            note(text)
        await _tell_unknown_types(session, asked, group)
        return await replay.look() if counting else None


async def _run(settings: Settings, asked: Asked, group: str, pace: Pace, *, anew: bool, seen: list[Replay]) -> Totals:
    async with connected(settings) as session:
        replay = _replay(session, asked, group)
        await replay.check(anew=anew)
        seen.append(replay)
        with progress("replaying") as advance:
            return await replay.run(pace, advance)


def _replay(session: Session, asked: Asked, group: str) -> Replay:
    window_s = session.settings.idempotency.window_s
    return Replay(session.redis, session.keys, asked, group, window_s=window_s)


async def _tell_unknown_types(session: Session, asked: Asked, group: str) -> None:
    handled = {type_of_stored(name) for name in await live_types(session.redis, session.keys, asked.topic, group)}
    for name in sorted(asked.types - handled):
        known = ", ".join(sorted(handled)) or "nothing yet"
        note(f"no worker of group {group} has ever handled type {name}; it handles {known}")


def _print_outlook(outlook: Outlook, *, as_json: bool) -> None:
    rows = [(partition, name, count) for (partition, name), count in outlook.events.items()]
    counts = {"dry_run": True, **_counts(outlook.totals, "would_replay")}
    if as_json:
        keys = ("partition", "type", "events")
        print_json(counts | {"events": [dict(zip(keys, row, strict=True)) for row in rows]})
        return
    print_counts(counts, as_json=False)
    print_table(("partition", "type", "events"), rows, empty="nothing in this range would be replayed")
    _tell(outlook.totals)


# -- into a file ------------------------------------------------------------------------------------------------------


def _to_file(
    given: Given, settings: Settings, asked: Asked, group: str | None, path: Path, pace: Pace, as_json: bool
) -> None:
    totals = asyncio.run(_write(settings, asked, group, path, pace))
    counts = _counts(totals, "written")
    shown = {name: counts[name] for name in ("written", "not_delivered", "foreign", "copies", "filtered")}
    print_counts(shown | {"file": str(path) if totals.replayed else None}, as_json=as_json)
    if totals.foreign:
        note(f"{totals.foreign} entries are no events of ours with JSON data, and not in the file")
        given.ctx.exit(Exit.PARTLY)


async def _write(settings: Settings, asked: Asked, group: str | None, path: Path, pace: Pace) -> Totals:
    async with connected(settings) as session:
        file = RangeFile(session.redis, session.keys, asked, group, path)
        await file.check()
        for text in file.notes:
            note(text)
        with progress("writing") as advance:
            return await file.run(pace, advance)


# -- what is told -----------------------------------------------------------------------------------------------------


def _counts(totals: Totals, name: str) -> dict[str, Any]:
    return {
        name: totals.replayed,
        "not_delivered": totals.not_delivered,
        "busy": totals.busy,
        "waiting": totals.waiting,
        "dead": totals.dead,
        "foreign": totals.foreign,
        "copies": totals.copies,
        "filtered": totals.filtered,
    }


def _tell(totals: Totals) -> None:
    told = (
        (totals.entries == 0, "there is no entry in this range"),
        (totals.not_delivered, "{} were not delivered to the group yet, and will be"),
        (totals.busy, "{} are being processed, and were left alone"),
        (totals.waiting, "{} come again anyway, as retries or by an earlier replay"),
        (totals.dead, "{} are dead letters; `streamlib dlq replay` runs them again"),
        (totals.foreign, "{} entries are no events of ours, and cannot be replayed from here"),
        (totals.copies, "{} are copies of events that were replayed"),
    )
    for count, text in told:
        if count:
            note(text.format(count))
