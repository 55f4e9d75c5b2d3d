"""Entries that were read and not yet admitted, counted by partition."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from typing import Protocol

from streamlib.redisio.delivery import Delivery
from streamlib.redisio.reader import Received
from streamlib.worker.work import Ended


class Waits(Protocol):
    """Where entries wait to be claimed: `Inbox`, or `KeyInbox` where events of one key run one after another.

    What was taken comes back by exactly one of `later`, `settled` and `dropped`.
    """

    def add(self, received: Received) -> None: ...

    def take(self, wanted: Callable[[Received], bool], but: AbstractSet[int]) -> None:
        """Give away every entry that `wanted` takes; those of the partitions `but` are not asked about."""
        ...

    def later(self, received: Received, delay_s: float) -> None:
        """It is to be asked about again then: another worker holds it until then at the least."""
        ...

    def settled(self, ended: Ended, counts: bool) -> None:
        """It has its outcome; `counts` is False where the lease was lost."""
        ...

    def dropped(self, delivery: Delivery) -> None:
        """It is not this worker's any more."""
        ...

    def aside(self, delivery: Delivery) -> None:
        """It is a suspect, not claimed yet, and waits until it may run alone."""
        ...

    def resumed(self, delivery: Delivery) -> bool:
        """Its turn has come; False where it is not this worker's any more."""
        ...

    def weight(self, slow: AbstractSet[int], most: tuple[int, int]) -> tuple[int, int]:
        """Entries and bytes that wait. Those of slow partitions do not count, up to `most` of them: they must not keep
        the others from being read, and must not pile up either."""
        ...

    def drain(self) -> list[Received]:
        """Everything that waits to be claimed, at the end."""
        ...

    def __iter__(self) -> Iterator[Received]: ...

    def __len__(self) -> int: ...


class Inbox:
    """In the order in which they came, those that others left behind first."""

    def __init__(self, on_ready: Callable[[], None]) -> None:
        self._on_ready = on_ready
        self._timers: dict[asyncio.TimerHandle, Received] = {}
        self._entries: deque[Received] = deque()
        self._counts: dict[int, int] = defaultdict(int)
        self._bytes = 0

    def add(self, received: Received) -> None:
        delivery = received.delivery
        if delivery.how == "reclaimed":
            self._entries.appendleft(received)  # it has waited for a lease already
        else:
            self._entries.append(received)
        self._counts[delivery.partition] += 1
        self._bytes += delivery.size

    def later(self, received: Received, delay_s: float) -> None:
        def again() -> None:
            del self._timers[handle]
            self.add(received)
            self._on_ready()

        handle = asyncio.get_running_loop().call_later(delay_s, again)
        self._timers[handle] = received

    def settled(self, ended: Ended, counts: bool) -> None:
        """Nothing waits for it here; nor for what was dropped."""

    def dropped(self, delivery: Delivery) -> None:
        """See `settled`."""

    def aside(self, delivery: Delivery) -> None:
        """See `settled`."""

    def resumed(self, delivery: Delivery) -> bool:
        return True

    def take(self, wanted: Callable[[Received], bool], but: AbstractSet[int]) -> None:
        if len(self) == sum(self._counts[partition] for partition in but):
            return
        kept: deque[Received] = deque()
        for received in self._entries:
            delivery = received.delivery
            if delivery.partition in but or not wanted(received):
                kept.append(received)
                continue
            self._counts[delivery.partition] -= 1
            self._bytes -= delivery.size
        self._entries = kept

    def weight(self, slow: AbstractSet[int], most: tuple[int, int]) -> tuple[int, int]:
        entries, size = len(self._entries), self._bytes
        if slow:
            sizes = [one.delivery.size for one in self._entries if one.delivery.partition in slow]
            entries -= min(len(sizes), most[0])
            size -= min(sum(sizes), most[1])
        return entries, size

    def drain(self) -> list[Received]:
        """What others hold is theirs."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        entries = list(self._entries)
        self._entries.clear()
        self._counts.clear()
        self._bytes = 0
        return entries

    def __iter__(self) -> Iterator[Received]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
