"""From entries that wait to claimed work in the lanes: the way of every event of one group in one process."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from streamlib.errors import Fenced
from streamlib.event import Event
from streamlib.message import entry_time_ms
from streamlib.redisio.claims import Claimed, Verdict
from streamlib.redisio.delivery import Delivery
from streamlib.redisio.reader import Received
from streamlib.redisio.settler import ack, give_back
from streamlib.worker.claiming import Claiming
from streamlib.worker.decoding import Decoding
from streamlib.worker.inbox import Inbox, Waits
from streamlib.worker.inflight import InFlight, Key
from streamlib.worker.lanes import Lanes
from streamlib.worker.limiter import AHEAD_S, UNLIMITED
from streamlib.worker.parts import Parts
from streamlib.worker.strangers import Strangers
from streamlib.worker.suspects import Steps, Suspects
from streamlib.worker.work import Ended, Work

_CLAIM_BATCH = 500
_AFTER_S = 0.005

Choice = tuple[Received, Lanes | None]
"""An entry on its way, with the lanes that its event needs, if it needs any."""


class Admission:
    """Chooses what may start soon, claims it, and hands it to its lanes or to its end."""

    def __init__(self, parts: Parts, lanes: Sequence[Lanes], inbox: Waits, claiming: Claiming) -> None:
        self._parts = parts
        self._group = parts.group.group
        self._lanes = lanes
        self._inbox = inbox
        self._claiming = claiming
        self._limiter = parts.limiter
        self._circuit = parts.circuit
        self._decoding = Decoding(parts.spec.topic, parts.group, parts.payload_bytes, parts.settings.unknown_ttl_s)
        self._by_class: Mapping[type[Event], Lanes] = {cls: one for one in lanes for cls in one.handler.events}
        self._by_type: dict[tuple[str, int], Lanes] = {}
        self._waiting: set[Key] = set()
        self._laneless: set[Key] = set()
        """Those of them that need no lane."""
        self._comes_once = isinstance(inbox, Inbox)
        """Whether all that waits came through `unknown`: a key's queue gives again what had left it."""
        self.strangers = Strangers(parts, self._decoding, skip=self._skip, keep=self._claim_strangers)
        self.stopping = False
        self.steps = self._steps()
        self.suspects = Suspects(parts, self.steps)

    def unknown(self, received: Sequence[Received]) -> list[Received]:
        """Those that are not here yet; the others are handed to us again (our own reclaim, a restored pending list)
        while we still have them. From now on they wait here."""
        keys = [InFlight.key(one.delivery, self._group) for one in received]
        held, waiting = self._parts.inflight.among(keys), self._waiting
        fresh: list[Received] = []
        for key, one in zip(keys, received, strict=True):
            if key not in waiting and key not in held:
                waiting.add(key)
                fresh.append(one)
                if self.lanes_of(one) is None:
                    self._laneless.add(key)
        return fresh

    def leave(self, received: Iterable[Received]) -> None:
        """They wait no longer: they are in flight, about to be settled, or given up."""
        keys = [InFlight.key(one.delivery, self._group) for one in received]
        self._waiting.difference_update(keys)
        self._laneless.difference_update(keys)

    # -- choosing -------------------------------------------------------------------------------------------------

    def choose(self) -> list[Choice]:
        """What may leave the inbox now: all that needs no lane, and per handler as many as it has room for.

        In a group with a limit only what has a permit, and can start this moment; one by one while its circuit breaker
        is half-open.
        """
        limiter, claiming, started, throttled = self._limiter, self._claiming, 0, 0
        if not limiter.active and not len(self._inbox):
            return []
        permits, most = limiter.available, self._probes_left() if self._circuit.half_open else UNLIMITED
        room = {lanes: (lanes.free if limiter.active else lanes.room) - claiming.taken(lanes) for lanes in self._lanes}
        chosen: list[Choice] = []
        if self._comes_once and not (self._laneless or limiter.active or any(free > 0 for free in room.values())):
            return chosen

        def wanted(received: Received) -> bool:
            nonlocal started, throttled
            lanes = self.lanes_of(received)
            if lanes is not None:
                if room[lanes] <= 0 or started + throttled >= most:
                    return False
                room[lanes] -= 1
                if started >= permits:
                    throttled += 1
                    return False
                started += 1
            chosen.append((received, lanes))
            return True

        self._inbox.take(wanted, claiming.partitions)
        if started and self._circuit.half_open:
            self._circuit.probing()
        if limiter.active:
            limiter.take(started)
            soon = min(len(self._inbox), sum(lanes.startable(AHEAD_S) for lanes in self._lanes), most)
            limiter.want(throttled, soon)
        return chosen

    def _probes_left(self) -> int:
        probes = sum(self._claiming.taken(lanes) for lanes in self._lanes)
        probes += sum(work.probe for lanes in self._lanes for work in lanes.works())
        return self._circuit.probes(probes)

    def lanes_of(self, received: Received) -> Lanes | None:
        message = received.message
        if message is None:
            return None
        found = self._by_type.get((message.type, message.version))
        if found is None:
            cls = self._decoding.class_of(received)
            found = self._by_class.get(cls) if isinstance(cls, type) else None
            if found is not None:  # only what is declared is kept: entries may name types without end
                self._by_type[message.type, message.version] = found
        return found

    # -- claiming -------------------------------------------------------------------------------------------------

    def admit(self, chosen: Sequence[Choice]) -> None:
        """Claim, each partition by itself; about types that nobody handles here, others are asked first."""
        to_claim: dict[int, list[Choice]] = {}
        asking = bool(self.strangers.waiting)
        for received, lanes in chosen:
            if lanes is None and received.message is not None:
                self.strangers.waiting.append(received)
            else:
                to_claim.setdefault(received.delivery.partition, []).append((received, lanes))
        for partition, of_one in to_claim.items():
            taken = Counter([lanes for _, lanes in of_one if lanes is not None])
            self._claiming.start(partition, taken, self._claim_all(of_one))
        if self.strangers.waiting and not asking:
            self._claiming.beside(self.strangers.admit())

    def _skip(self, received: Received) -> None:
        self.leave((received,))
        self._parts.settling.put(Ended(ack(received.delivery), "skipped"))

    def _claim_strangers(self, kept: Sequence[Received]) -> None:
        to_claim: dict[int, list[Choice]] = {}
        for one in kept:
            to_claim.setdefault(one.delivery.partition, []).append((one, None))
        for of_one in to_claim.values():
            self._claiming.beside(self._claim_all(of_one))

    async def _claim_all(self, chosen: list[Choice]) -> None:
        if len(chosen) <= _CLAIM_BATCH:
            await self._claim_chunk(chosen)
            return
        chunks = [chosen[start : start + _CLAIM_BATCH] for start in range(0, len(chosen), _CLAIM_BATCH)]
        await asyncio.gather(*map(self._claim_chunk, chunks))

    async def _claim_chunk(self, chunk: list[Choice]) -> None:
        once = partial(self._parts.claim, [received.delivery for received, _ in chunk])
        try:
            claimed = await self._parts.door.persist(once, give_up_s=None, on_error=self._parts.on_error)
        except Fenced:
            self._fenced(chunk)
            return
        ours: list[Choice] = []
        for choice, answer in zip(chunk, claimed, strict=True):
            if answer.verdict is Verdict.RUN:
                ours.append(choice)
            else:
                self._sort(*choice, answer)
        self._start(ours)

    def _fenced(self, chunk: Sequence[Choice]) -> None:
        """Their partition is another worker's by now: what is left of them here is of no use."""
        self.leave([received for received, _ in chunk])
        for received, lanes in chunk:
            self._limiter.unused(0 if lanes is None else 1)
            self._inbox.dropped(received.delivery)
        delivery = chunk[0][0].delivery
        self._parts.on_fenced(delivery.partition, delivery.epoch)

    def _sort(self, received: Received, lanes: Lanes | None, answer: Claimed) -> None:
        """What follows from the answer to a claim when that is not to run it."""
        delivery = received.delivery
        if lanes is not None:
            self._limiter.unused(1)
        if answer.verdict is Verdict.DUPLICATE:
            self.leave((received,))
            self._parts.settling.put(Ended(ack(delivery), "duplicate"))
        elif answer.verdict is Verdict.BUSY:
            self._inbox.later(received, answer.number / 1000 + _AFTER_S)
        elif answer.verdict is Verdict.SUSPECT:
            self._inbox.aside(delivery)
            self.suspects.put(received, self._lanes[0] if lanes is None else lanes)

    # -- starting -------------------------------------------------------------------------------------------------

    def _start(self, claimed: Sequence[Choice]) -> None:
        """What is ours goes to its lanes; what cannot be read, or is handled elsewhere, to its end."""
        self.leave([received for received, _ in claimed])
        inflight, now_s, waits = self._parts.inflight, time.time(), list[float]()
        half_open = self._circuit.half_open
        for received, lanes in claimed:
            delivery, message = received.delivery, received.message
            if lanes is None or message is None:
                self._hold_to_settle(delivery, self._decoding.unreadable(received, self.strangers.elsewhere))
                continue
            if self._parts.gate.closed:  # while we claimed
                self._hold_to_settle(delivery, Ended(give_back(delivery, claimed=True), "released"))
                self._limiter.unused(1)
                continue
            event = self._decoding.decode(received, lanes.handler.name)
            if isinstance(event, Ended):
                self._hold_to_settle(delivery, event)
                self._limiter.unused(1)
                continue
            inflight.add(delivery, self._group, lanes.lost)
            if delivery.how == "new":
                waits.append(now_s - entry_time_ms(delivery.origin_id) / 1000)
            lanes.put(Work(delivery, message, event, lanes.handler, probe=half_open))
        self._parts.metrics.queue_wait(*waits)

    def _hold_to_settle(self, delivery: Delivery, ended: Ended) -> None:
        """Nothing runs: its settlement will find out if the claim was lost."""
        self._parts.inflight.add(delivery, self._group, _nobody)
        self._parts.settling.put(ended)

    def _steps(self) -> Steps:
        return Steps(
            claim=partial(self._parts.claim, take_suspects=True),
            sort=self._sort,
            leave=lambda received: self.leave((received,)),
            start=lambda received, lanes: self._start([(received, lanes)]),
            settle=self._hold_to_settle,
            lanes_of=self.lanes_of,
            bury=self._decoding.bury,
            aside=self._inbox.aside,
            resumed=self._resumed,
            fenced=lambda received, lanes: self._fenced([(received, lanes)]),
            room=lambda lanes: lanes.room - self._claiming.taken(lanes),
            may_claim=lambda: not (self.stopping or self._limiter.active or self._parts.gate.closed),
        )

    def _resumed(self, received: Received) -> bool:
        if self._inbox.resumed(received.delivery):
            return True
        self.leave((received,))
        return False


def _nobody(delivery: Delivery) -> None:
    """Nobody has to hear of it."""
