"""One group of one topic in one process: reads ahead, claims what can start soon, and hands it to the lanes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence

from streamlib.redisio.reader import Received
from streamlib.redisio.settler import give_back
from streamlib.worker.admission import Admission
from streamlib.worker.claiming import Claiming
from streamlib.worker.inbox import Inbox, Waits
from streamlib.worker.key_inbox import KeyInbox
from streamlib.worker.lanes import Lanes
from streamlib.worker.parts import Parts
from streamlib.worker.successors import Successors
from streamlib.worker.work import Ended, Work

_CANCEL_GRACE_S = 2.0


class Consumer:
    """Admits deliveries: every one of them leaves as exactly one outcome, or stays pending for the reclaimer."""

    def __init__(self, parts: Parts, lanes_for: Callable[..., Lanes], inbox: Waits | None = None) -> None:
        self._parts = parts
        self._group = parts.group
        self._lanes: list[Lanes] = [
            lanes_for(handler, on_end=self._work_ended, on_room=self._lane_free) for handler in parts.spec.handlers
        ]
        self._inbox: Waits = inbox if inbox is not None else Inbox(self.wake_up)
        self._claiming = Claiming(self._lane_free)
        self._admission = Admission(parts, self._lanes, self._inbox, self._claiming)
        self.suspects = self._admission.suspects
        if isinstance(self._inbox, KeyInbox):
            parts.settling.successors = Successors(self._inbox, self._admission.steps)
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._stopping = False
        self._closed = False
        self._limiter = parts.limiter
        self._limiter.on_more = parts.circuit.on_probe = self.wake_up
        parts.gate.on_change(self._paused_or_resumed)

    @property
    def stopping(self) -> bool:
        return self._stopping

    # -- intake -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        for lanes in self._lanes:
            lanes.start()

    @property
    def room(self) -> tuple[int, int]:
        """How many more entries, and bytes, may be read ahead: what can start before others would look for it.

        The bytes are those of events that wait, here or claimed; what runs does not count.
        """
        third_s = self._parts.settings.lease_ms / 3000
        startable = sum(lanes.limit + lanes.startable(third_s) for lanes in self._lanes)
        if self._limiter.active:
            startable = self._limiter.ahead(startable, sum(lanes.limit for lanes in self._lanes), third_s)
        most = min(self._parts.settings.batch, startable), self._parts.settings.prefetch_bytes
        entries, waiting_bytes = self._inbox.weight(self._claiming.slow, most)
        more = most[0] - entries - len(self._admission.strangers.waiting)
        if more <= 0:  # as it is most of the time under a backlog: then nobody asks for the bytes
            return 0, 0
        waiting_bytes += sum(lanes.waiting_bytes for lanes in self._lanes)
        return more, max(most[1] - waiting_bytes, 0)

    def room_for(self, partitions: Collection[int]) -> tuple[int, int]:
        """The room, if more may be read of these: not if all of them are slow to answer claims, for what is read of one
        that is would only pile up. Both numbers are 0, or neither."""
        room = self.room
        return room if all(room) and not self._claiming.slow.issuperset(partitions) else (0, 0)

    @property
    def room_to_reclaim(self) -> int:
        """How many entries may be taken over from others, however full the inbox is of new ones."""
        slow = self._claiming.slow
        taken_over = sum(one.delivery.how == "reclaimed" and one.delivery.partition not in slow for one in self._inbox)
        return max(self._parts.settings.batch // 5, 1) - taken_over

    async def wait_to_read(self, partitions: Collection[int]) -> tuple[int, int]:
        """The room, once there is some; none at the end."""
        while not (self._stopping or any(room := self.room_for(partitions))):
            self._room.clear()
            await self._room.wait()
        return (0, 0) if self._stopping else room

    def offer(self, received: Sequence[Received]) -> None:
        """Entries that now lie in our pending list."""
        fresh = self._admission.unknown(received)
        for one in fresh:
            self._inbox.add(one)
        hows = [one.delivery.how for one in fresh]
        for how in set(hows):
            self._parts.metrics.received(how, hows.count(how))
        self._parts.metrics.sizes([one.delivery.size for one in fresh if one.delivery.how == "new"])
        if not self._stopping:
            self._admit()  # at once: the claim goes before the next read

    def wake_up(self) -> None:
        """Something may be admitted now."""
        self._wake.set()

    def _lane_free(self) -> None:
        self._room.set()
        self._wake.set()

    async def run(self) -> None:
        """Admit what comes in, until `stop_admitting`; then let the claims under way end."""
        try:
            while not self._stopping:
                self._wake.clear()
                if not self.run_once():
                    await self._wake.wait()
        finally:
            await self._claiming.finish()

    def run_once(self) -> int:
        """Start to admit what there is room for; the number of entries that left the inbox. Raises a lane's bug."""
        self._claiming.raise_bug()
        for lanes in self._lanes:
            lanes.raise_bug()
        return self._admit()

    def _admit(self) -> int:
        chosen = [] if self._parts.gate.closed else self._admission.choose()
        if chosen:
            self._room.set()
            self._admission.admit(chosen)
        self._parts.metrics.inflight(sum(lanes.held for lanes in self._lanes))
        return len(chosen)

    # -- pause ----------------------------------------------------------------------------------------------------

    def _paused_or_resumed(self) -> None:
        """What is claimed and did not start goes back, its attempt unspent; what is only read stays here, untouched."""
        if self._parts.gate.closed:
            self._limiter.want(0)
            for lanes in self._lanes:
                self._hand_back(lanes.take_back())
        self.wake_up()

    # -- partitions that come and go ------------------------------------------------------------------------------

    def give_up(self, partition: int, *, lost: bool) -> None:
        """Start nothing more of a partition: hand back what did not start. One that was `lost` is another worker's:
        cancel what runs too; nothing of it would count."""
        for lanes in self._lanes:
            if not lost:
                self._hand_back(lanes.take_back(partition))
            for work in lanes.works() if lost else ():
                if work.delivery.partition == partition:
                    lanes.discard(work)

    def forget(self, received: Sequence[Received]) -> None:
        """These wait here no longer, for their partition is given up."""
        self._admission.leave(received)

    # -- endings --------------------------------------------------------------------------------------------------

    def _work_ended(self, work: Work, ended: Ended | None) -> None:
        self._limiter.ended(1)
        if self._closed:  # it ended after the drain had: nobody settles any more, its claim runs out
            self._parts.inflight.remove((work.delivery,), self._group.group)
        elif ended is not None:
            self._parts.settling.put(ended)
        elif work.lost:
            self._parts.inflight.remove((work.delivery,), self._group.group)
            self._parts.metrics.lease_lost(1)
            self._inbox.dropped(work.delivery)
        self.wake_up()

    def stop_admitting(self) -> None:
        """Claim and start nothing more; `run` ends after the claim that is under way."""
        self._stopping = self._admission.stopping = True
        self._limiter.want(0)
        self._hand_back_unstarted()
        self._room.set()
        self.wake_up()

    def stop(self) -> None:
        """After `run` has ended: hand back what did not start, its attempt unspent."""
        for received in [*self._inbox.drain(), *self._admission.strangers.waiting]:
            if not received.delivery.epoch:  # what an owner did not start stays pending for the next one
                self._parts.settling.put(Ended(give_back(received.delivery, claimed=False), "released"))
        self._admission.strangers.waiting.clear()
        self._hand_back_unstarted()

    def _hand_back_unstarted(self) -> None:
        for lanes in self._lanes:
            self._hand_back(lanes.stop())

    def _hand_back(self, unstarted: Sequence[Work]) -> None:
        self._limiter.unused(len(unstarted))
        for work in unstarted:
            self._parts.settling.put(Ended(give_back(work.delivery, claimed=True), "released"))

    def cancel_handlers(self) -> None:
        for lanes in self._lanes:
            lanes.cancel()

    async def finish(self, timeout_s: float) -> bool:
        """After `stop`: let running handlers end; those that take too long are cancelled, and the answer is False."""
        waits = [lanes.wait(timeout_s) for lanes in self._lanes]
        if all(await asyncio.gather(*waits)):
            return True
        self.cancel_handlers()
        await asyncio.gather(*(lanes.wait(_CANCEL_GRACE_S) for lanes in self._lanes))
        return False

    def close(self) -> None:
        """After the last outcome was settled."""
        self._closed = True
