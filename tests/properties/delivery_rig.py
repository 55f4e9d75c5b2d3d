"""One topic with two groups on a server: its steps, and everything that the server holds of them as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis

from streamlib.keys import Keys
from streamlib.redisio.again import Again, unpack
from streamlib.redisio.claims import Held as Claimed
from streamlib.redisio.claims import renew
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.delivery import Delivery
from streamlib.redisio.publisher import Publisher
from streamlib.redisio.registry import declare_group, declare_topic
from streamlib.settings import LimitSettings
from tests.helpers.delivering import STREAM, Partition
from tests.helpers.marks import is_member
from tests.helpers.publishing import topic
from tests.properties.delivery_model import Entry, GroupModel, Held
from tests.properties.running import Resending

GROUPS = ("email", "ledger")
LEASE_MS, WINDOW_S = 3_600_000, 36_000
"""Longer than any example runs: leases end when a rule says so."""
TOPIC_LEN = 12


class Rig:
    """Partitions of one stream, one for each group, through a door that can lose replies."""

    def __init__(
        self, door: RedisDoor, client: redis.Redis, groups: Sequence[str], *, dedup: bool, full: bool, compact: bool
    ) -> None:
        self.client: Any = client
        self.door, self.resending = Resending.before(door)
        self.topic = topic(STREAM, dedup_window_s=float(WINDOW_S) if dedup else 0.0)
        self.parts = {group: Partition(self.door, client, group, window_ms=WINDOW_S * 1000) for group in groups}
        for part in self.parts.values():
            part.marks = {} if compact else None
        self.publisher = Publisher(self.door, Keys(), LimitSettings(topic_len=TOPIC_LEN if full else 0))

    async def declare(self) -> None:
        await declare_topic(self.door, Keys(), self.topic)
        for group in self.parts:
            await declare_group(self.door, Keys(), self.topic, group, "handler", ["Made"])

    async def close(self) -> None:
        await self.publisher.close()
        await self.door.close()
        self.client.close()

    def renew(self, group: str, worker: str, deliveries: list[Delivery]) -> list[str]:
        """The refs that were lost."""
        part, client = self.parts[group], self.door.sync_client()
        try:
            lost: list[str] = []
            for again in (True, False):
                held = [Claimed(part.keys, group, again, d.ref, d.event_id) for d in deliveries if d.again is again]
                if held:
                    lost += renew(
                        client, held, consumer=worker, worker_id=worker, lease_ms=LEASE_MS, window_ms=part.window_ms
                    )
            return lost
        finally:
            client.close()

    def make_due(self, group: str, event_id: str) -> None:
        """Let the time of a retry be now."""
        self.client.zadd(self.parts[group].keys.retry(group), {event_id: 1}, xx=True)

    # -- what the server holds ----------------------------------------------------------------------------------------

    def stream(self) -> list[Entry]:
        entries: Any = self.client.xrange(STREAM)
        return [Entry(fields[b"id"].decode(), id=entry_id.decode()) for entry_id, fields in entries]

    def again(self, group: str) -> list[Entry]:
        entries: Any = self.client.xrange(self.parts[group].again)
        return [
            Entry(fields[b"id"].decode(), again=True, attempts=_body(entry_id, fields).attempts, id=entry_id.decode())
            for entry_id, fields in entries
        ]

    def letters(self, group: str) -> list[tuple[str, str, int]]:
        """Id, event and attempts of the dead letters."""
        entries: Any = self.client.xrange(self.parts[group].keys.dead(group))
        return [
            (entry_id.decode(), fields[b"id"].decode(), int(fields[b"dl-attempts"])) for entry_id, fields in entries
        ]

    def found(self, group: str, event_ids: list[str]) -> dict[str, Any]:
        """Everything that the server holds of one group."""
        keys = self.parts[group].keys
        states: Any = self.client.mget([keys.idem(group, event_id) for event_id in event_ids]) if event_ids else []
        named = zip(event_ids, states, strict=True)
        return {
            "states": {event_id: self._state(group, event_id, raw) for event_id, raw in named},
            "pending": {ref: worker for ref, (worker, _) in self.parts[group].pending().items()},
            "again": self.again(group),
            "retries": {event_id.decode() for event_id in self.client.zrange(keys.retry(group), 0, -1)},
            "bodies": {event_id.decode() for event_id in self.client.hkeys(keys.retry_body(group))},
            "letters": self.letters(group),
            "died": {ref.decode(): int(times) for ref, times in self.client.hgetall(keys.suspect(group)).items()},
        }

    def _state(self, group: str, event_id: str, raw: bytes | None) -> str:
        if raw is None:
            compact = self.parts[group].marks is not None
            return "d" if compact and is_member(self.client, STREAM, group, event_id) else ""
        text = raw.decode()
        return f"c {text.partition(':')[2]}" if text.startswith("c") else text


def expected(model: GroupModel, event_ids: list[str]) -> dict[str, Any]:
    """The same, as the model has it."""
    return {
        "states": {event_id: _told(model.state(event_id)) for event_id in event_ids},
        "pending": {ref: worker for ref, (_, worker) in model.pending.items()},
        "again": model.again,
        "retries": set(model.retries),
        "bodies": set(model.retries),
        "letters": [(letter.id, letter.event_id, letter.attempts) for letter in model.letters],
        "died": model.died,
    }


def _told(state: str | Held) -> str:
    return f"c {state.worker}:{state.ref}" if isinstance(state, Held) else state


def _body(entry_id: bytes, fields: dict[bytes, bytes]) -> Again:
    return unpack(entry_id.decode(), [part for pair in fields.items() for part in pair])
