"""Entries of owned partitions, in a queue for each key: one event of a key at a time, in stream order."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet

import msgspec
from msgspec import Struct

from streamlib.redisio.delivery import Delivery
from streamlib.redisio.key_states import KeyState
from streamlib.redisio.reader import Received
from streamlib.redisio.settler import HALTED_MS, Settlement
from streamlib.worker.work import Ended

_LOST_AGAIN_S = 1.0
_NOW = 0.0


class _Waiting(Struct):
    """An entry and when it may run: at `due_at` (monotonic seconds), never while `halted`."""

    received: Received
    due_at: float = _NOW
    halted: bool = False

    @property
    def failing(self) -> bool:
        return self.halted or self.due_at != _NOW or self.received.delivery.attempts > 0


class _Queue(Struct):
    """The entries of one key, the next one first. `taken` is that one's ref while it is out of here."""

    entries: deque[_Waiting]
    taken: str = ""
    timer: asyncio.TimerHandle | None = None


class OwnedEntries:
    """What was read of one partition in one epoch. `ready` are the keys whose next event may run now."""

    def __init__(self, epoch: int, states: Mapping[str, KeyState], wake: Callable[[], None]) -> None:
        self.epoch = epoch
        self.queues: dict[str, _Queue] = {}
        self.ready: dict[str, None] = {}
        self.size = self.size_bytes = 0
        self.room = asyncio.Event()
        """Set when an ending leaves no more than `enough` here, and when an event fails: it and what waits behind it
        do not count as what may run."""
        self.enough = 0
        self.changed = asyncio.Event()
        """Set whenever something has come back."""
        self._states = dict(states)
        self._wake = wake
        self._out: set[str] = set()
        self._aside: set[str] = set()
        self.shut = False
        """Nothing more is given away: the partition is being given up."""

    @property
    def quiet(self) -> bool:
        """Nothing of it is claimed, or being claimed."""
        return not self._out

    @property
    def halted(self) -> dict[str, str]:
        """Key -> ref of the event at which it halted."""
        return {
            key: queue.entries[0].received.delivery.ref for key, queue in self.queues.items() if queue.entries[0].halted
        }

    @property
    def parked(self) -> int:
        """How many events wait for one of their key that failed, that one included."""
        return sum(len(queue.entries) for queue in self.queues.values() if queue.entries[0].failing)

    @property
    def parked_for_good(self) -> int:
        """The same, of halted keys."""
        return sum(len(queue.entries) for queue in self.queues.values() if queue.entries[0].halted)

    def add(self, received: Received, server_ms: int) -> None:
        key = received.delivery.key
        waiting = _Waiting(received)
        state = self._states.get(key)
        if state is not None and state.ref == received.delivery.ref:
            del self._states[key]
            waiting = _noted(received, state, server_ms)
        queue = self.queues.get(key)
        if queue is None:
            queue = self.queues[key] = _Queue(deque())
        queue.entries.append(waiting)
        self.size += 1
        self.size_bytes += received.delivery.size
        if len(queue.entries) == 1:
            self._next_of(key, queue)

    def take(self, wanted: Callable[[Received], bool]) -> bool:
        """Whether it gave something away."""
        before = len(self._out)
        for key in list(self.ready):
            queue = self.queues[key]
            delivery = queue.entries[0].received.delivery
            if wanted(queue.entries[0].received):
                del self.ready[key]
                queue.taken = delivery.ref
                self._out.add(delivery.ref)
        return len(self._out) > before

    def successor(self, delivery: Delivery) -> Received | None:
        """What follows in its key on what was taken, if it may run as soon as that has ended."""
        queue = self.queues.get(delivery.key)
        if queue is None or queue.taken != delivery.ref or len(queue.entries) == 1 or queue.entries[1].failing:
            return None
        return queue.entries[1].received

    def follow(self, delivery: Delivery) -> bool:
        """What was a successor is the next of its key by now, and taken; False where nothing is to start any more."""
        del self.ready[delivery.key]
        self.queues[delivery.key].taken = delivery.ref
        self._out.add(delivery.ref)
        return not self.shut

    def again(self, delivery: Delivery, delay_s: float) -> None:
        """What was taken stays the next of its key, and is due then."""
        queue = self._back(delivery)
        if queue is not None:
            queue.entries[0].due_at = time.monotonic() + delay_s if delay_s else _NOW
            self.room.set()
            self._next_of(delivery.key, queue)

    def hold(self, delivery: Delivery, settlement: Settlement) -> None:
        """The same, as it was settled: with the attempts spent, or halted."""
        queue = self._back(delivery)
        if queue is None:
            return
        waiting = queue.entries[0]
        if settlement.parts:
            attempts, parked_ms, _ = settlement.parts
            changed = msgspec.structs.replace(delivery, attempts=attempts, parked_ms=parked_ms)
            waiting.received = msgspec.structs.replace(waiting.received, delivery=changed)
        waiting.halted = settlement.number == HALTED_MS
        waiting.due_at = time.monotonic() + settlement.number / 1000 if settlement.number > 0 else _NOW
        self.room.set()
        self._next_of(delivery.key, queue)

    def end(self, delivery: Delivery) -> None:
        """What was taken has ended: the next of its key follows."""
        queue = self._back(delivery)
        if queue is not None:
            self._drop_first(delivery.key, queue)

    def resume(self, key: str, state: KeyState) -> None:
        """An operator lets a halted key go on at the event at which it halted."""
        queue = self.queues[key]
        queue.entries[0] = _noted(queue.entries[0].received, state, 0)
        self._next_of(key, queue)
        self._wake()

    def skip(self, key: str) -> None:
        """An operator gave that event up: the key goes on with the next."""
        self._drop_first(key, self.queues[key])
        self._wake()

    def aside(self, ref: str) -> None:
        self._out.discard(ref)
        self._aside.add(ref)
        self.changed.set()

    def resumed(self, ref: str) -> bool:
        if ref not in self._aside or self.shut:
            return False
        self._aside.discard(ref)
        self._out.add(ref)
        return True

    def close(self) -> list[Received]:
        """End all waiting; what was here."""
        for queue in self.queues.values():
            if queue.timer is not None:
                queue.timer.cancel()
        return [waiting.received for queue in self.queues.values() for waiting in queue.entries]

    def _back(self, delivery: Delivery) -> _Queue | None:
        """The queue of an entry that comes back; None where it was not out."""
        queue = self.queues.get(delivery.key)
        self._out.discard(delivery.ref)
        self._aside.discard(delivery.ref)
        self.changed.set()
        if queue is None or queue.taken != delivery.ref:
            return None
        queue.taken = ""
        return queue

    def _drop_first(self, key: str, queue: _Queue) -> None:
        gone = queue.entries.popleft()
        self.size -= 1
        self.size_bytes -= gone.received.delivery.size
        if self.size <= self.enough:
            self.room.set()
        if queue.entries:
            self._next_of(key, queue)
        else:
            del self.queues[key]

    def _next_of(self, key: str, queue: _Queue) -> None:
        """Its first entry may run now, or when it is due, or when an operator says so."""
        if queue.timer is not None:
            queue.timer.cancel()
            queue.timer = None
        first = queue.entries[0]
        if first.halted:
            return
        delay_s = first.due_at - time.monotonic() if first.due_at else 0.0
        if delay_s <= 0:
            self.ready[key] = None
        else:
            queue.timer = asyncio.get_running_loop().call_later(delay_s, self._due, key)

    def _due(self, key: str) -> None:
        self.ready[key] = None
        self._wake()


class KeyInbox:
    """All partitions that this process owns for one group; `may_start` asks whether its lease of one still holds."""

    def __init__(self, on_ready: Callable[[], None], may_start: Callable[[int], bool]) -> None:
        self._on_ready = on_ready
        self._may_start = may_start
        self._partitions: dict[int, OwnedEntries] = {}
        self._server_ms = 0

    def open(self, partition: int, epoch: int, states: Mapping[str, KeyState]) -> OwnedEntries:
        """A partition is this process's from now on; `states` is what is noted about its keys."""
        entries = self._partitions[partition] = OwnedEntries(epoch, states, self._on_ready)
        return entries

    def shut(self, partition: int) -> None:
        """Give away nothing more of it."""
        self._partitions[partition].shut = True

    def close(self, partition: int) -> list[Received]:
        """It is not this process's any more; what waited here."""
        return self._partitions.pop(partition).close()

    def told_time(self, server_ms: int) -> None:
        """The server's clock now, by which retries are due."""
        self._server_ms = server_ms

    @property
    def ready(self) -> int:
        """How many keys wait to be taken."""
        return sum(len(entries.ready) for entries in self._partitions.values())

    def successor(self, settlement: Settlement) -> Received | None:
        """The next event of its key, if that may be claimed along with this ending."""
        entries = self._of(settlement.delivery)
        if entries is None or entries.shut or settlement.kind == "hold":
            return None
        return entries.successor(settlement.delivery) if self._may_start(settlement.delivery.partition) else None

    def follow(self, delivery: Delivery) -> bool:
        """A successor is claimed and its predecessor's ending recorded; whether it may start."""
        entries = self._of(delivery)
        return entries is not None and entries.follow(delivery) and self._may_start(delivery.partition)

    @property
    def parked(self) -> int:
        return sum(entries.parked for entries in self._partitions.values())

    @property
    def parked_for_good(self) -> int:
        return sum(entries.parked_for_good for entries in self._partitions.values())

    # -- what every inbox does --------------------------------------------------------------------------------------

    def add(self, received: Received) -> None:
        entries = self._of(received.delivery)
        if entries is not None:
            entries.add(received, self._server_ms)

    def take(self, wanted: Callable[[Received], bool], but: AbstractSet[int]) -> None:
        for partition, entries in list(self._partitions.items()):
            ready = entries.ready and not entries.shut and partition not in but and self._may_start(partition)
            if ready and entries.take(wanted):  # it goes behind the others, or a long backlog would keep them out
                self._partitions[partition] = self._partitions.pop(partition)

    def later(self, received: Received, delay_s: float) -> None:
        entries = self._of(received.delivery)
        if entries is not None:
            entries.again(received.delivery, delay_s)

    def settled(self, ended: Ended, counts: bool) -> None:
        delivery, settlement = ended.settlement.delivery, ended.settlement
        entries = self._of(delivery)
        if entries is None:
            return
        if not counts:  # its claim was lost, not its partition: the next claim tells what has become of it
            entries.again(delivery, _LOST_AGAIN_S)
        elif settlement.kind == "hold":
            entries.hold(delivery, settlement)
        else:
            entries.end(delivery)
        self._on_ready()

    def dropped(self, delivery: Delivery) -> None:
        entries = self._of(delivery)
        if entries is not None:
            entries.again(delivery, _LOST_AGAIN_S)

    def aside(self, delivery: Delivery) -> None:
        entries = self._of(delivery)
        if entries is not None:
            entries.aside(delivery.ref)

    def resumed(self, delivery: Delivery) -> bool:
        entries = self._of(delivery)
        return entries is not None and entries.resumed(delivery.ref)

    def weight(self, slow: AbstractSet[int], most: tuple[int, int]) -> tuple[int, int]:
        """Each partition is read by itself, within bounds of its own."""
        return len(self), sum(entries.size_bytes for entries in self._partitions.values())

    def drain(self) -> list[Received]:
        """What an owner did not start stays pending, for the next one."""
        return []

    def __iter__(self) -> Iterator[Received]:
        for entries in self._partitions.values():
            for queue in entries.queues.values():
                yield from (waiting.received for waiting in queue.entries)

    def __len__(self) -> int:
        return sum(entries.size for entries in self._partitions.values())

    def _of(self, delivery: Delivery) -> OwnedEntries | None:
        """Where it belongs, unless that epoch is over."""
        entries = self._partitions.get(delivery.partition)
        return entries if entries is not None and entries.epoch == delivery.epoch else None


def _noted(received: Received, state: KeyState, server_ms: int) -> _Waiting:
    """The entry as an earlier owner, or an operator, left it."""
    delivery = msgspec.structs.replace(received.delivery, attempts=state.attempts, parked_ms=state.parked_ms)
    due_at = time.monotonic() + (state.due_ms - server_ms) / 1000 if state.due_ms > server_ms > 0 else _NOW
    return _Waiting(msgspec.structs.replace(received, delivery=delivery), due_at, state.halted)
