"""The intake of an ordered group: each partition is read by the one worker that owns it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import partial

from streamlib.keys import StreamKeys
from streamlib.metrics.worker import GroupMetrics
from streamlib.redisio.connection import RedisDoor
from streamlib.settings import WorkerSettings
from streamlib.worker.consumer import Consumer
from streamlib.worker.handlers import GroupSpec
from streamlib.worker.intake import Loop, Numbers
from streamlib.worker.key_inbox import KeyInbox
from streamlib.worker.loops import end
from streamlib.worker.owned_partition import OwnedPartition, OwnedParts
from streamlib.worker.ownership import Shares
from streamlib.worker.pausing import Gate
from streamlib.worker.work import Ended, Group, Work

_COUNT_S = 1.0
_ELSEWHERE_S = 30.0
"""For so long a partition is left to those who handle what comes next there."""


class OwnedIntake:
    """Waits for the partitions that are this process's share, owns them, and gives them up."""

    def __init__(
        self,
        spec: GroupSpec,
        group: Group,
        door: RedisDoor,
        partitions: Sequence[StreamKeys],
        shares: Shares,
        *,
        settings: WorkerSettings,
        payload_bytes: int,
        gate: Gate,
        metrics: GroupMetrics,
    ) -> None:
        self.inbox = KeyInbox(self._wake_up, lambda number: self._shares.partition(number).fresh())
        self._spec = spec
        self._group = group
        self._door = door
        self._keys = list(partitions)
        self._shares = shares
        self._settings = settings
        self._payload_bytes = payload_bytes
        self._gate = gate
        self._metrics = metrics
        self._stop = asyncio.Event()
        self._consumer: Consumer | None = None
        self._partitions: list[OwnedPartition] = []
        self._owning: list[asyncio.Task[None]] = []
        self._looking: list[asyncio.Task[None]] = []

    def attach(self, consumer: Consumer) -> None:
        parts = OwnedParts(
            door=self._door,
            group=self._group.group,
            worker_id=self._group.worker_id,
            consumer_name=self._group.consumer,
            codec=self._spec.topic.codec,
            settings=self._settings,
            payload_bytes=self._payload_bytes,
            inbox=self.inbox,
            consumer=consumer,
            gate=self._gate,
            metrics=self._metrics,
        )
        self._consumer = consumer
        self._partitions = [
            OwnedPartition(parts, number, keys, self._shares.partition(number))
            for number, keys in enumerate(self._keys)
        ]

    def settled(self, ended: Ended, counts: bool) -> None:
        self.inbox.settled(ended, counts)
        if ended.elsewhere:
            number = ended.settlement.delivery.partition
            self._shares.refuse(number)
            asyncio.get_running_loop().call_later(_ELSEWHERE_S, self._shares.accept, number)

    def fenced(self, partition: int, epoch: int) -> None:
        lease = self._shares.partition(partition)
        if lease.epoch == epoch:
            lease.fenced()

    def may_start(self, work: Work) -> bool:
        lease = self._shares.partition(work.delivery.partition)
        return lease.epoch == work.delivery.epoch and lease.fresh()

    def start(self, loop: Loop) -> list[asyncio.Task[None]]:
        name = f"{self._spec.topic.name}/{self._spec.group}"
        spawn = asyncio.get_running_loop().create_task
        for number, one in enumerate(self._partitions):
            owning = loop("owner", partial(one.run_once, self._stop), self._stop.is_set)
            looking = loop("halted keys", one.look_at_halted, bool)
            self._owning.append(spawn(owning, name=f"owner {name} {number}"))
            self._looking.append(spawn(looking, name=f"halted keys {name} {number}"))
        self._looking.append(spawn(loop("parked events", self._count, bool), name=f"parked events {name}"))
        return [*self._owning, *self._looking]

    async def stop(self) -> None:
        self._stop.set()
        await end(self._looking)

    async def leave(self, grace_s: float) -> bool:
        return await end(self._owning, grace_s=grace_s)

    def polled_within(self, seconds: float, silent: Numbers = frozenset(), heard: Numbers = frozenset()) -> bool:
        since = time.monotonic() - seconds

        def counts(number: int, one: OwnedPartition) -> bool:
            if one.wants_to_read:
                return max(one.last_read or 0.0, one.lease.since, self._gate.opened_at) > since
            return not silent or number in heard

        held = [(number, one) for number, one in enumerate(self._partitions) if one.lease.held]
        return not held or any(counts(number, one) for number, one in held if number not in silent)

    @property
    def halted(self) -> list[tuple[int, str]]:
        return [(number, key) for number, one in enumerate(self._partitions) for key in one.halted]

    @property
    def halted_events(self) -> int:
        return self.inbox.parked_for_good

    @property
    def stands_still(self) -> bool:
        return bool(self.halted) and all(one.stands_still for one in self._partitions)

    async def _count(self) -> float:
        """Tell the metrics how much waits behind failing events; seconds until the next time."""
        self._metrics.parked(self.inbox.parked, sum(one.full for one in self._partitions))
        return _COUNT_S

    def _wake_up(self) -> None:
        if self._consumer is not None:
            self._consumer.wake_up()
