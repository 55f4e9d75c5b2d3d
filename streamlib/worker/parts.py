"""What the consumer of a group is built from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from msgspec import Struct, field

from streamlib.metrics.worker import GroupMetrics
from streamlib.redisio.claims import Claimed, claim
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.delivery import Delivery
from streamlib.settings import WorkerSettings
from streamlib.worker.circuit import Circuit
from streamlib.worker.handlers import GroupSpec
from streamlib.worker.inflight import InFlight
from streamlib.worker.limiter import Limiter
from streamlib.worker.pausing import Gate
from streamlib.worker.settling import Settling
from streamlib.worker.work import Group


class Parts(Struct, frozen=True, kw_only=True):
    """Shared by its steps; `limiter` is the group's, `gate` closes while it is paused or `circuit` is open."""

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
    limiter: Limiter
    circuit: Circuit
    gate: Gate = field(default_factory=Gate)
    on_fenced: Callable[[int, int], None] = lambda partition, epoch: None
    """Hears of a partition and epoch that are another worker's by now."""

    async def claim(self, deliveries: Sequence[Delivery], *, take_suspects: bool = False) -> list[Claimed]:
        """Claim for this worker; as `redisio.claims.claim`."""
        with self.settling.answering.at(deliveries[0].keys.stream):
            return await claim(
                self.door,
                deliveries,
                group=self.group.group,
                worker_id=self.group.worker_id,
                lease_ms=self.settings.lease_ms,
                window_ms=self.group.window_ms,
                take_suspects=take_suspects,
                marks=self.group.marks,
            )
