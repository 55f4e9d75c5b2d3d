"""One partition of one group in this process: waited for, taken, renewed by a thread, fenced or released."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

from streamlib.errors import RedisError
from streamlib.metrics.worker import GroupMetrics
from streamlib.redisio.connection import RedisDoor, SyncClient
from streamlib.redisio.failures import CLIENT_ERRORS, RETRYABLE, classify
from streamlib.redisio.ownership import release, renew_sync, take
from streamlib.worker.loops import first_set

logger = logging.getLogger(__name__)

_POLL_S = 0.05
_PAUSE_S, _LAST_PAUSE_S = 0.05, 2.0
_RELEASE_S = 1.0


class PartitionLease:
    """The right to work on one partition. `epoch` is 0 while it is not owned.

    `lost` is set when somebody else owns it: stop at once, release() then writes nothing. `leaving` is set when it is
    not this process's share any more or the process stops: finish what is in flight, then release(). Both are
    cleared by the next acquire(). After a loss `epoch` stays what it was until release(), so that what still
    writes is fenced.
    """

    def __init__(
        self,
        door: RedisDoor,
        owner_key: str,
        *,
        worker_id: str,
        lease_ms: int,
        loop: asyncio.AbstractEventLoop,
        metrics: GroupMetrics,
        log_fields: Mapping[str, Any],
    ) -> None:
        self.owner_key = owner_key
        self.worker_id = worker_id
        self.epoch = 0
        self.lost = asyncio.Event()
        self.leaving = asyncio.Event()
        self.since = 0.0
        """When it was taken last, monotonic seconds."""
        self.standby = False
        """It is known that another worker has this partition, or nobody shall."""
        self._door = door
        self._lease_ms = lease_ms
        self._loop = loop
        self._metrics = metrics
        self._fields = log_fields
        self._wanted = asyncio.Event()
        self._until = 0.0
        self._stopping: asyncio.Task[None] | None = None

    @property
    def held(self) -> bool:
        """Owned, as far as we know."""
        return self.epoch != 0 and not self.lost.is_set()

    def fresh(self) -> bool:
        """Whether the lease cannot have run out, by this machine's own clock: ask before anything is started.

        A process that was frozen past its lease finds False, before it hears that it was fenced.
        """
        return self.held and time.monotonic() < self._until

    async def acquire(self, stop: asyncio.Event) -> int | None:
        """Wait until the partition is our share and ours; its epoch, None when `stop` was set before.

        Raises what the client raises where waiting does not help (a key of another type); call it again then.
        """
        pause_s, began = _PAUSE_S, time.monotonic()
        while not stop.is_set():
            if not self._wanted.is_set():
                await first_set(self._wanted, stop)
                began = time.monotonic()
                continue
            try:
                wait_s, pause_s = await self._try(stop, began), _PAUSE_S
            except CLIENT_ERRORS as error:
                if classify(error) not in RETRYABLE:
                    raise
                logger.warning("take_failed", extra={**self._fields, "error": str(error)})
                wait_s, pause_s = pause_s, min(pause_s * 2, _LAST_PAUSE_S)
            if self.epoch:
                return self.epoch
            await first_set(stop, timeout_s=wait_s)
        return None

    async def release(self) -> None:
        """Let others have it at once; call it when nothing is in flight any more. Nothing to do when it was lost."""
        epoch, was_lost, self.epoch = self.epoch, self.lost.is_set(), 0
        self.standby = not self._wanted.is_set()
        if not epoch:
            return
        if self._stopping is not None:
            self._stopping.cancel()
        if not was_lost:
            await self._send_release(epoch)
            self._metrics.ownership_changed("released", -1)
            logger.info("partition_released", extra={**self._fields, "epoch": epoch})

    def fenced(self) -> None:
        """A script said that the partition is another worker's now."""
        self._on_fenced(self.epoch)

    def want(self, wanted: bool) -> None:
        """Whether the partition is this process's share."""
        if wanted:
            self._wanted.set()
        else:
            self._wanted.clear()
            self.leaving.set()
            self.standby = not self.epoch

    def renew(self, client: SyncClient) -> None:
        """Hold on to it, from a thread. Raises what the client raises."""
        epoch, sent = self.epoch, time.monotonic()
        if not epoch or self.lost.is_set():
            return
        answer = renew_sync(client, self.owner_key, self.worker_id, epoch, self._lease_ms)
        if not answer.ours:
            self._loop.call_soon_threadsafe(self._on_fenced, epoch)
        elif self.epoch == epoch:
            self._until = sent + self._lease_ms / 1000

    async def _try(self, stop: asyncio.Event, began: float) -> float:
        """One try to own; seconds to wait before the next.

        It is never cancelled by us: a take whose answer nobody read would keep everyone away for a lease.
        """
        sent = time.monotonic()
        answer = await take(self._door, self.owner_key, self.worker_id, self._lease_ms)
        if not answer.ours:
            self.standby = True
            return min(_POLL_S, (answer.ms_left + 1) / 1000)
        if stop.is_set() or not self._wanted.is_set():
            await self._send_release(answer.epoch)
            return 0.0
        self.lost.clear()
        self.leaving.clear()
        self.standby = False
        self.since, self._until = sent, sent + self._lease_ms / 1000
        self.epoch = answer.epoch
        self._stopping = asyncio.create_task(self._leave_at(stop))
        self._metrics.ownership_changed("taken", 1)
        waited_ms = round((time.monotonic() - began) * 1000)
        logger.info("partition_taken", extra={**self._fields, "epoch": self.epoch, "waited_ms": waited_ms})
        return 0.0

    async def _leave_at(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self.leaving.set()

    def _on_fenced(self, epoch: int) -> None:
        if epoch and self.epoch == epoch and not self.lost.is_set():
            self.lost.set()
            self.standby = True
            self._metrics.ownership_changed("lost", -1)
            logger.warning("partition_lost", extra={**self._fields, "epoch": epoch})

    async def _send_release(self, epoch: int) -> None:
        try:
            await self._door.persist(
                lambda: release(self._door, self.owner_key, self.worker_id, epoch), give_up_s=_RELEASE_S
            )
        except (*CLIENT_ERRORS, RedisError) as error:
            logger.warning("release_failed", extra={**self._fields, "error": str(error)})
