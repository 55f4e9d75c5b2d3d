"""What this process has claimed and not settled: written by the event loop, read by the renewal thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from streamlib.redisio.claims import Held
from streamlib.redisio.delivery import Delivery

Key = tuple[str, str, str]
"""Stream of the partition, group, entry ref."""

OnLost = Callable[[Delivery], None]


class InFlight:
    """Claims held by this process, each with what to do when it turns out lost."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[Key, tuple[Delivery, OnLost]] = {}

    @staticmethod
    def key(delivery: Delivery, group: str) -> Key:
        return (delivery.keys.stream, group, delivery.ref)

    def add(self, delivery: Delivery, group: str, on_lost: OnLost) -> None:
        with self._lock:
            self._held[delivery.keys.stream, group, delivery.ref] = (delivery, on_lost)

    def remove(self, deliveries: Iterable[Delivery], group: str) -> None:
        held = self._held
        with self._lock:
            for one in deliveries:
                held.pop((one.keys.stream, group, one.ref), None)

    def among(self, keys: Iterable[Key]) -> set[Key]:
        """Those of the keys that are held here."""
        with self._lock:
            return {key for key in keys if key in self._held}

    def __contains__(self, key: Key) -> bool:
        with self._lock:
            return key in self._held

    def __len__(self) -> int:
        with self._lock:
            return len(self._held)

    def by_stream(self) -> dict[tuple[str, str, bool], list[Held]]:
        """The claims, grouped by partition stream, group and which of its two streams."""
        with self._lock:
            claims = [(group, delivery) for (_, group, _), (delivery, _) in self._held.items()]
        groups: dict[tuple[str, str, bool], list[Held]] = {}
        for group, one in claims:
            held = Held(one.keys, group, one.again, one.ref, one.event_id)
            groups.setdefault((one.keys.stream, group, one.again), []).append(held)
        return groups

    def lost(self, held: Held) -> Callable[[], None] | None:
        """What to do about a lost claim; None if it was settled meanwhile."""
        with self._lock:
            found = self._held.get((held.keys.stream, held.group, held.ref))
        if found is None:
            return None
        delivery, on_lost = found
        return lambda: on_lost(delivery)

    def forget(self, held: Held) -> None:
        """Nobody is left to hear of this claim."""
        with self._lock:
            self._held.pop((held.keys.stream, held.group, held.ref), None)
