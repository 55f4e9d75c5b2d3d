"""What the consumer of a group is built from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from msgspec import Struct, field

from streamlib.metrics.worker import GroupMetrics
from streamlib.redisio.connection import RedisDoor
from streamlib.settings import WorkerSettings
from streamlib.worker.handlers import GroupSpec
from streamlib.worker.inflight import InFlight
from streamlib.worker.limiter import Limiter
from streamlib.worker.pausing import Gate
from streamlib.worker.settling import Settling
from streamlib.worker.work import Group


class Parts(Struct, frozen=True, kw_only=True):
    """Shared by its steps; `limiter` is the group's, `gate` closes while it is paused."""

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
    gate: Gate = field(default_factory=Gate)
    on_fenced: Callable[[int, int], None] = lambda partition, epoch: None
    """Hears of a partition and epoch that are another worker's by now."""
