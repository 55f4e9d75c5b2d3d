"""The intake of an unordered group: all workers compete for all partitions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from functools import partial

from streamlib.keys import StreamKeys
from streamlib.metrics.worker import GroupMetrics
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.reader import Reader
from streamlib.settings import WorkerSettings
from streamlib.worker.consumer import Consumer
from streamlib.worker.fetcher import Fetcher
from streamlib.worker.handlers import GroupSpec
from streamlib.worker.intake import Loop, Numbers
from streamlib.worker.loops import end
from streamlib.worker.pausing import Gate
from streamlib.worker.promoter import Promoter
from streamlib.worker.reclaimer import Reclaimer
from streamlib.worker.work import Ended, Work

_READ_GRACE_S = 1.0


class SharedIntake:
    """Reads ahead, brings in what gone workers left behind, and moves due retries."""

    inbox = None

    def __init__(
        self,
        spec: GroupSpec,
        consumer_name: str,
        door: RedisDoor,
        partitions: Sequence[StreamKeys],
        *,
        settings: WorkerSettings,
        payload_bytes: int,
        gate: Gate,
        metrics: GroupMetrics,
    ) -> None:
        self._spec = spec
        self._consumer_name = consumer_name
        self._door = door
        self._keys = list(partitions)
        self._settings = settings
        self._payload_bytes = payload_bytes
        self._gate = gate
        self._metrics = metrics
        self._fetchers: list[Fetcher] = []
        self._fetching: list[asyncio.Task[None]] = []
        self._background: list[asyncio.Task[None]] = []

    def attach(self, consumer: Consumer) -> None:
        self._consumer = consumer
        numbered = dict(enumerate(self._keys))
        # One read of everything where it lies on one server; else one for each partition, for a read has one slot.
        reads = [numbered] if self._door.one_node else [{number: keys} for number, keys in numbered.items()]
        self._fetchers = [self._fetcher(partitions) for partitions in reads]
        reader = self._reader(numbered)
        self._reclaimer = Reclaimer(
            self._door, reader, consumer, self._keys, self._settings, self._metrics, self._payload_bytes
        )
        self._promoter = Promoter(self._door, self._keys, self._spec.group)

    def _reader(self, partitions: Mapping[int, StreamKeys]) -> Reader:
        return Reader(partitions, self._spec.group, self._consumer_name, self._spec.topic.codec)

    def _fetcher(self, partitions: Mapping[int, StreamKeys]) -> Fetcher:
        return Fetcher(
            self._door, self._reader(partitions), self._consumer, self._settings, self._metrics,
            sharing=lambda: max(sum(one.found for one in self._fetchers), 1),
        )  # fmt: skip

    def settled(self, ended: Ended, counts: bool) -> None:
        """A retry is promoted by whoever scheduled it."""
        if ended.settlement.kind == "retry":
            self._promoter.expect(ended.settlement.delivery.partition, ended.settlement.number / 1000)

    def fenced(self, partition: int, epoch: int) -> None:
        """Nobody owns partitions here."""

    def may_start(self, work: Work) -> bool:
        return True

    def start(self, loop: Loop) -> list[asyncio.Task[None]]:
        name = f"{self._spec.topic.name}/{self._spec.group}"
        spawn = asyncio.get_running_loop().create_task
        for fetcher in self._fetchers:
            fetching = loop("fetcher", self._gate.gated(fetcher.run_once), lambda: self._consumer.stopping)
            self._fetching.append(spawn(fetching, name=f"fetcher {name}"))
        for number in range(len(self._keys)):  # a loop each: a partition out of reach delays no other one
            reclaim = self._gate.gated(partial(self._reclaimer.run_once, number))
            promote = partial(self._promoter.run_once, number)
            self._background += [
                spawn(loop("reclaimer", reclaim, bool), name=f"reclaimer {name} {number}"),
                spawn(loop("promoter", promote, bool), name=f"promoter {name} {number}"),
            ]
        return [*self._fetching, *self._background]

    async def stop(self) -> None:
        # A read that blocks is let run out: cancelling it could lose a reply, whose entries would wait for a lease.
        await end(self._fetching, grace_s=self._settings.block_ms / 1000 + _READ_GRACE_S)
        await end(self._background)

    async def leave(self, grace_s: float) -> bool:
        for fetcher in self._fetchers:
            await fetcher.close()
        return True

    @property
    def halted(self) -> list[tuple[int, str]]:
        return []

    @property
    def halted_events(self) -> int:
        return 0

    @property
    def stands_still(self) -> bool:
        return False

    def polled_within(self, seconds: float, silent: Numbers = frozenset(), heard: Numbers = frozenset()) -> bool:
        def counts(fetcher: Fetcher) -> bool:
            last = fetcher.last_read
            recent = last is not None and time.monotonic() - max(last, self._gate.opened_at) < seconds
            return recent or (fetcher.waits_for_room and (not silent or not heard.isdisjoint(fetcher.partitions)))

        return any(counts(fetcher) for fetcher in self._fetchers if not fetcher.partitions <= silent)
