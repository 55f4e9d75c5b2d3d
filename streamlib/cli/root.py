"""The root group: which commands there are. A command's module is imported when it runs, not for `--help`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import import_module
from typing import Any, NamedTuple

import click

from streamlib.cli.exits import report_errors
from streamlib.cli.options import shared_options

# Wide enough for a table of options, whatever the terminal.
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class Lazy(NamedTuple):
    """A command that is not imported yet: where it lies and what `--help` says about it."""

    module: str
    help: str
    attribute: str = "command"


COMMANDS = {
    "run": Lazy("streamlib.cli.run", "Start workers for an app."),
    "publish": Lazy("streamlib.cli.publish", "Publish events from JSON lines."),
    "info": Lazy("streamlib.cli.info", "Show topics and groups: lag, pending, retrying, dead."),
    "dlq": Lazy("streamlib.cli.dlq", "List, show, export, replay, edit and purge dead letters."),
    "replay": Lazy("streamlib.cli.replay", "Run a range of a topic again for one group, or write it into a file."),
    "rebuild": Lazy("streamlib.cli.rebuild", "Rebuild a view beside the live one, without downtime."),
    "groups": Lazy("streamlib.cli.groups", "List, create, pause, resume and remove groups."),
    "keys": Lazy("streamlib.cli.keys", "List failing keys of ordered groups; resume or skip halted ones."),
    "ps": Lazy("streamlib.cli.ps", "Show the workers that live, and what each owns."),
    "exporter": Lazy("streamlib.cli.exporter", "Serve metrics of what lies in Redis, once for all workers."),
    "check": Lazy("streamlib.cli.check", "Does this app load, and does it fit this Redis?"),
    "doctor": Lazy("streamlib.cli.doctor", "What in this Redis endangers events, and what to do."),
    "acl": Lazy("streamlib.cli.acl", "Print the rights that a user in Redis needs."),
    "schema": Lazy("streamlib.cli.schema", "Keep event schemas in a file; find changes that break."),
    "server": Lazy("streamlib.cli.server", "Run the embedded server in the foreground."),
    "bench": Lazy("streamlib.cli.bench", "Measure your own Redis: a worker beside a loop written by hand."),
    "demo": Lazy("streamlib.cli.demo", "Process real flights, from start to read models.", "demo"),
}


class LazyGroup(click.Group):
    """Imports a command when it is asked for, and turns our errors into messages and exit codes."""

    lazy: Mapping[str, Lazy] = COMMANDS

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.lazy:
            return None
        where = self.lazy[cmd_name]
        command = getattr(import_module(where.module), where.attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{where.module}.{where.attribute} is no command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.lazy and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], self.lazy, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(self.lazy)}"
            ctx.fail(f"no command {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, where.help) for name, where in self.lazy.items()])

    def invoke(self, ctx: click.Context) -> Any:
        with report_errors(ctx):
            return super().invoke(ctx)


def _print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib import metadata

        try:
            click.echo(f"streamlib {metadata.version('streamlib')}")
        except metadata.PackageNotFoundError:
            click.echo("streamlib (run from its source tree, not installed)")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings=SETTINGS)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version,
    help="Show the version.",
)  # fmt: skip
@shared_options
def main(given: object) -> None:
    """Process events on Redis Streams: workers, retries, dead letters, read models.

    Settings come from flags, then STREAMLIB_* variables, then streamlib.toml, then defaults. Data go to
    stdout, everything else to stderr.

    Exit codes: 0 done, 1 failed or unhealthy, 2 usage, import or settings error, 3 Redis not reachable,
    4 not found, 5 refused, 6 partly done, 7 drain ran out of time.
    """
