"""What one worker has in its hands, and what it says became of it."""

from __future__ import annotations

from streamlib.redisio.delivery import Delivery
from streamlib.redisio.settler import Settlement, ack, bury, done, give_back, retry
from tests.helpers.publishing import made
from tests.helpers.settling import FAILURE
from tests.properties.delivery_model import Held
from tests.properties.delivery_rig import Rig

KINDS = ("done", "done", "emit", "retry", "retry later", "dead", "back")
_LATER_MS = 3_600_000


class Hands:
    """What one process has of one group's entries, and believes of them; it may be wrong."""

    def __init__(self, group: str, n: int, born: int = 0) -> None:
        self.group = group
        self.n = n
        self.name = f"{group}-w{n}-{born}"
        self.read: dict[str, Delivery] = {}
        self.running: dict[str, Delivery] = {}
        self.copies: dict[str, Delivery] = {}
        self.unanswered: list[tuple[list[Settlement], list[bool], dict[str, str | Held]]] = []

    @property
    def all(self) -> dict[str, Delivery]:
        return {**self.running, **self.read, **self.copies}

    @property
    def known(self) -> set[str]:
        """The refs of what is not taken in once more: also of what is settled and has no answer yet."""
        return {*self.all, *(one.delivery.ref for settlements, _, _ in self.unanswered for one in settlements)}

    def forget(self, ref: str) -> None:
        for kept in (self.read, self.running, self.copies):
            kept.pop(ref, None)

    def outcome(self, rig: Rig, delivery: Delivery, kind: str) -> tuple[Settlement, str]:
        """The settlement, and the kind that the model knows: copies are acknowledged, what never ran is handed back."""
        if delivery.ref in self.copies:
            return ack(delivery), "ack"
        if delivery.ref in self.read:
            return give_back(delivery, claimed=False), "return"
        if kind == "emit":
            emitted = made(0, rig.topic, event_id=f"{delivery.event_id}>{self.group}")
            return done(delivery, [rig.publisher.encode(rig.topic, emitted)]), "done"
        if kind == "dead":
            attempts = delivery.attempts + 1
            return bury(delivery, FAILURE, attempts=attempts, group=self.group, consumer=self.name, now_ms=1), "dead"
        if kind == "back":
            return give_back(delivery, claimed=True), "back"
        if kind == "done":
            return done(delivery), "done"
        delay_ms = _LATER_MS if kind == "retry later" else 0
        return retry(delivery, delay_ms=delay_ms, attempts=delivery.attempts + 1), "retry"
