"""`streamlib dlq replay | edit | purge`: send dead letters back, as they are or with other data, or delete them."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any, BinaryIO, TypeVar

import click

from streamlib.cli.exits import Exit
from streamlib.cli.letters import dead_letters, filter_options
from streamlib.cli.options import Given, json_option, shared_options
from streamlib.cli.output import agree, note, print_counts, progress
from streamlib.errors import DecodeError, NotFound, PayloadTooLarge, Refused
from streamlib.ops.dead_letters import DeadLetters, Filters, Found
from streamlib.ops.letter_data import data_of, with_data
from streamlib.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])

BATCH = 64
"""Dead letters replayed at once, or deleted between two steps of the progress bar."""


def _act_options(function: F) -> F:
    decorated: Any = shared_options(json_option(function))
    decorated = click.option("--yes", is_flag=True, help="Do not ask.")(decorated)
    decorated = click.option("--dry-run", is_flag=True, help="Only say what would be done.")(decorated)
    decorated = filter_options(0)(decorated)
    return click.argument("ids", nargs=-1, metavar="[ID]...")(decorated)  # type: ignore[no-any-return]


@click.command("replay")
@_act_options
def replay(given: Given, ids: tuple[str, ...], filters: Filters, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Run dead letters again: those of the IDs, or those that the filters find.

    Each goes back to the group that gave it up, with all its attempts ahead of it, and leaves the dead
    letters. Without ids and filters all are meant; that needs --yes.
    """
    _either(ids, filters)
    settings = given.settings()
    if not ids and filters.everything and not dry_run:
        agree("replay all dead letters", yes=yes)
    counts = asyncio.run(_replay(settings, ids, filters, dry_run))
    if dry_run:
        would = counts["matched"] - counts["refused"]
        print_counts({"dry_run": True, "would_replay": would, "refused": counts["refused"]}, as_json=as_json)
        return
    # What was gone had been replayed: by an earlier sending whose answer was lost, or by somebody else.
    counts["REPLAYED"] += counts["GONE"]
    _tell(given, counts, as_json=as_json)


@click.command("edit")
@click.argument("dead_letter_id", metavar="ID")
@click.argument("file", type=click.File("rb"), required=False)
@json_option
@shared_options
def edit(given: Given, dead_letter_id: str, file: BinaryIO | None, as_json: bool) -> None:
    """Run one dead letter again with other data: those in FILE (- is standard input), or what you make of its own in
    your editor.

    They are a JSON object with all the event's data. Its id, type, version, key and headers stay as they are, and so
    does the entry in its topic. Like `replay` it goes back to the group that gave it up and leaves the dead letters.
    """
    settings = given.settings()
    if file is None and not sys.stdin.isatty():
        raise click.UsageError("there is no terminal for an editor; name a FILE with the data, - for standard input")
    found = asyncio.run(_get(settings, dead_letter_id))
    limit = settings.limits.payload_bytes
    changed = _in_editor(found, limit) if file is None else with_data(found, file.read(), limit)
    agree(f"replay {found.id} with other data", yes=True)  # nobody is asked; it is in the log who did
    counts = asyncio.run(_send(settings, changed))
    if counts["GONE"]:
        raise NotFound(
            f"{found.id} was replayed or purged meanwhile, by this command only if it lost its connection; "
            "`streamlib dlq ls` lists what is there"
        )
    _tell(given, counts, as_json=as_json)


@click.command("purge")
@_act_options
def purge(given: Given, ids: tuple[str, ...], filters: Filters, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Delete dead letters for good: those of the IDs, or those that the filters find.

    Without ids and filters all are meant.
    """
    _either(ids, filters)
    settings = given.settings()
    matched = asyncio.run(_count(settings, ids, filters))
    if dry_run:
        print_counts({"dry_run": True, "would_purge": matched}, as_json=as_json)
        return
    if matched or not sys.stdin.isatty():
        agree(f"delete {matched} dead letters for good", yes=yes)
    purged = asyncio.run(_purge(settings, ids, filters, matched)) if matched else 0
    print_counts({"purged": purged}, as_json=as_json)


def _tell(given: Given, counts: Counter[str], *, as_json: bool) -> None:
    answer = {
        "replayed": counts["REPLAYED"],
        "done": counts["DONE"],
        "busy": counts["BUSY"],
        "refused": counts["refused"] + counts["CUT"],
    }
    print_counts(answer, as_json=as_json)
    if answer["done"]:
        note(f"{answer['done']} were completed meanwhile and stay dead letters; `dlq purge` removes them")
    if answer["busy"]:
        note(f"{answer['busy']} are being processed or come again anyway, and stay dead letters")
    if counts["CUT"]:
        note(
            f"{counts['CUT']} are only the beginning of an entry that its stream does not hold any more, or that the "
            "server cannot send: raise its client-output-buffer-limit"
        )
    if answer["done"] or answer["busy"] or answer["refused"]:
        given.ctx.exit(Exit.PARTLY)


def _in_editor(found: Found, payload_bytes: int) -> Found:
    """The dead letter as somebody has changed it. What cannot be taken may be mended, and is not lost."""
    text = before = data_of(found)
    while True:
        text = click.edit(text, extension=".json") or ""
        if text in ("", before):
            raise Refused(f"nothing was changed in {found.id}; `streamlib dlq replay` runs it again as it is")
        try:
            return with_data(found, text.encode(), payload_bytes)
        except (DecodeError, PayloadTooLarge) as error:
            note(str(error))
            if not click.confirm("Edit again?", default=True, err=True):
                raise


async def _get(settings: Settings, dead_letter_id: str) -> Found:
    async with dead_letters(settings) as letters:
        return await letters.get(dead_letter_id)


async def _send(settings: Settings, found: Found) -> Counter[str]:
    async with dead_letters(settings) as letters:
        return Counter({outcome.name: n for outcome, n in (await letters.replay([found])).items()})


async def _replay(settings: Settings, ids: tuple[str, ...], filters: Filters, dry_run: bool) -> Counter[str]:
    """How many ended how: names of Replay, `matched` and `refused`. Raises Refused if all were."""
    counts: Counter[str] = Counter()
    why = ""
    async with dead_letters(settings) as letters:
        with progress("replaying") as advance:
            async for batch in _batches(letters, ids, filters):
                refused = [one for one in batch if one.not_replayable]
                fit = [one for one in batch if not one.not_replayable]
                if refused and not why:
                    why = f"{refused[0].id} cannot be replayed: {refused[0].not_replayable}"
                counts["matched"] += len(batch)
                counts["refused"] += len(refused)
                if not dry_run:
                    results = await letters.replay(fit)
                    counts.update({outcome.name: n for outcome, n in results.items()})
                advance(len(batch))
    if why and counts["refused"] == counts["matched"]:
        raise Refused(why)
    if why:
        note(why)
    return counts


async def _count(settings: Settings, ids: tuple[str, ...], filters: Filters) -> int:
    matched = 0
    async with dead_letters(settings) as letters:
        async for batch in _batches(letters, ids, filters):
            matched += len(batch)
    return matched


async def _purge(settings: Settings, ids: tuple[str, ...], filters: Filters, at_most: int) -> int:
    """Delete what matches, but no more than were agreed to: others may have come since."""
    purged, left = 0, at_most
    async with dead_letters(settings) as letters:
        with progress("deleting", total=at_most) as advance:
            async for batch in _batches(letters, ids, filters):
                some = batch[:left]
                purged += await letters.purge(some)
                left -= len(some)
                advance(len(some))
                if not left:
                    break
    return purged


async def _batches(letters: DeadLetters, ids: tuple[str, ...], filters: Filters) -> AsyncIterator[list[Found]]:
    """The dead letters of the ids, or else of the filters."""
    if ids:
        yield [await letters.get(one) for one in dict.fromkeys(ids)]
        return
    batch: list[Found] = []
    async for found in letters.find(filters):
        batch.append(found)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _either(ids: tuple[str, ...], filters: Filters) -> None:
    if ids and not filters.everything:
        raise click.UsageError("give ids or filters, not both")
