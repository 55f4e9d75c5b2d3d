"""One group of one topic in one process: reads ahead, claims what can start soon, and hands it to the lanes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence

from msgspec import Struct, field

from streamlib.errors import UnknownType
from streamlib.event import Event
from streamlib.message import entry_time_ms
from streamlib.metrics.worker import GroupMetrics
from streamlib.redisio.claims import Claimed, Verdict, claim
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.dead_letter import Failure
from streamlib.redisio.delivery import Delivery
from streamlib.redisio.reader import Received
from streamlib.redisio.settler import ack, give_back
from streamlib.settings import WorkerSettings
from streamlib.topic import TopicSpec
from streamlib.worker.decoding import Decoding
from streamlib.worker.handlers import GroupSpec
from streamlib.worker.inflight import InFlight, Key
from streamlib.worker.lanes import Lanes
from streamlib.worker.pausing import Gate
from streamlib.worker.settling import Settling
from streamlib.worker.work import Ended, Group, Work

logger = logging.getLogger(__name__)
_CLAIM_BATCH = 500
_CANCEL_GRACE_S = 2.0
_SUSPECT_POLL_S = 0.002


class Parts(Struct, frozen=True, kw_only=True):
    """What a consumer is built from."""

    spec: GroupSpec
    group: Group
    door: RedisDoor
    settings: WorkerSettings
    payload_bytes: int
    inflight: InFlight
    settling: Settling
    metrics: GroupMetrics
    on_error: Callable[[str, Exception], None]
    live_types: Callable[[], Awaitable[frozenset[str]]]
    gate: Gate = field(default_factory=Gate)


class Consumer:
    """Admits deliveries: every one of them leaves as exactly one outcome, or stays pending for the reclaimer."""

    def __init__(self, parts: Parts, lanes_for: Callable[..., Lanes]) -> None:
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
        self._inbox: deque[Received] = deque()
        self._inbox_bytes = 0
        self._waiting: set[Key] = set()
        self._suspects: asyncio.Queue[tuple[Received, Lanes, float]] = asyncio.Queue()
        self._busy: dict[asyncio.TimerHandle, Received] = {}
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._elsewhere: frozenset[str] = frozenset()
        self._stopping = False
        self._closed = False
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
        entries = min(self._parts.settings.batch, startable) - len(self._inbox)
        waiting_bytes = self._inbox_bytes + sum(lanes.waiting_bytes for lanes in self._lanes)
        return max(entries, 0), max(self._parts.settings.prefetch_bytes - waiting_bytes, 0)

    @property
    def room_to_reclaim(self) -> int:
        """How many entries may be taken over from others, however full the inbox is of new ones."""
        taken_over = sum(one.delivery.how == "reclaimed" for one in self._inbox)
        return max(self._parts.settings.batch // 5, 1) - taken_over

    async def wait_for_room(self) -> None:
        while not (self._stopping or all(self.room)):
            self._room.clear()
            await self._room.wait()

    def offer(self, received: Sequence[Received]) -> None:
        """Entries that now lie in our pending list."""
        taken: Counter[str] = Counter()
        for one in received:
            key = InFlight.key(one.delivery, self._group.group)
            if key in self._waiting or key in self._parts.inflight:
                continue  # handed to us again (our own reclaim, a restored pending list) while we still have it
            self._waiting.add(key)
            if one.delivery.how == "reclaimed":
                self._inbox.appendleft(one)  # it has waited for a lease already
            else:
                self._inbox.append(one)
            self._inbox_bytes += one.delivery.size
            taken[one.delivery.how] += 1
        for how, number in taken.items():
            self._parts.metrics.received(how, number)
        self._wake_up()

    def _wake_up(self) -> None:
        self._wake.set()

    def _lane_free(self) -> None:
        self._room.set()
        self._wake.set()

    async def run(self) -> None:
        """Admit what comes in, until `stop_admitting`."""
        while not self._stopping:
            self._wake.clear()
            if not await self.run_once():
                await self._wake.wait()

    async def run_once(self) -> int:
        """Admit what there is room for; the number of entries that left the inbox. Raises a lane's bug."""
        for lanes in self._lanes:
            lanes.raise_bug()
        chosen = [] if self._parts.gate.closed else self._choose()
        if chosen:
            self._room.set()
            await self._admit(chosen)
            if self._parts.gate.closed:  # while we claimed
                self._paused_or_resumed()
        self._parts.metrics.inflight(sum(lanes.held for lanes in self._lanes))
        return len(chosen)

    # -- admission ----------------------------------------------------------------------------------------------

    def _choose(self) -> list[tuple[Received, Lanes | None]]:
        """What may leave the inbox now: all that needs no lane, and per handler as many as it has room for."""
        room = {lanes: lanes.room for lanes in self._lanes}
        chosen: list[tuple[Received, Lanes | None]] = []
        kept: deque[Received] = deque()
        for received in self._inbox:
            lanes = self._lanes_of(received)
            if lanes is not None:
                if room[lanes] <= 0:
                    kept.append(received)
                    continue
                room[lanes] -= 1
            chosen.append((received, lanes))
            self._inbox_bytes -= received.delivery.size
        self._inbox = kept
        return chosen

    def _lanes_of(self, received: Received) -> Lanes | None:
        cls = self._decoding.class_of(received)
        return self._by_class.get(cls) if isinstance(cls, type) else None

    async def _admit(self, chosen: list[tuple[Received, Lanes | None]]) -> None:
        to_claim: dict[int, list[tuple[Received, Lanes | None]]] = {}
        if any(lanes is None and received.message is not None for received, lanes in chosen):
            # Asked after these entries were read: whoever handles a type has said so before anybody published it.
            self._elsewhere = await self._parts.live_types() - self._parts.spec.type_names
        for received, lanes in chosen:
            if lanes is None and self._may_skip(received):
                self._leave(received)
                self._parts.settling.put(Ended(ack(received.delivery), "skipped"))
            else:
                to_claim.setdefault(received.delivery.partition, []).append((received, lanes))
        chunks = [
            of_one[start : start + _CLAIM_BATCH]
            for of_one in to_claim.values()
            for start in range(0, len(of_one), _CLAIM_BATCH)
        ]
        await asyncio.gather(*(self._claim_chunk(chunk) for chunk in chunks))

    def _may_skip(self, received: Received) -> bool:
        """A type that this group does not handle, neither here nor in a newer or older worker that is live."""
        if received.message is None:
            return False
        if received.message.type in self._elsewhere:
            return False
        return self._topic.unknown == "skip" or not isinstance(self._decoding.class_of(received), UnknownType)

    async def _claim_chunk(self, chunk: list[tuple[Received, Lanes | None]]) -> None:
        claimed = await self._claim([received.delivery for received, _ in chunk])
        for (received, lanes), answer in zip(chunk, claimed, strict=True):
            self._sort(received, lanes, answer)

    async def _claim(self, deliveries: list[Delivery], *, take_suspects: bool = False) -> list[Claimed]:
        async def once() -> list[Claimed]:
            return await claim(
                self._parts.door,
                deliveries,
                group=self._group.group,
                worker_id=self._group.worker_id,
                lease_ms=self._parts.settings.lease_ms,
                window_ms=self._group.window_ms,
                take_suspects=take_suspects,
            )

        return await self._parts.door.persist(once, give_up_s=None, on_error=self._parts.on_error)

    def _sort(self, received: Received, lanes: Lanes | None, answer: Claimed) -> None:
        """What follows from the answer to a claim."""
        delivery = received.delivery
        if answer.verdict in (Verdict.DUPLICATE, Verdict.RUN):
            self._leave(received)
        if answer.verdict is Verdict.DUPLICATE:
            self._parts.settling.put(Ended(ack(delivery), "duplicate"))
        elif answer.verdict is Verdict.BUSY:
            self._ask_again(received, answer.number)
        elif answer.verdict is Verdict.SUSPECT:
            if lanes is None:
                lanes = self._lanes[0]
            confirm_at = time.monotonic() + self._parts.settings.lease_ms / 3000
            self._suspects.put_nowait((received, lanes, confirm_at))
        else:
            self._start(received, lanes)

    def _start(self, received: Received, lanes: Lanes | None) -> None:
        delivery, message = received.delivery, received.message
        if lanes is None or message is None:
            self._hold(delivery, _ignore)
            self._parts.settling.put(self._decoding.unreadable(received, self._elsewhere))
            return
        event = self._decoding.decode(received, lanes.handler.name)
        if isinstance(event, Ended):
            self._hold(delivery, _ignore)
            self._parts.settling.put(event)
            return
        work = Work(delivery, message, event, lanes.handler)
        self._hold(delivery, lambda: lanes.discard(work))
        if delivery.how == "new":
            self._parts.metrics.queue_wait(time.time() - entry_time_ms(delivery.origin_id) / 1000)
        lanes.put(work)

    def _leave(self, received: Received) -> None:
        """It waits no longer: it is in flight, or about to be settled."""
        self._waiting.discard(InFlight.key(received.delivery, self._group.group))

    def _hold(self, delivery: Delivery, on_lost: Callable[[], None]) -> None:
        self._parts.inflight.add(delivery, self._group.group, on_lost)

    def _ask_again(self, received: Received, left_ms: int) -> None:
        """Another worker holds this very entry: ask when its claim has run out, unless it is renewed or settled."""

        def again() -> None:
            self._busy.pop(handle, None)
            if not self._stopping:
                self._inbox.append(received)
                self._inbox_bytes += received.delivery.size
                self._wake_up()

        handle = asyncio.get_running_loop().call_later(left_ms / 1000 + 0.005, again)
        self._busy[handle] = received

    # -- suspects -------------------------------------------------------------------------------------------------

    async def run_suspects(self, one_at_a_time: asyncio.Lock) -> None:
        """Events whose worker died while it held them: one at a time in this process, beside normal work.

        A claim that has run out is looked at again after a third of the lease, more than a renewal period: while a
        server hangs everybody's leases run out at once, and the living renew theirs when it wakes.
        """
        while True:
            received, lanes, confirm_at = await self._suspects.get()
            await self._parts.gate.wait_open()
            await asyncio.sleep(max(confirm_at - time.monotonic(), 0.0))
            async with one_at_a_time:
                await self.run_suspect(received, lanes)

    async def run_suspect(self, received: Received, lanes: Lanes) -> None:
        answer = (await self._claim([received.delivery], take_suspects=True))[0]
        if answer.verdict is not Verdict.RUN:
            self._sort(received, lanes, answer)
            return
        self._leave(received)
        delivery, handler = received.delivery, lanes.handler
        limit = self._parts.settings.crash_limit
        error: Exception | None = None
        if answer.number >= limit:
            error = RuntimeError(f"{answer.number} workers died while they held this event (crash_limit {limit})")
            self._bury_held(received, Failure.of("crash", error), handler.name)
        elif answer.number and handler.rerun == "never" and self._lanes_of(received) is not None:
            error = RuntimeError("its worker died while it ran, and its handler must not run twice")
            self._bury_held(received, Failure.of("outcome_unknown", error), handler.name)
        else:
            logger.warning("suspect_runs_alone", extra={"event_id": delivery.event_id, "workers_died": answer.number})
            self._start(received, self._lanes_of(received))
        key = InFlight.key(delivery, self._group.group)
        while key in self._parts.inflight:  # noqa: ASYNC110 - rare, and no event tells one claim's end from another's
            await asyncio.sleep(_SUSPECT_POLL_S)

    def _bury_held(self, received: Received, failure: Failure, handler: str) -> None:
        self._hold(received.delivery, _ignore)
        self._parts.settling.put(self._decoding.bury(received, failure, handler))

    # -- pause ----------------------------------------------------------------------------------------------------

    def _paused_or_resumed(self) -> None:
        """What is claimed and did not start goes back, its attempt unspent; what is only read stays here, untouched."""
        if self._parts.gate.closed:
            for lanes in self._lanes:
                self._hand_back(lanes.take_back())
        self._wake_up()

    # -- endings --------------------------------------------------------------------------------------------------

    def _work_ended(self, work: Work, ended: Ended | None) -> None:
        if self._closed:  # it ended after the drain had: nobody settles any more, its claim runs out
            self._parts.inflight.remove(work.delivery, self._group.group)
        elif ended is not None:
            self._parts.settling.put(ended)
        elif work.lost:
            self._parts.inflight.remove(work.delivery, self._group.group)
            self._parts.metrics.lease_lost(1)
        self._wake_up()

    def stop_admitting(self) -> None:
        """Claim and start nothing more; `run` ends after the claim that is under way."""
        self._stopping = True
        self._hand_back_unstarted()
        self._room.set()
        self._wake_up()

    def stop(self) -> None:
        """After `run` has ended: hand back what did not start, its attempt unspent."""
        for handle in self._busy:
            handle.cancel()
        self._busy.clear()
        for received in self._inbox:
            self._parts.settling.put(Ended(give_back(received.delivery, claimed=False), "released"))
        self._inbox.clear()
        self._hand_back_unstarted()

    def _hand_back_unstarted(self) -> None:
        for lanes in self._lanes:
            self._hand_back(lanes.stop())

    def _hand_back(self, unstarted: Sequence[Work]) -> None:
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


def _ignore() -> None:
    """Nothing runs for this claim; its settlement will find out that it was lost."""
