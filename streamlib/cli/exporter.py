"""`streamlib exporter`: metrics of what lies in Redis, once for all workers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from functools import partial

import click

from streamlib.cli.options import Given, shared_options
from streamlib.cli.session import connected
from streamlib.metrics.exporter import Exporter
from streamlib.metrics.http import ProbeServer
from streamlib.settings import Settings

_log = logging.getLogger("streamlib.exporter")


@click.command("exporter")
@click.option(
    "--http", metavar="HOST:PORT", default="127.0.0.1:9465", show_default=True,
    help="Serve /metrics, /livez and /readyz there; port 0 picks one.",
)  # fmt: skip
@click.option(
    "--every", "every_s", metavar="SECONDS", type=click.FloatRange(0.5, 10), default=5.0, show_default=True,
    help="How often it looks.",
)  # fmt: skip
@shared_options
def command(given: Given, http: str, every_s: float) -> None:
    """Serve metrics of what lies in Redis for every topic and group: lag, pending, retrying, dead, ages.

    Workers serve the same for the topics of their app; this does it without the app, and also while no worker lives,
    which is when a backlog grows unseen. Reads only. TERM or INT ends it.
    """
    asyncio.run(_export(given.settings(), http, every_s))


async def _export(settings: Settings, http: str, every_s: float) -> None:
    async with connected(settings, ask_first=False) as session:
        exporter = Exporter(session.redis, session.keys)
        server = ProbeServer(http, exporter.render, exporter.live, exporter.ready)
        _log.info("http_listening", extra={"url": server.start(), "pid": os.getpid()})
        try:
            looking = asyncio.create_task(_look(exporter, every_s))
            for signum in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(signum, partial(looking.cancel, signum.name))
            with contextlib.suppress(asyncio.CancelledError):
                await looking
        finally:
            server.close()


async def _look(exporter: Exporter, every_s: float) -> None:
    while True:
        await exporter.look()
        await asyncio.sleep(every_s)
