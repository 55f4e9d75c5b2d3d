"""The next event of a key is claimed by the very script that settles the one before it: one round trip, not two."""

from __future__ import annotations

from collections.abc import Sequence

from streamlib.redisio.reader import Received
from streamlib.redisio.settler import give_back
from streamlib.worker.key_inbox import KeyInbox
from streamlib.worker.lanes import Lanes
from streamlib.worker.suspects import Steps
from streamlib.worker.work import Ended


class Successors:
    """Names the events that may be claimed along with endings, and starts those that were.

    None starts before its predecessor's ending is recorded: both are one script. As many as there is room for beside
    all keys that wait for a claim, so that no busy key keeps another waiting.
    """

    def __init__(self, inbox: KeyInbox, steps: Steps) -> None:
        self._inbox = inbox
        self._steps = steps

    def of(self, endings: Sequence[Ended]) -> list[Received | None]:
        """For each ending the next event of its key, if that may be claimed with it."""
        if not self._steps.may_claim():
            return [None] * len(endings)
        waiting = self._inbox.ready
        room: dict[Lanes, int] = {}
        found: list[Received | None] = []
        for ended in endings:
            received = self._inbox.successor(ended.settlement)
            lanes = self._steps.lanes_of(received) if received is not None else None
            if lanes is not None:
                room.setdefault(lanes, self._steps.room(lanes) - waiting)
                room[lanes] -= 1
            found.append(received if lanes is not None and room[lanes] >= 0 else None)
        return found

    def claimed(self, received: Received) -> None:
        """It is ours, and its predecessor has ended: it starts, or goes back where nothing may start any more."""
        delivery, lanes = received.delivery, self._steps.lanes_of(received)
        may_start = self._inbox.follow(delivery)
        self._steps.leave(received)
        if may_start and self._steps.may_claim():
            self._steps.start(received, lanes)
        else:
            self._steps.settle(delivery, Ended(give_back(delivery, claimed=True), "released"))
