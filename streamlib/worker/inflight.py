"""What this process has claimed and not settled: written by the event loop, read by the renewal thread."""

from __future__ import annotations

import threading
from collections.abc import Callable

from streamlib.redisio.claims import Held
from streamlib.redisio.delivery import Delivery

Key = tuple[str, str, str]
"""Stream of the partition, group, entry ref."""


class InFlight:
    """Claims held by this process, each with what to do when it turns out lost."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[Key, tuple[Held, Callable[[], None]]] = {}

    @staticmethod
    def key(delivery: Delivery, group: str) -> Key:
        return (delivery.keys.stream, group, delivery.ref)

    def add(self, delivery: Delivery, group: str, on_lost: Callable[[], None]) -> None:
        held = Held(delivery.keys, group, delivery.again, delivery.ref, delivery.event_id)
        with self._lock:
            self._held[self.key(delivery, group)] = (held, on_lost)

    def remove(self, delivery: Delivery, group: str) -> None:
        with self._lock:
            self._held.pop(self.key(delivery, group), None)

    def __contains__(self, key: Key) -> bool:
        with self._lock:
            return key in self._held

    def __len__(self) -> int:
        with self._lock:
            return len(self._held)

    def by_stream(self) -> dict[tuple[str, str, bool], list[Held]]:
        """A copy of the claims, grouped by partition stream, group and which of its two streams."""
        groups: dict[tuple[str, str, bool], list[Held]] = {}
        with self._lock:
            for held, _ in self._held.values():
                groups.setdefault((held.keys.stream, held.group, held.again), []).append(held)
        return groups

    def lost(self, held: Held) -> Callable[[], None] | None:
        """What to do about a lost claim; None if it was settled meanwhile."""
        with self._lock:
            found = self._held.get((held.keys.stream, held.group, held.ref))
        return found[1] if found else None

    def forget(self, held: Held) -> None:
        """Nobody is left to hear of this claim."""
        with self._lock:
            self._held.pop((held.keys.stream, held.group, held.ref), None)
