"""The demo: real workers on real flights, one killed at work and replaced, every result checked against the file."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from streamlib.cli.demo_report import DemoOptions, DemoProgress, DemoResult, Report
from streamlib.embedded import resolve
from streamlib.errors import StreamlibError
from streamlib.message import new_event_id
from streamlib.ops.inspect import inspect
from streamlib.settings import RedisSettings, Settings
from workers.flights.app import DATABASE_ENV, app, flights
from workers.flights.processes import WorkerProcess
from workers.flights.publish import Published, publish_file
from workers.flights.records import DATA_FILE, read_events
from workers.flights.store import EffectStore
from workers.flights.verify import COPIES, HANDLER_GROUPS, TOPICS, Verdict, any_partition, verify

# Short, so that what the killed worker held comes back while somebody watches; the default is 30 s.
_LEASE_MS = 2_000
_LOOK_S = 0.05
_REPORT_S = 0.25
_STUCK_S = 60.0
_PATIENCE_S = 3.0
_SCAN_COUNT = 5_000
_KILL_AFTER = 0.2
"""The share of the events that is handled before a worker is killed."""


def run_demo(report: Report, options: DemoOptions) -> DemoResult:
    """Run it all and stop it all, also on Ctrl-C and SIGTERM; `report` hears what happens.

    Raises ConfigError, RedisUnavailable, RedisUnfit, WorkerFailed, PublishError.
    """
    with ExitStack() as stack:
        stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, _end))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="streamlib-demo-")))
        own = options.redis_url is None
        report(DemoProgress(news="starting a private server" if own else "using the given Redis"))
        url, server = resolve(options.redis_url or f"embedded://{directory / 'redis'}")
        if server is not None:
            stack.callback(server.stop)
        # On somebody's server everything lies under a name of its own, and is removed at the end.
        namespace = "" if own else f"flights-demo-{new_event_id()[-12:]}"
        demo = _Demo(report, options, directory, RedisSettings(url=url, namespace=namespace, retry_s=_PATIENCE_S))
        if not own:
            stack.callback(demo.forget)
        stack.callback(demo.stop_workers)
        result = _until_ended(demo.work())
        if options.hold is not None:
            with suppress(KeyboardInterrupt):
                options.hold(result)
    return result


class _Demo:
    """One run of the demo."""

    def __init__(self, report: Report, options: DemoOptions, directory: Path, redis: RedisSettings) -> None:
        self._report = report
        self._limit = options.events
        self._total = sum(1 for _ in read_events(limit=options.events))
        self._directory = directory
        self._redis = redis
        self._database = directory / "flights.sqlite3"
        self._workers: list[WorkerProcess] = []
        self._published = 0
        self._wrote = False
        self._started = time.monotonic()
        app.configure(Settings(redis=redis))

    async def work(self) -> DemoResult:
        """From the first worker's start to the verdict; workers are left running."""
        async with app:
            self._wrote = True
            victim = await self._start_worker()
            its_consumers = await self._consumers()
            survivor = await self._start_worker()
            self._tell(f"publishing {self._total:,} events of real flights")
            publishing = asyncio.create_task(self._publish())
            try:
                recovered = await self._kill_at_work(victim, its_consumers, publishing)
                running = [survivor]
                if recovered:  # as whatever runs workers would do
                    running.append(await self._start_worker())
                published = await publishing
                await self._until_settled(running)
            finally:
                publishing.cancel()
            self._tell("comparing every result with the file")
            store = EffectStore(self._database)
            try:
                verdict = await verify(app, store, DATA_FILE, self._limit)
            finally:
                store.close()
        return self._result(verdict, published, recovered, survivor)

    def stop_workers(self) -> None:
        """End every worker that still runs."""
        for worker in self._workers:
            worker.terminate()
        for worker in self._workers:
            worker.stop()

    def forget(self) -> None:
        """Remove everything that this run stored in somebody's Redis."""
        if self._wrote:
            asyncio.run(self._forget())

    async def _start_worker(self) -> WorkerProcess:
        name = f"worker-{len(self._workers) + 1}"
        worker = WorkerProcess(name, self._directory, self._environment())
        self._workers.append(worker)
        await worker.wait_ready()
        self._tell(f"{name} is ready (pid {worker.pid}, {worker.http_url()}/metrics)")
        return worker

    def _environment(self) -> dict[str, str]:
        """This process's environment, with the demo's settings in the place of others."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("STREAMLIB_")}
        return inherited | {
            "STREAMLIB_REDIS_URL": self._redis.url,
            "STREAMLIB_REDIS_NAMESPACE": self._redis.namespace,
            "STREAMLIB_WORKER_LEASE_MS": str(_LEASE_MS),
            DATABASE_ENV: str(self._database),
        }

    async def _publish(self) -> Published:
        def progress(stored: int) -> None:
            self._published = stored

        return await publish_file(app, DATA_FILE, limit=self._limit, progress=progress)

    async def _kill_at_work(
        self, victim: WorkerProcess, consumers: set[bytes], publishing: asyncio.Task[Published]
    ) -> int:
        """SIGKILL the worker while it holds events; how many. Frozen first, so that it cannot finish them."""
        while True:
            if publishing.done():
                publishing.result()
            published = self._published  # before the look: what is published meanwhile is not handled yet
            backlog = await self._look()
            handled = published - max(backlog[group] for group in HANDLER_GROUPS)
            if handled >= self._total * _KILL_AFTER and await self._held(consumers):
                victim.freeze()
                if await self._held(consumers):
                    break
                victim.thaw()
            if published == self._total and not any(backlog.values()):
                break
            await asyncio.sleep(_LOOK_S)
        victim.kill()
        held = await self._held(consumers)
        self._tell(
            f"killed {victim.name} (SIGKILL) while it held {held:,} events"
            if held
            else f"killed {victim.name} (SIGKILL); too few events to catch it at work"
        )
        return held

    async def _until_settled(self, running: Sequence[WorkerProcess]) -> None:
        """Return when no group has anything left. Raises StreamlibError when nothing moves any more."""
        last, moved_at = await self._look(), time.monotonic()
        while any(last.values()):
            await asyncio.sleep(_REPORT_S)
            for worker in running:
                worker.check_running()
            now = await self._look()
            if now != last:
                last, moved_at = now, time.monotonic()
            elif time.monotonic() - moved_at > _STUCK_S:
                raise StreamlibError(f"nothing has moved for {_STUCK_S:g} s; left per group: {last}")
        self._tell("every group has handled every event")

    async def _look(self) -> dict[str, int]:
        """What each group has left, what is still to be copied for it included; the report hears it too."""
        _stop_if_cancelled()
        backlog: dict[str, int] = {}
        for topic in TOPICS:  # what leaves `flights` meanwhile is seen in its copy
            (info,) = await inspect(app.redis, app.keys, topic.name)
            backlog |= {group.group: group.backlog for group in info.groups}
        for board, copies in COPIES.items():
            backlog[board] += backlog[copies]
        self._report(DemoProgress(total=self._total, published=self._published, backlog=backlog))
        return backlog

    async def _consumers(self) -> set[bytes]:
        """The consumer names of the only worker so far; a consumer exists from its first read on."""
        while True:
            per_group = [set(await self._pending(group)) for group in HANDLER_GROUPS]
            if all(per_group):
                return set().union(*per_group)
            await asyncio.sleep(_LOOK_S)

    async def _held(self, consumers: set[bytes]) -> int:
        """How many deliveries these consumers have taken and not acknowledged."""
        held = 0
        for group in HANDLER_GROUPS:
            pending = await self._pending(group)
            held += sum(pending[consumer] for consumer in consumers)
        return held

    async def _pending(self, group: str) -> Counter[bytes]:
        found: Counter[bytes] = Counter()
        for number in range(flights.spec.partitions):
            stream = app.keys.stream(flights.name, number, flights.spec.partitions).stream
            replies = await app.redis.execute("XINFO", "CONSUMERS", stream, group)
            rows = [dict(zip(reply[::2], reply[1::2], strict=True)) for reply in replies]
            found.update({row[b"name"]: row[b"pending"] for row in rows})
        return found

    async def _forget(self) -> None:
        keys = app.keys
        streams = [any_partition(app, topic).stream for topic in TOPICS]
        async with app:
            redis = app.redis
            for pattern in (*streams, *(f"{{{stream}}}:*" for stream in streams), keys.group("*", "*")):
                cursor = b"0"
                while True:
                    cursor, names = await redis.execute("SCAN", cursor, "MATCH", pattern, "COUNT", _SCAN_COUNT)
                    if names:
                        await redis.execute("UNLINK", *names)
                    if cursor == b"0":
                        break
            await redis.execute("UNLINK", keys.topics(), keys.views(), keys.workers())

    def _result(self, verdict: Verdict, published: Published, recovered: int, survivor: WorkerProcess) -> DemoResult:
        return DemoResult(
            events=self._total,
            published=published.stored,
            groups=verdict.groups,
            dead=verdict.dead,
            duplicates=verdict.repeats + published.duplicates,
            recovered=recovered,
            seconds=round(time.monotonic() - self._started, 1),
            verified=not verdict.mismatches,
            mismatches=verdict.mismatches,
            metrics_url=f"{survivor.http_url()}/metrics",
            dead_reason=verdict.dead_reason,
            boards={"airport-board": verdict.airports, "carrier-board": verdict.carriers},
        )

    def _tell(self, news: str) -> None:
        self._report(DemoProgress(news=news, total=self._total, published=self._published))


def _stop_if_cancelled() -> None:
    """A cancellation can get lost: the client's timeouts of zero seconds take it for their own (CPython < 3.13)."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _end(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends the demo like Ctrl-C does: everything it started is stopped on the way out."""
    sys.exit(128 + number)


def _until_ended(work: Coroutine[Any, Any, DemoResult]) -> DemoResult:
    """Run the work in an event loop, where SIGTERM cancels it: an exception out of nowhere would break the loop."""

    terminated = asyncio.Event()

    async def run() -> DemoResult:
        task = asyncio.current_task()

        def end() -> None:
            terminated.set()
            if task is not None:
                task.cancel()

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end)
        return await work

    try:
        return asyncio.run(run())
    except asyncio.CancelledError:
        if terminated.is_set():
            sys.exit(128 + signal.SIGTERM)
        raise
