"""Entries that were read and not yet admitted, counted by partition."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet

from streamlib.redisio.reader import Received


class Inbox:
    """In the order in which they came, those that others left behind first."""

    def __init__(self) -> None:
        self._entries: deque[Received] = deque()
        self._counts: Counter[int] = Counter()
        self._bytes: Counter[int] = Counter()

    def add(self, received: Received) -> None:
        if received.delivery.how == "reclaimed":
            self._entries.appendleft(received)  # it has waited for a lease already
        else:
            self._entries.append(received)
        self._counts[received.delivery.partition] += 1
        self._bytes[received.delivery.partition] += received.delivery.size

    def take(self, wanted: Callable[[Received], bool], but: AbstractSet[int]) -> None:
        """Drop every entry that `wanted` takes; those of the partitions `but` are not asked about."""
        if len(self) == sum(self._counts[partition] for partition in but):
            return
        kept: deque[Received] = deque()
        for received in self._entries:
            partition = received.delivery.partition
            if partition in but or not wanted(received):
                kept.append(received)
                continue
            self._counts[partition] -= 1
            self._bytes[partition] -= received.delivery.size
        self._entries = kept

    def weight(self, slow: AbstractSet[int], most: tuple[int, int]) -> tuple[int, int]:
        """Entries and bytes that wait. Those of slow partitions do not count, up to `most` of them: they must not keep
        the others from being read, and must not pile up either."""
        entries, size = len(self._entries), self._bytes.total()
        if slow:
            entries -= min(sum(self._counts[partition] for partition in slow), most[0])
            size -= min(sum(self._bytes[partition] for partition in slow), most[1])
        return entries, size

    def drain(self) -> list[Received]:
        """Everything, at the end."""
        entries = list(self._entries)
        for counted in (self._entries, self._counts, self._bytes):
            counted.clear()
        return entries

    def __iter__(self) -> Iterator[Received]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
