"""A thread that renews what this process claimed or owns, also while the event loop is blocked; ends a hung process."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from streamlib.redisio.claims import Held, renew
from streamlib.redisio.connection import RedisDoor, SyncClient
from streamlib.redisio.failures import CLIENT_ERRORS
from streamlib.settings import WorkerSettings
from streamlib.worker.answering import Answering
from streamlib.worker.inflight import InFlight

logger = logging.getLogger(__name__)
_CHUNK = 500

Renewal = tuple[str, Callable[[SyncClient], None]]
"""What it is called, and how to renew it; raises what the client raises."""

EXIT_STALLED = 1


class Renewer:
    """Renews every quarter of the lease on a connection of its own.

    It also watches the loop's heartbeat. A loop that is merely busy keeps its claims: nobody robs a slow worker. One
    that shows no sign of life for `stall_s` while this thread runs ends the process, so that others take its work.
    Only the thread's own ticks count, so a process that was stopped and woken again is not taken for a hung one.
    """

    def __init__(
        self,
        door: RedisDoor,
        inflight: InFlight,
        settings: WorkerSettings,
        *,
        consumer: str,
        worker_id: str,
        window_ms: int,
        loop: asyncio.AbstractEventLoop,
        on_error: Callable[[str, Exception], None],
        owned: Callable[[], Sequence[Renewal]] = tuple,
    ) -> None:
        self._door = door
        self._inflight = inflight
        self._settings = settings
        self._consumer = consumer
        self._worker_id = worker_id
        self._window_ms = window_ms
        self._loop = loop
        self._on_error = on_error
        self._owned = owned
        self.answering = Answering(apart=not door.one_node)
        """Whether Redis takes renewals: all that a worker asks while its handlers are busy with what it has."""
        self._failures: dict[str, float] = {}
        self._period_s = settings.lease_ms / 4000
        self._stop = threading.Event()
        self._beats = 0
        self._thread = threading.Thread(target=self._run, name="streamlib-renewer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop renewing. While code still runs that could not be stopped (a thread), its claims are kept."""
        self._stop.set()
        if not len(self._inflight):
            self._thread.join(timeout=self._door.settings.timeout_s + 1)

    def beat(self) -> None:
        """The event loop is alive; called by it."""
        self._beats += 1

    def run_once(self, client: SyncClient) -> None:
        """Renew everything that is in flight or owned now. Raises the last of what the client raised.

        What fails, for whatever reason, keeps nothing else from its renewal: everything is tried, and what failed last
        time comes last. Of that, no more is tried once half a period is over: a lost shard that answers none of many
        must not make this round longer than the leases of the others.
        """
        failed: dict[str, Exception] = {}
        give_up_at = time.monotonic() + self._period_s / 2
        due = self._due()
        self.answering.forget_but({_stream_of(name) for name, _ in due})
        for name, renewal in sorted(due, key=lambda named: self._failures.get(named[0], 0.0)):
            if name in self._failures and failed and time.monotonic() > give_up_at:
                continue
            try:
                with self.answering.at(_stream_of(name)):
                    renewal(client)
            except CLIENT_ERRORS as error:
                failed[name] = error
                self._failures[name] = time.monotonic()
            else:
                self._failures.pop(name, None)
        for last in failed.values():
            raise last

    def _due(self) -> list[Renewal]:
        """Everything to renew: what it is called, and how."""
        chunks = [
            (f"{{{stream}}}:{group}:{again}:{start}", held[start : start + _CHUNK])
            for (stream, group, again), held in self._inflight.by_stream().items()
            for start in range(0, len(held), _CHUNK)
        ]
        claims: list[Renewal] = [(name, partial(self._renew, chunk)) for name, chunk in chunks]
        return [*self._owned(), *claims]

    def _renew(self, chunk: list[Held], client: SyncClient) -> None:
        lost = set(
            renew(
                client,
                chunk,
                consumer=self._consumer,
                worker_id=self._worker_id,
                lease_ms=self._settings.lease_ms,
                window_ms=self._window_ms,
            )
        )
        for held in chunk:
            on_lost = self._inflight.lost(held) if held.ref in lost else None
            if on_lost is not None and self._stop.is_set():
                self._inflight.forget(held)
            elif on_lost is not None:
                self._loop.call_soon_threadsafe(on_lost)

    def _run(self) -> None:
        try:
            self._renew_until_closed()
        except Exception:
            logger.critical("renewer_died", exc_info=True)  # without it every claim of this process runs out
            os._exit(EXIT_STALLED)

    def _renew_until_closed(self) -> None:
        client = self._door.sync_client()
        tick_s = min(self._period_s, 1.0)
        due = time.monotonic() + self._period_s
        seen, silent_s = -1, 0.0
        while not self._stop.wait(tick_s):
            silent_s = silent_s + tick_s if self._beats == seen else 0.0
            seen = self._beats
            if silent_s > self._settings.stall_s:
                self._give_up(silent_s)
            if time.monotonic() >= due:
                due = time.monotonic() + self._try_renew(client)
        while len(self._inflight):
            time.sleep(self._try_renew(client))
        client.close()

    def _try_renew(self, client: SyncClient) -> float:
        """Seconds until the next try: soon after an error, for the leases run on."""
        try:
            self.run_once(client)
        except CLIENT_ERRORS as error:
            self._on_error("renewal", error)
            logger.warning("renewal_failed", extra={"error": str(error)})
            return min(self._period_s / 4, 1.0)
        return self._period_s

    def _give_up(self, silent_s: float) -> None:
        logger.critical("event_loop_stalled", extra={"seconds": round(silent_s, 1), "pid": os.getpid()})
        faulthandler.dump_traceback(file=sys.__stderr__ or sys.stderr)
        os._exit(EXIT_STALLED)


def _stream_of(name: str) -> str:
    """The partition that a renewal is about, by its name; the name where it is about none."""
    return name[1 : name.find("}")] if name.startswith("{") else name
