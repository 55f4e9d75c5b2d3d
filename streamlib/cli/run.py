"""`streamlib run`: one worker process, or a supervisor of several."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import click

from streamlib.app import App
from streamlib.cli.app_import import load_app
from streamlib.cli.event_loop import loop_factory
from streamlib.cli.exits import Exit
from streamlib.cli.options import Given, shared_options
from streamlib.cli.reload import run_reloading
from streamlib.cli.session import translated
from streamlib.cli.signals import steered_by_signals
from streamlib.embedded import resolve
from streamlib.errors import ConfigError
from streamlib.metrics.exposition import render
from streamlib.metrics.http import ProbeServer
from streamlib.metrics.slots import SlotChannel
from streamlib.settings import Settings
from streamlib.worker.runner import Worker
from streamlib.worker.supervisor import Supervisor

_log = logging.getLogger("streamlib.run")


@click.command("run")
@click.argument("app_path", metavar="APP")
@click.option("--group", "-g", "groups", multiple=True, help="Only this group or projection; repeatable.")
@click.option("-c", "--concurrency", type=int, help="Events in flight at once, per process.")
@click.option("-p", "--processes", type=int, help="Processes; 0 is one for each CPU.")
@click.option("--http", metavar="HOST:PORT", help="Serve /metrics, /livez and /readyz there; port 0 picks one.")
@click.option("--no-http", is_flag=True, help="Serve nothing.")
@click.option("--burst", is_flag=True, help="End when nothing is left to do.")
@click.option("--reload", is_flag=True, help="Start again when a .py file here changes; for development.")
@shared_options
def command(
    given: Given, app_path: str, groups: tuple[str, ...], concurrency: int | None, processes: int | None,
    http: str | None, no_http: bool, burst: bool, reload: bool,
) -> None:  # fmt: skip
    """Start workers for APP, given as module:attribute.

    The first TERM or INT drains: nothing new is read, what runs may finish within worker.drain_s, the rest is
    handed back. A second one cancels handlers, a third ends at once. SIGUSR2 writes all stacks to stderr.
    """
    flags = {
        "worker.concurrency": concurrency,
        "worker.processes": processes,
        "worker.http": "" if no_http else http,
    }
    settings = given.settings(flags)
    channel = SlotChannel.from_environ()
    if reload and channel is None:
        if settings.worker.processes != 1:
            raise click.UsageError("--reload runs one process; leave out -p (or worker.processes)")
        code = _with_server(settings, lambda: _reloading(settings))
    elif settings.worker.processes != 1 and channel is None:
        code = _with_server(settings, lambda: _supervising(settings))
    else:
        app = load_app(app_path)
        app.configure(settings)
        _check_groups(app, app_path, groups)
        code = _work(app, settings, groups, channel, burst=burst)
    given.ctx.exit(code)


def _with_server(settings: Settings, run: Callable[[], int]) -> int:
    """An embedded server belongs to the parent: it must outlive each child."""
    _, server = resolve(settings.redis.url)
    try:
        return run()
    finally:
        if server is not None:
            server.stop()


def _reloading(settings: Settings) -> int:
    arguments = [argument for argument in sys.argv[1:] if argument != "--reload"]
    return run_reloading(_again(arguments), Path.cwd(), drain_s=settings.worker.drain_s)


def _supervising(settings: Settings) -> int:
    worker = settings.worker
    supervisor = Supervisor(_again(sys.argv[1:]), worker.processes, http=worker.http or None, drain_s=worker.drain_s)
    return supervisor.run()


def _again(arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", "streamlib", *arguments]


def _check_groups(app: App, app_path: str, groups: tuple[str, ...]) -> None:
    known = sorted({group for _, group in app.groups} | set(app.projections))
    if not known:
        raise ConfigError(f"{app_path} has neither handlers nor projections: there is nothing to run")
    for group in groups:
        if group not in known:
            raise ConfigError(f"{app_path} has no group or projection {group!r}; it has: {', '.join(known)}")


class _Probes:
    """What the HTTP endpoint, or the supervisor, asks this process."""

    def __init__(self, app: App) -> None:
        self._app = app
        self.worker: Worker | None = None
        self.phase = "starting"

    def render(self, accept: str) -> tuple[str, bytes]:
        return render(self._app.metrics.registry, accept)

    def live(self) -> tuple[bool, str]:
        return self.worker.live() if self.worker else (True, "starting")

    def ready(self) -> tuple[bool, str]:
        return self.worker.readiness() if self.worker else (False, self.phase)

    def cancel_handlers(self) -> None:
        if self.worker:
            self.worker.cancel_handlers()


def _work(app: App, settings: Settings, groups: tuple[str, ...], channel: SlotChannel | None, *, burst: bool) -> int:
    """One worker process from start to end; its exit code."""
    tame_collector()
    probes = _Probes(app)
    server = None
    if channel is not None:
        channel.serve(probes.render, probes.live, probes.ready)
    elif settings.worker.http:
        server = ProbeServer(settings.worker.http, probes.render, probes.live, probes.ready)
        _log.info("http_listening", extra={"url": server.start(), "pid": os.getpid()})
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner, translated(settings.redis):
            try:
                code = runner.run(_serve(app, groups, probes, burst=burst))
            except Exception:
                if probes.worker is not None and not probes.worker.clean:
                    _log.critical("worker_failed", exc_info=True)
                    _leave_at_once(Exit.FAILED)
                raise
            if code == Exit.DRAIN_TIMEOUT:
                _leave_at_once(code)
            return code
    finally:
        if server is not None:
            server.close()


def tame_collector() -> None:
    """Under load the collector would walk through all that was imported again and again, and through each batch."""
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


def _leave_at_once(code: int) -> None:
    """A handler that ignores its cancellation, or a thread that hangs, would keep an orderly exit waiting for ever."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


async def _serve(app: App, groups: tuple[str, ...], probes: _Probes, *, burst: bool) -> int:
    stop = asyncio.Event()
    with steered_by_signals(stop, probes.cancel_handlers):
        probes.phase = "connecting to Redis"
        if not await _opened(app, stop):
            return 0
        try:
            worker = probes.worker = app.worker(groups or None)
            return await worker.run(stop, burst=burst)
        finally:
            await app.close()


async def _opened(app: App, stop: asyncio.Event) -> bool:
    """Connect and declare; False when a signal came first, for Redis may keep us waiting."""
    opening, stopping = asyncio.create_task(app.open()), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({opening, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if opening.done():
            opening.result()
            return True
        opening.cancel()
        await asyncio.wait({opening})
        return False
    finally:
        stopping.cancel()
