"""The one place where errors become messages and exit codes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from enum import IntEnum

import click

from streamlib.errors import ConfigError, NotFound, RedisUnavailable, Refused, StreamlibError

DEBUG = "streamlib.debug"
"""In `ctx.meta`: errors are shown with their traceback."""
SECRETS = "streamlib.secrets"
"""In `ctx.meta`: texts that no error may show."""


class Exit(IntEnum):
    """How a command ended."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NO_REDIS = 3
    NOT_FOUND = 4
    REFUSED = 5
    PARTLY = 6
    DRAIN_TIMEOUT = 7


_CODES: tuple[tuple[type[StreamlibError], Exit], ...] = (
    (ConfigError, Exit.USAGE),
    (RedisUnavailable, Exit.NO_REDIS),
    (NotFound, Exit.NOT_FOUND),
    (Refused, Exit.REFUSED),
)


def exit_code(error: StreamlibError) -> Exit:
    """The exit code of an error that ended a command."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), Exit.FAILED)


@contextlib.contextmanager
def report_errors(ctx: click.Context) -> Iterator[None]:
    """Print an error of ours as `error: ...` and leave with its code; a traceback only at level debug."""
    try:
        yield
    except StreamlibError as error:
        if ctx.meta.get(DEBUG):
            import traceback

            click.echo(_safe(ctx, "".join(traceback.format_exception(error)).rstrip()), err=True)
        click.echo(f"error: {_safe(ctx, str(error))}", err=True)
        ctx.exit(exit_code(error))
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        ctx.exit(130)


def _safe(ctx: click.Context, text: str) -> str:
    from streamlib.logs import HIDDEN, hide_passwords, neutralise

    for secret in ctx.meta.get(SECRETS, ()):
        text = text.replace(secret, HIDDEN)
    return neutralise(hide_passwords(text), keep_lines=True)
