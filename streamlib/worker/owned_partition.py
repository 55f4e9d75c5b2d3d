"""One partition of an ordered group in one process: waited for, owned, read in order, given up again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

from msgspec import Struct

from streamlib.codec import Codec
from streamlib.errors import Fenced
from streamlib.keys import StreamKeys
from streamlib.metrics.worker import GroupMetrics
from streamlib.redisio.connection import Lane, RedisDoor
from streamlib.redisio.delivering import OwnedReader
from streamlib.redisio.key_states import KeyState, forget, is_open, key_states, states_of
from streamlib.redisio.reader import Missing
from streamlib.settings import WorkerSettings
from streamlib.worker.consumer import Consumer
from streamlib.worker.key_inbox import KeyInbox, OwnedEntries
from streamlib.worker.loops import Never, first_set, unless
from streamlib.worker.partition_lease import PartitionLease
from streamlib.worker.pausing import Gate

T = TypeVar("T")

logger = logging.getLogger(__name__)
_LOOK_S = 1.0


class OwnedParts(Struct, frozen=True, kw_only=True):
    """What all owned partitions of a group share."""

    door: RedisDoor
    group: str
    worker_id: str
    consumer_name: str
    codec: Codec
    settings: WorkerSettings
    payload_bytes: int
    inbox: KeyInbox
    consumer: Consumer
    gate: Gate
    metrics: GroupMetrics


class OwnedPartition:
    """`run_once` is one ownership, from taking the partition to giving it up."""

    def __init__(self, parts: OwnedParts, number: int, keys: StreamKeys, lease: PartitionLease) -> None:
        self.keys = keys
        self.lease = lease
        self.last_read: float | None = None
        self.full = False
        """It is not read, for too much waits behind failing events."""
        self.waits_for_room = False
        """It is not read, for that reason or because enough was read that may run."""
        self._at_end = False
        self._parts = parts
        self._number = number
        self._door = parts.door
        self._entries: OwnedEntries | None = None

    @property
    def wants_to_read(self) -> bool:
        """Whether its silence means that Redis does not answer."""
        return self.lease.held and not self.waits_for_room and not self.lease.leaving.is_set()

    @property
    def stands_still(self) -> bool:
        """Nothing goes on here before a person acts or something new comes, or it is another worker's."""
        entries = self._entries
        if not self.lease.held or entries is None:
            return self.lease.standby
        return entries.size == entries.parked_for_good and (self.full or self._at_end)

    @property
    def halted(self) -> dict[str, str]:
        """Key -> ref of the event at which it halted."""
        return self._entries.halted if self._entries is not None else {}

    async def run_once(self, stop: asyncio.Event) -> float:
        """Own the partition once; returns when it was lost, is another worker's share, or `stop` was set.

        Raises what the client raises where waiting does not help; the partition is given up then.
        """
        epoch = await self.lease.acquire(stop)
        if epoch is None:
            return 0.0
        reading = self._door.blocking(self._parts.settings.block_ms)
        try:
            noted = await self._unless_over(self._persist_states())
            if not isinstance(noted, Never):
                states = {state.key: state for state in noted}
                self._entries = self._parts.inbox.open(self._number, epoch, states)
                await self._read(self._reader(epoch), reading, self._entries, states)
        except Fenced:
            self.lease.fenced()
        finally:
            await reading.close()
            await self._give_up()
        return 0.0

    async def look_at_halted(self) -> float:
        """Whether an operator has resumed or skipped halted keys; seconds until the next look."""
        entries = self._entries
        halted = entries.halted if entries is not None else {}
        if entries is not None and halted:
            noted = await states_of(self._door, self.keys, self._parts.group, list(halted))
            for key, state in noted.items():
                if entries.halted.get(key) != halted[key]:
                    continue  # it has ended meanwhile
                if state is not None and state.ref == halted[key]:
                    if not state.halted:
                        entries.resume(key, state)
                elif await is_open(self._door, self.keys, self._parts.group, halted[key]):
                    # Nobody gave it up, only the note is lost (a failover can lose what was written last).
                    entries.resume(key, KeyState(key, halted[key], 0, 0, False, ""))
                else:
                    entries.skip(key)
        return _LOOK_S

    # -- reading --------------------------------------------------------------------------------------------------

    def _reader(self, epoch: int) -> OwnedReader:
        parts = self._parts
        return OwnedReader(
            self.keys,
            self._number,
            parts.codec,
            group=parts.group,
            worker_id=parts.worker_id,
            consumer=parts.consumer_name,
            epoch=epoch,
            payload_bytes=parts.payload_bytes,
        )

    async def _read(
        self, reader: OwnedReader, reading: Lane, entries: OwnedEntries, states: dict[str, KeyState]
    ) -> None:
        """Read until it is over: what earlier owners left, in its order, and only then what is new.

        More pending than we hold is what a failover took back the acks of: we end then, and as the next owner read it.
        """
        lease, parts = self.lease, self._parts
        while not (lease.lost.is_set() or lease.leaving.is_set()):
            if parts.gate.closed:
                await self._unless_over(parts.gate.wait_open())
                continue
            room = self._room(entries)
            self.waits_for_room = room <= 0
            if self.waits_for_room:
                entries.room.clear()
                await first_set(entries.room, lease.lost, lease.leaving, timeout_s=_LOOK_S)
                parts.consumer.wake_up()  # what did not start while the lease was in doubt may start by now
                self.last_read = time.monotonic()  # silence until now was our own
                continue
            held = entries.size
            found = await self._unless_over(self._door.persist(partial(reader.read, self._door, room), give_up_s=None))
            if isinstance(found, Never):
                return
            self.last_read, self._at_end = time.monotonic(), found.empty
            parts.metrics.polled()
            parts.inbox.told_time(found.now_ms)
            parts.consumer.offer(found.received)
            for missing in found.missing:
                await self._tell_missing(missing, states)
            if found.left > held:
                fields = {"stream": self.keys.stream, "group": parts.group, "pending": found.left, "held": held}
                logger.error("acks_rolled_back", extra={**fields, "action": "run these events again"})
                return
            if found.empty:
                waiting = partial(reader.wait, reading, parts.settings.block_ms)
                await self._unless_over(self._door.persist(waiting, give_up_s=None))

    def _room(self, entries: OwnedEntries) -> int:
        """How many more to read: a batch of what may run, within bounds of what waits behind failing events.

        Never by ones: until a quarter of a batch has ended, there is enough to run.
        """
        settings, parked = self._parts.settings, entries.parked
        most = settings.parked - entries.size if entries.size_bytes < settings.prefetch_bytes else 0
        full = most <= 0 and parked > 0
        if full != self.full:
            self.full = full
            logger.warning(
                "partition_full_of_parked" if full else "partition_read_again",
                extra={"stream": self.keys.stream, "group": self._parts.group, "parked": parked},
            )
        free = settings.batch - (entries.size - parked)
        entries.enough = settings.batch - settings.batch // 4 + parked if most > 0 else entries.size - 1
        return min(free, most) if free >= settings.batch // 4 else 0

    async def _tell_missing(self, missing: Missing, states: dict[str, KeyState]) -> None:
        """Somebody deleted entries that were not acknowledged: what is noted about them is of no use any more."""
        self._parts.metrics.stream_lost()
        logger.error("pending_entry_missing", extra={"stream": missing.stream, "ids": missing.entry_ids[:20]})
        mark = "" if missing.stream == self.keys.stream else "a"
        gone = {mark + entry_id for entry_id in missing.entry_ids}
        for state in [state for state in states.values() if state.ref in gone]:
            forgetting = partial(forget, self._door, self.keys, self._parts.group, state)
            await self._door.persist(forgetting, give_up_s=None)

    async def _persist_states(self) -> Sequence[KeyState]:
        asking = partial(key_states, self._door, self.keys, self._parts.group)
        return await self._door.persist(asking, give_up_s=None)

    async def _unless_over(self, work: Coroutine[Any, Any, T]) -> T | Never:
        return await unless(work, self.lease.lost, self.lease.leaving)

    # -- the end --------------------------------------------------------------------------------------------------

    async def _give_up(self) -> None:
        """Let what is in flight end and be settled, then let others have the partition."""
        parts, entries = self._parts, self._entries
        if entries is not None:
            lost = self.lease.lost.is_set()
            parts.inbox.shut(self._number)
            parts.consumer.give_up(self._number, lost=lost)
            while not entries.quiet:
                entries.changed.clear()
                await first_set(entries.changed, *(() if lost else (self.lease.lost,)))
                if self.lease.lost.is_set() and not lost:
                    lost = True
                    parts.consumer.give_up(self._number, lost=True)
            parts.consumer.forget(parts.inbox.close(self._number))
            self._entries, self.full, self.waits_for_room, self._at_end = None, False, False, False
        await self.lease.release()
