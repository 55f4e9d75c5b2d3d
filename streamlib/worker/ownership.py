"""Which partitions are this process's: it beats, computes its share, takes, renews and gives up. The epoch decides."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from functools import lru_cache

from streamlib.errors import RedisError
from streamlib.keys import Keys
from streamlib.metrics.worker import WorkerMetrics
from streamlib.redisio import members
from streamlib.redisio.connection import RedisDoor, SyncClient
from streamlib.redisio.failures import CLIENT_ERRORS
from streamlib.redisio.members import Member
from streamlib.settings import WorkerSettings
from streamlib.topic import TopicSpec
from streamlib.worker.assignment import assign
from streamlib.worker.partition_lease import PartitionLease
from streamlib.worker.renewer import Renewal

logger = logging.getLogger(__name__)

MAX_PERIOD_S = 5.0
LOOK_S = 0.25
_LEAVE_S = 1.0


class Ownership:
    """This process among the workers that live. One per process; made inside its event loop.

    Membership only advises: a stale view of who lives makes workers wait or hand over for nothing, but what a worker
    writes is checked against the owner and its epoch. `run_once` is the loop; it beats every quarter of the lease (at
    most 5 s) and asks four times a second whether others came, went or told something new. The renewal thread calls
    `renewals`.
    """

    def __init__(
        self, door: RedisDoor, keys: Keys, settings: WorkerSettings, *, worker_id: str, metrics: WorkerMetrics
    ) -> None:
        self.worker_id = worker_id
        self.period_s = min(settings.lease_ms / 4000, MAX_PERIOD_S)
        self.live_ms = settings.lease_ms * 3 // 4
        """Whoever was silent for so long is gone; noticed a period later, still within the lease."""
        self._door = door
        self._keys = keys
        self._lease_ms = settings.lease_ms
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._started_ms = int(time.time() * 1000)
        self._shares: dict[str, Shares] = {}
        self._others: set[str] = set()
        self._draining = self._left = False
        self._wake = asyncio.Event()
        self._wake.set()
        self._known: dict[str, Member] = {}
        self._changes = 0
        self._beat_at = 0.0

    def appear(self, topic: str, group: str) -> None:
        """Tell that this process also works for a group whose partitions nobody owns."""
        self._others.add(f"{topic}:{group}")

    def shares(self, topic: TopicSpec, group: str, kind: str) -> Shares:
        """The partitions of one ordered group or projection (`kind`), as far as they are this process's."""
        name = f"{topic.name}:{group}"
        if name not in self._shares:
            leases = [
                PartitionLease(
                    self._door,
                    self._keys.stream(topic.name, number, topic.partitions).owner(group),
                    worker_id=self.worker_id,
                    lease_ms=self._lease_ms,
                    loop=self._loop,
                    metrics=self._metrics.group(topic.name, group),
                    log_fields={"topic": topic.name, "group": group, "kind": kind, "partition": number},
                )
                for number in range(topic.partitions)
            ]
            self._shares[name] = Shares(name, leases, self.worker_id, self._tell)
            self._tell()
        return self._shares[name]

    def forget(self, topic: str, group: str) -> None:
        """This process works for the group no longer, and has released all of it."""
        if self._shares.pop(f"{topic}:{group}", None) is not None:
            self._tell()

    async def run_once(self) -> float:
        """Beat when it is time or something is to tell; else look whether others did. Raises what the client raises."""
        try:
            await asyncio.wait_for(self._wake.wait(), min(LOOK_S, self.period_s))
        except TimeoutError:
            beat_due = time.monotonic() - self._beat_at >= self.period_s
            if not beat_due and await members.changes(self._door, self._keys) == self._changes:
                return 0.0
        await self._beat()
        return 0.0

    def leads(self, topic: TopicSpec, number: int) -> bool:
        """Whether this worker does for a partition what one worker is enough for: each is led by one of those that have
        a group of the topic, and by everybody while nobody has."""
        workers = tuple(
            worker_id
            for worker_id, member in sorted(self._known.items())
            if any(name.startswith(f"{topic.name}:") for name in member.groups)
        )
        return not workers or _leaders(topic.name, topic.partitions, workers)[number] == self.worker_id

    def drain(self) -> None:
        """Give everything up, as what is in flight ends; the others take it meanwhile."""
        self._draining = True
        self._tell()

    async def leave(self) -> None:
        """Be no member any more, once everything is released and `run_once` runs no more."""
        self._left = True
        try:
            await self._door.persist(lambda: members.leave(self._door, self._keys, self.worker_id), give_up_s=_LEAVE_S)
        except (*CLIENT_ERRORS, RedisError) as error:
            logger.warning("leave_failed", extra={"worker": self.worker_id, "error": str(error)})

    def renewals(self) -> list[Renewal]:
        """What the renewal thread has to renew: every lease held, and our beat while a handler blocks the loop."""
        leases = [lease for shares in list(self._shares.values()) for lease in shares.leases if lease.held]
        found: list[Renewal] = [(lease.owner_key, lease.renew) for lease in leases]
        overdue = self._beat_at and time.monotonic() - self._beat_at > self.period_s * 1.5
        if overdue and not self._left:
            found.append((self._keys.workers(), self._touch))
        return found

    def member(self) -> Member:
        """What this process tells of itself now."""
        groups: dict[str, list[int]] = {name: [] for name in self._others}
        groups |= {name: sorted(shares.refused_now(self._draining)) for name, shares in self._shares.items()}
        return Member(
            worker_id=self.worker_id,
            host=socket.gethostname(),
            pid=os.getpid(),
            started_ms=self._started_ms,
            groups=dict(sorted(groups.items())),
        )

    async def _beat(self) -> None:
        self._wake.clear()
        sent = time.monotonic()
        # When the server or this process stood still, nobody beat: those who are silent then are not dead.
        stood_still = bool(self._beat_at) and (sent - self._beat_at) * 2000 > self.live_ms
        try:
            found = await members.snapshot(self._door, self._keys, self.member(), self.live_ms)
        except BaseException:
            self._wake.set()
            raise
        known = {seen.member.worker_id: seen.member for seen in found.seen}
        self._known = self._known | known if stood_still else known
        self._beat_at, self._changes = sent, found.changes
        self._share_out()

    def _tell(self) -> None:
        """Something changed here: act on it now, and tell the others."""
        self._wake.set()
        if self._known:
            self._share_out()

    def _share_out(self) -> None:
        self._known[self.worker_id] = self.member()
        for shares in self._shares.values():
            shares.update(self._known)

    def _touch(self, client: SyncClient) -> None:
        sent = time.monotonic()
        members.beat_sync(client, self._keys, self._known[self.worker_id], self.live_ms)
        self._beat_at = sent


@lru_cache(maxsize=64)
def _leaders(topic: str, partitions: int, workers: tuple[str, ...]) -> dict[int, str]:
    return assign(partitions, workers, topic)


class Shares:
    """The partitions of one ordered group or projection in this process."""

    def __init__(self, name: str, leases: list[PartitionLease], worker_id: str, tell: Callable[[], None]) -> None:
        self.leases = leases
        self.mine: frozenset[int] = frozenset()
        """What this process should own, by the last snapshot."""
        self._name = name
        self._worker_id = worker_id
        self._tell = tell
        self._refused: set[int] = set()
        self._computed_from: tuple[list[str], Mapping[str, AbstractSet[int]]] | None = None

    @property
    def owned(self) -> frozenset[int]:
        """What this process owns now."""
        return frozenset(number for number, lease in enumerate(self.leases) if lease.held)

    def partition(self, number: int) -> PartitionLease:
        """The lease of one partition; the same object each time."""
        return self.leases[number]

    def refuse(self, number: int) -> None:
        """This process cannot read what comes next there: others shall have it. Its lease is leaving at once."""
        if number not in self._refused:
            self._refused.add(number)
            self._tell()

    def accept(self, number: int) -> None:
        """The partition may be this process's again."""
        if number in self._refused:
            self._refused.discard(number)
            self._tell()

    def refused_now(self, draining: bool) -> AbstractSet[int]:
        """What it refuses; everything while the process drains."""
        return set(range(len(self.leases))) if draining else self._refused

    def update(self, known: Mapping[str, Member]) -> None:
        """Compute the shares of those who live; the leases hear what became of theirs."""
        refused = {
            worker_id: frozenset(member.groups[self._name])
            for worker_id, member in known.items()
            if self._name in member.groups
        }
        workers = sorted(refused)
        if self._computed_from == (workers, refused):
            return
        self._computed_from = (workers, refused)
        shares = assign(len(self.leases), workers, self._name, refused)
        self.mine = frozenset(number for number, worker in shares.items() if worker == self._worker_id)
        for number, lease in enumerate(self.leases):
            lease.want(number in self.mine)
