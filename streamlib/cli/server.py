"""`streamlib server`: the embedded server in the foreground."""

from __future__ import annotations

import signal
from pathlib import Path

import click

from streamlib.cli.options import Given, shared_options
from streamlib.cli.output import note
from streamlib.embedded import open_embedded


@click.command("server")
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("streamlib-data"),
    show_default=True,
    help="Where its data lie.",
)
@shared_options
def command(given: Given, directory: Path) -> None:
    """Run the embedded server in the foreground until a signal ends it. The data stay.

    Prints its address; other processes reach it by that, or by --redis embedded://DIR.
    """
    given.settings()
    # Blocked from here on, so that a signal that comes early is still there to be waited for.
    ends = {signal.SIGTERM, signal.SIGINT}
    with open_embedded(directory) as server:
        signal.pthread_sigmask(signal.SIG_BLOCK, ends)
        click.echo(server.url)
        if not server.owned:
            note(f"another process has started the server of {directory}, and ends it when it ends itself")
            return
        note(f"running in {directory}; use it with --redis embedded://{directory}; Ctrl-C stops it")
        signal.sigwait(ends)
        note("stopping")
