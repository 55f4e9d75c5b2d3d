"""`streamlib bench`: how fast a worker is on your own Redis, beside a loop written by hand."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import click

from streamlib.bench.figures import Line, Spread, number
from streamlib.bench.run import BASES, Report, measure
from streamlib.cli.event_loop import loop_factory
from streamlib.cli.exits import Exit
from streamlib.cli.options import Given, json_option, shared_options
from streamlib.cli.output import note, print_json, print_table
from streamlib.cli.session import connected
from streamlib.settings import Settings

_FIGURES = {
    "events_per_second": "events/s",
    "client_us": "client us",
    "server_us": "server us",
    "commands_per_1000": "commands/1,000",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
}


@click.command("bench")
@click.option(
    "--events", type=click.IntRange(2_000, 1_000_000), default=20_000, show_default=True, metavar="N",
    help="Events of each run that the clock sees; at least 2000, for they come in batches of 500.",
)  # fmt: skip
@click.option("--rounds", type=click.IntRange(1, 100), default=5, show_default=True, metavar="N", help="Rounds.")
@json_option
@shared_options
def command(given: Given, events: int, rounds: int, as_json: bool) -> None:
    """Measure your own Redis: a worker with default settings beside a loop written by hand.

    The loop reads 500 entries, claims idempotency keys, decodes, marks as done and acknowledges, and does nothing else.
    Figures are medians over the rounds, per event: CPU time of this process and of the whole server, commands sent;
    latency from publish to the handler's start at 200 events per second.

    Everything lies in a namespace of its own and is removed at the end. The server is loaded as hard as it can be.
    Every result is checked; exits with 1 when one is wrong.
    """
    quiet = {} if given.values.get("verbose") or given.values.get("log_level") else {"log.level": "warning"}
    settings = given.settings(quiet)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        found = runner.run(_measured(settings, events, rounds))
    if isinstance(found, signal.Signals):
        note(f"ended by {found.name}; what was created is removed")
        given.ctx.exit(128 + found)
    for case, problems in found.problems.items():
        note(f"error: {case}: wrong result, nothing that was measured counts: {'; '.join(problems)}")
    if as_json:
        print_json(_rows(found, events, rounds))
    elif not found.problems:
        _show(found, events, rounds)
    if found.problems:
        given.ctx.exit(Exit.FAILED)


async def _measured(settings: Settings, events: int, rounds: int) -> Report | signal.Signals:
    """The report, or the signal that ended it: the first cancels, the others wait for what is removed."""
    loop = asyncio.get_running_loop()
    told: asyncio.Future[signal.Signals] = loop.create_future()
    working = asyncio.create_task(_connected(settings, events, rounds))

    def end(sign: signal.Signals) -> None:
        if not told.done():
            told.set_result(sign)

    for sign in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(sign, end, sign)
    waited: set[asyncio.Future[Any]] = {working, told}
    await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
    if told.done():
        working.cancel()
        await asyncio.wait({working})
        if working.cancelled():
            return told.result()
    return await working


async def _connected(settings: Settings, events: int, rounds: int) -> Report:
    async with connected(settings) as session:
        return await measure(session.redis, events, rounds, note)


def _show(found: Report, events: int, rounds: int) -> None:
    rows = [[case, *(_cell(_value(found, case, name)) for name in _FIGURES)] for case in BASES]
    rows += [
        [f"{case} / {base}", *(_cell(_ratio(found, case, name)) for name in _FIGURES)]
        for case, base in BASES.items()
        if base
    ]
    print_table(["case", *_FIGURES.values()], rows, empty="")
    click.echo(f"{found.server}; medians of {rounds} rounds of {events:,} events; every result was checked, and right")


def _rows(found: Report, events: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each case; what was not measured is null."""
    return [
        {
            "case": case,
            **{name: spread.median if (spread := _value(found, case, name)) else None for name in _FIGURES},
            "least_most": {
                name: [spread.least, spread.most] for name in _FIGURES if (spread := _value(found, case, name))
            },
            "base": base or None,
            "ratios": {name: spread.median for name in _FIGURES if (spread := _ratio(found, case, name))},
            "problems": found.problems.get(case, []),
            "server": found.server,
            "events": events,
            "rounds": rounds,
        }
        for case, base in BASES.items()
    ]


def _line(found: Report, case: str, figure: str) -> Line | None:
    return next((line for line in found.lines if (line.case, line.figure) == (case, figure)), None)


def _value(found: Report, case: str, figure: str) -> Spread | None:
    line = _line(found, case, figure)
    return line.value if line else None


def _ratio(found: Report, case: str, figure: str) -> Spread | None:
    line = _line(found, case, figure)
    return line.ratio if line else None


def _cell(spread: Spread | None) -> str | None:
    return number(spread.median) if spread else None
