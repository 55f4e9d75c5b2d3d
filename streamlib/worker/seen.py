"""Which events of a partition were settled lately, by the stream's own time: how a rebuild knows copies in old history.

Idempotency keys live for a window of real time. Folding a year in minutes would keep a year of them, and would take
copies that came a month apart for copies within the window. So a rebuild remembers, in memory, the ids of one window
of the stream, and writes idempotency keys only for events that are young enough to have one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Set
from functools import partial

from streamlib.codec import Codec
from streamlib.message import entry_order, entry_time_ms
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.large_entries import Room
from streamlib.redisio.view_state import read_entries

_PAGE = 1_000


class Seen:
    """Event id -> when it was added to the stream, ms; those of one window."""

    def __init__(self, window_ms: int) -> None:
        self.window_ms = window_ms
        self._at_ms: dict[str, int] = {}

    def at_ms(self, event_id: str) -> int | None:
        """When this event was settled, None if it was not, or long ago."""
        return self._at_ms.get(event_id)

    def has_any(self, event_ids: Set[str]) -> bool:
        """Whether some of these were settled within the window, or a little longer ago."""
        return not self._at_ms.keys().isdisjoint(event_ids)

    def add(self, settled: Mapping[str, int]) -> None:
        """Remember events that were settled, in the order of the stream; forget those older than a window."""
        for event_id, at_ms in settled.items():
            self._at_ms.pop(event_id, None)
            self._at_ms[event_id] = at_ms
        oldest_ms = max(settled.values(), default=0) - self.window_ms
        for event_id in [*self._older_than(oldest_ms)]:
            del self._at_ms[event_id]

    def forget(self) -> None:
        """Nothing was settled, as far as is known."""
        self._at_ms.clear()

    def is_young(self, at_ms: int) -> bool:
        """Whether an event of that time may still meet copies after the rebuild."""
        return at_ms > time.time() * 1000 - self.window_ms

    def _older_than(self, oldest_ms: int) -> list[str]:
        old = []
        for event_id, at_ms in self._at_ms.items():
            if at_ms >= oldest_ms:
                break
            old.append(event_id)
        return old


async def seen_before(redis: RedisDoor, codec: Codec, stream: str, checkpoint: str, window_ms: int) -> Seen:
    """What a rebuild that goes on behind `checkpoint` has to know. Raises what the client raises."""
    seen = Seen(window_ms)
    if not entry_time_ms(checkpoint):
        return seen  # before the first entry of the stream
    after, room = f"{max(entry_time_ms(checkpoint) - window_ms, 0)}-0", Room()
    while True:
        reading = partial(read_entries, redis, stream, after, _PAGE, None, room)
        read = await redis.persist(reading, give_up_s=None)
        entries = [one for one in read if entry_order(one[0]) <= entry_order(checkpoint)]
        found: dict[str, int] = {}
        for entry_id, fields in entries:
            try:
                event_id = codec.read(entry_id, fields).id
            except Exception:  # noqa: BLE001, S112 - codecs may be foreign; what cannot be read changed nothing
                continue
            at_ms = entry_time_ms(entry_id)
            before = found.get(event_id, seen.at_ms(event_id))
            if before is None or at_ms - before >= window_ms:  # a copy within the window changed nothing
                found[event_id] = at_ms
        seen.add(found)
        if not read or len(entries) < len(read):
            return seen
        after = read[-1][0]
