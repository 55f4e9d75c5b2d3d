"""`streamlib demo`: runs the flights app on real data, kills a worker, shows that the results are right."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from streamlib.cli.demo_report import DemoOptions, DemoProgress, DemoResult
from streamlib.cli.exits import Exit
from streamlib.cli.options import Given, json_option
from streamlib.cli.output import note, print_json, print_table

_APP = "workers.flights.demo"
_TOLD = (
    "events", "published", "groups", "dead", "duplicates", "recovered", "seconds", "verified", "mismatches",
    "metrics_url",
)  # fmt: skip
_BAR = 30


@click.command("demo")
@click.option("--redis", "redis_url", metavar="URL", help="Use this Redis instead of a private server.")
@click.option("--events", type=click.IntRange(min=1), metavar="N", help="Only the first N events of 53,472.")
@click.option("--keep", is_flag=True, help="Leave everything running until Enter or Ctrl-C.")
@json_option
@click.pass_context
def demo(ctx: click.Context, redis_url: str | None, events: int | None, keep: bool, as_json: bool) -> None:
    """Process a month of real flights, kill a worker at work, and check every result against the file.

    Starts a private server and two workers, another one for the one that it kills, and stops them at the end. On a
    Redis that you name, everything lies under a namespace of its own and is removed at the end.
    """
    before = ctx.obj.values if isinstance(ctx.obj, Given) else {}

    screen = _Screen()

    def hold(result: DemoResult) -> None:
        screen.close()
        _show(result, as_json)
        note(f"still running; metrics: {result.metrics_url}; Enter or Ctrl-C ends it")
        sys.stdin.readline()

    options = DemoOptions(events=events, redis_url=redis_url or before.get("redis_url"), hold=hold if keep else None)
    # An app on a floor above: found by name, as `run` finds apps.
    run_demo: Any = import_module(_APP).run_demo
    try:
        result: DemoResult = run_demo(screen.report, options)
    finally:
        screen.close()
    if not keep:
        _show(result, as_json)
    if not result.verified:
        ctx.exit(Exit.FAILED)


class _Screen:
    """News line by line on stderr and, if that is a terminal, a table below them that follows the groups."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._live = Live(console=console, transient=True, refresh_per_second=8) if console.is_terminal else None
        if self._live is not None:
            self._live.start()

    def report(self, progress: DemoProgress) -> None:
        if progress.news:
            note(progress.news) if self._live is None else self._live.console.print(Text(progress.news))
        if self._live is not None and progress.backlog:
            self._live.update(_groups_table(progress))

    def close(self) -> None:
        """Harmless when it is closed."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def _groups_table(progress: DemoProgress) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("group", "handled", "left", ""):
        table.add_column(column, justify="left" if column in ("group", "") else "right")
    for group, left in sorted(progress.backlog.items()):
        handled = max(progress.published - left, 0)
        filled = _BAR * handled // max(progress.total, 1)
        table.add_row(group, f"{handled:,}", f"{left:,}", "\u2588" * filled + "\u2591" * (_BAR - filled))
    return table


def _show(result: DemoResult, as_json: bool) -> None:
    if as_json:
        print_json({name: getattr(result, name) for name in _TOLD})
        return
    for board, rows in result.boards.items():
        click.echo(f"\n{board}")
        columns = list(rows[0]) if rows else []
        print_table([name.replace("_", " ") for name in columns], [list(row.values()) for row in rows], empty="empty")
    click.echo(f"{result.published:,} events published, handled: {_listed(result.groups)}")
    click.echo(f"{result.recovered:,} events that the killed worker held were taken over by others")
    click.echo(f"{result.duplicates:,} effects came a second time and were refused by their idempotency key")
    click.echo(f"{result.dead:,} dead letters, for example: {result.dead_reason}")
    if result.verified:
        click.echo(f"verified in {result.seconds:g} s: all of it equals what the file says")
        return
    click.echo(f"NOT verified after {result.seconds:g} s:")
    for mismatch in result.mismatches:
        click.echo(f"  {mismatch}")


def _listed(groups: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in groups.items())
