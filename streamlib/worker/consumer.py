"""One group of one topic in one process: reads ahead, claims what can start soon, and hands it to the lanes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

from streamlib.errors import Fenced
from streamlib.event import Event
from streamlib.message import entry_time_ms
from streamlib.redisio.claims import Claimed, Verdict
from streamlib.redisio.delivery import Delivery
from streamlib.redisio.reader import Received
from streamlib.redisio.settler import ack, give_back
from streamlib.topic import TopicSpec
from streamlib.worker.claiming import Claiming
from streamlib.worker.decoding import Decoding
from streamlib.worker.inbox import Inbox, Waits
from streamlib.worker.inflight import InFlight, Key, OnLost
from streamlib.worker.key_inbox import KeyInbox
from streamlib.worker.lanes import Lanes
from streamlib.worker.limiter import AHEAD_S
from streamlib.worker.parts import Parts
from streamlib.worker.strangers import Strangers
from streamlib.worker.successors import Successors
from streamlib.worker.suspects import Steps, Suspects
from streamlib.worker.work import Ended, Work

logger = logging.getLogger(__name__)
_CLAIM_BATCH = 500
_CANCEL_GRACE_S = 2.0
_AFTER_S = 0.005

Choice = tuple[Received, Lanes | None]
"""An entry on its way, with the lanes that its event needs, if it needs any."""


class Consumer:
    """Admits deliveries: every one of them leaves as exactly one outcome, or stays pending for the reclaimer."""

    def __init__(self, parts: Parts, lanes_for: Callable[..., Lanes], inbox: Waits | None = None) -> None:
        self._parts = parts
        self._topic: TopicSpec = parts.spec.topic
        self._group = parts.group
        self._decoding = Decoding(self._topic, parts.group, parts.payload_bytes, parts.settings.unknown_ttl_s)
        self._lanes: list[Lanes] = [
            lanes_for(handler, on_end=self._work_ended, on_room=self._lane_free) for handler in parts.spec.handlers
        ]
        self._by_class: Mapping[type[Event], Lanes] = {
            cls: lanes for lanes in self._lanes for cls in lanes.handler.events
        }
        self._by_type: dict[tuple[str, int], Lanes] = {}
        self._inbox: Waits = inbox if inbox is not None else Inbox(self.wake_up)
        self._claiming = Claiming(self._claim_ended)
        self._strangers = Strangers(parts, self._decoding, skip=self._skip, keep=self._claim_strangers)
        self._waiting: set[Key] = set()
        self._waits: list[float] = []
        self.suspects = Suspects(parts, self._steps())
        if isinstance(self._inbox, KeyInbox):
            parts.settling.successors = Successors(self._inbox, self._steps())
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._stopping = False
        self._closed = False
        self._limiter = parts.limiter
        self._limiter.on_more = self.wake_up
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
        waiting_bytes += sum(lanes.waiting_bytes for lanes in self._lanes)
        return max(most[0] - entries - len(self._strangers.waiting), 0), max(most[1] - waiting_bytes, 0)

    def may_read(self, partitions: Collection[int]) -> bool:
        """Whether more may be read of these: there is room, and not all of them are slow to answer claims, for what is
        read of one that is would only pile up."""
        return all(self.room) and not self._claiming.slow.issuperset(partitions)

    @property
    def room_to_reclaim(self) -> int:
        """How many entries may be taken over from others, however full the inbox is of new ones."""
        slow = self._claiming.slow
        taken_over = sum(one.delivery.how == "reclaimed" and one.delivery.partition not in slow for one in self._inbox)
        return max(self._parts.settings.batch // 5, 1) - taken_over

    async def wait_to_read(self, partitions: Collection[int]) -> None:
        while not (self._stopping or self.may_read(partitions)):
            self._room.clear()
            await self._room.wait()

    def offer(self, received: Sequence[Received]) -> None:
        """Entries that now lie in our pending list."""
        taken: Counter[str] = Counter()
        sizes: list[int] = []
        for one in received:
            key = InFlight.key(one.delivery, self._group.group)
            if key in self._waiting or key in self._parts.inflight:
                continue  # handed to us again (our own reclaim, a restored pending list) while we still have it
            self._waiting.add(key)
            self._inbox.add(one)
            taken[one.delivery.how] += 1
            if one.delivery.how == "new":
                sizes.append(one.delivery.size)
        for how, number in taken.items():
            self._parts.metrics.received(how, number)
        self._parts.metrics.sizes(sizes)
        self.wake_up()

    def wake_up(self) -> None:
        """Something may be admitted now."""
        self._wake.set()

    def _claim_ended(self) -> None:
        if self._parts.gate.closed:  # while we claimed
            self._paused_or_resumed()
        self._lane_free()

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
        chosen = [] if self._parts.gate.closed else self._choose()
        if chosen:
            self._room.set()
            self._admit(chosen)
        self._observe()
        return len(chosen)

    def _observe(self) -> None:
        self._parts.metrics.inflight(sum(lanes.held for lanes in self._lanes))
        self._parts.metrics.queue_wait(*self._waits)
        self._waits.clear()

    # -- admission ----------------------------------------------------------------------------------------------

    def _choose(self) -> list[Choice]:
        """What may leave the inbox now: all that needs no lane, and per handler as many as it has room for.

        In a group with a limit only what has a permit, and can start this moment.
        """
        limiter, claiming, started, throttled = self._limiter, self._claiming, 0, 0
        permits = limiter.available
        room = {lanes: (lanes.free if limiter.active else lanes.room) - claiming.taken(lanes) for lanes in self._lanes}
        chosen: list[Choice] = []

        def wanted(received: Received) -> bool:
            nonlocal started, throttled
            lanes = self._lanes_of(received)
            if lanes is not None:
                if room[lanes] <= 0:
                    return False
                room[lanes] -= 1
                if started >= permits:
                    throttled += 1
                    return False
                started += 1
            chosen.append((received, lanes))
            return True

        self._inbox.take(wanted, claiming.partitions)
        if limiter.active:
            limiter.take(started)
            limiter.want(throttled, min(len(self._inbox), sum(lanes.startable(AHEAD_S) for lanes in self._lanes)))
        return chosen

    def _lanes_of(self, received: Received) -> Lanes | None:
        message = received.message
        if message is None:
            return None
        found = self._by_type.get((message.type, message.version))
        if found is None:
            cls = self._decoding.class_of(received)
            found = self._by_class.get(cls) if isinstance(cls, type) else None
            if found is not None:  # only what is declared: others may name types without end
                self._by_type[message.type, message.version] = found
        return found

    def _admit(self, chosen: list[Choice]) -> None:
        """Claim, each partition by itself; about types that nobody handles here, others are asked first."""
        to_claim: dict[int, list[Choice]] = {}
        asking = bool(self._strangers.waiting)
        for received, lanes in chosen:
            if lanes is None and received.message is not None:
                self._strangers.waiting.append(received)
            else:
                to_claim.setdefault(received.delivery.partition, []).append((received, lanes))
        for partition, of_one in to_claim.items():
            taken = Counter(lanes for _, lanes in of_one if lanes is not None)
            self._claiming.start(partition, taken, self._claim_all(of_one))
        if self._strangers.waiting and not asking:
            self._claiming.beside(self._strangers.admit())

    def _skip(self, received: Received) -> None:
        self._leave(received)
        self._parts.settling.put(Ended(ack(received.delivery), "skipped"))

    def _claim_strangers(self, kept: Sequence[Received]) -> None:
        to_claim: dict[int, list[Choice]] = {}
        for one in kept:
            to_claim.setdefault(one.delivery.partition, []).append((one, None))
        for of_one in to_claim.values():
            self._claiming.beside(self._claim_all(of_one))
        self._room.set()

    async def _claim_all(self, chosen: list[Choice]) -> None:
        chunks = [chosen[start : start + _CLAIM_BATCH] for start in range(0, len(chosen), _CLAIM_BATCH)]
        await asyncio.gather(*map(self._claim_chunk, chunks))

    async def _claim_chunk(self, chunk: list[Choice]) -> None:
        once = partial(self._parts.claim, [received.delivery for received, _ in chunk])
        try:
            claimed = await self._parts.door.persist(once, give_up_s=None, on_error=self._parts.on_error)
        except Fenced:
            self._fenced(chunk)
            return
        for (received, lanes), answer in zip(chunk, claimed, strict=True):
            self._sort(received, lanes, answer)

    def _fenced(self, chunk: Sequence[Choice]) -> None:
        """Their partition is another worker's by now: what is left of them here is of no use."""
        for received, lanes in chunk:
            self._limiter.unused(0 if lanes is None else 1)
            self._leave(received)
            self._inbox.dropped(received.delivery)
        delivery = chunk[0][0].delivery
        self._parts.on_fenced(delivery.partition, delivery.epoch)

    def _sort(self, received: Received, lanes: Lanes | None, answer: Claimed) -> None:
        """What follows from the answer to a claim."""
        delivery = received.delivery
        if lanes is not None and answer.verdict is not Verdict.RUN:
            self._limiter.unused(1)
        if answer.verdict in (Verdict.DUPLICATE, Verdict.RUN):
            self._leave(received)
        if answer.verdict is Verdict.DUPLICATE:
            self._parts.settling.put(Ended(ack(delivery), "duplicate"))
        elif answer.verdict is Verdict.BUSY:
            self._inbox.later(received, answer.number / 1000 + _AFTER_S)
        elif answer.verdict is Verdict.SUSPECT:
            self._inbox.aside(delivery)
            self.suspects.put(received, self._lanes[0] if lanes is None else lanes)
        else:
            self._start(received, lanes)

    def _start(self, received: Received, lanes: Lanes | None) -> None:
        delivery, message = received.delivery, received.message
        if lanes is None or message is None:
            self._hold_to_settle(delivery, self._decoding.unreadable(received, self._strangers.elsewhere))
            return
        event = self._decoding.decode(received, lanes.handler.name)
        if isinstance(event, Ended):
            self._hold_to_settle(delivery, event)
            self._limiter.unused(1)
            return
        work = Work(delivery, message, event, lanes.handler)
        self._hold(delivery, lanes.lost)
        if delivery.how == "new":
            self._waits.append(time.time() - entry_time_ms(delivery.origin_id) / 1000)
        lanes.put(work)

    def _steps(self) -> Steps:
        return Steps(
            claim=partial(self._parts.claim, take_suspects=True),
            sort=self._sort,
            leave=self._leave,
            start=self._start,
            settle=self._hold_to_settle,
            lanes_of=self._lanes_of,
            bury=self._decoding.bury,
            aside=self._inbox.aside,
            resumed=self._resumed,
            fenced=lambda received, lanes: self._fenced([(received, lanes)]),
            room=lambda lanes: lanes.room - self._claiming.taken(lanes),
            may_claim=lambda: not (self._stopping or self._limiter.active or self._parts.gate.closed),
        )

    def _resumed(self, received: Received) -> bool:
        if self._inbox.resumed(received.delivery):
            return True
        self._leave(received)
        return False

    def _hold_to_settle(self, delivery: Delivery, ended: Ended) -> None:
        self._hold(delivery, _nobody)  # nothing runs: its settlement will find out that the claim was lost
        self._parts.settling.put(ended)

    def _leave(self, received: Received) -> None:
        """It waits no longer: it is in flight, or about to be settled."""
        self._waiting.discard(InFlight.key(received.delivery, self._group.group))

    def _hold(self, delivery: Delivery, on_lost: OnLost) -> None:
        self._parts.inflight.add(delivery, self._group.group, on_lost)

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
        for one in received:
            self._leave(one)

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
        self._stopping = True
        self._limiter.want(0)
        self._hand_back_unstarted()
        self._room.set()
        self.wake_up()

    def stop(self) -> None:
        """After `run` has ended: hand back what did not start, its attempt unspent."""
        for received in [*self._inbox.drain(), *self._strangers.waiting]:
            if not received.delivery.epoch:  # what an owner did not start stays pending for the next one
                self._parts.settling.put(Ended(give_back(received.delivery, claimed=False), "released"))
        self._strangers.waiting.clear()
        self._hand_back_unstarted()
        self._observe()

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


def _nobody(delivery: Delivery) -> None:
    """Nobody has to hear of it."""
