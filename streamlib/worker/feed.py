"""One generation of a view as one process feeds it: what all its partitions share."""

from __future__ import annotations

from typing import Any

from msgspec import Struct, field

from streamlib.keys import Keys
from streamlib.metrics.worker import GroupMetrics
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.indexes import ViewKeys, group_of
from streamlib.settings import Settings
from streamlib.worker.history import History
from streamlib.worker.ownership import Shares
from streamlib.worker.pausing import Gate
from streamlib.worker.projection import Projection


class Feed(Struct, frozen=True, kw_only=True):
    """`rebuilding`: history is folded, so copies are told by the stream's own time, not by idempotency keys. `history`
    is what is folded before the streams, where they were trimmed."""

    projection: Projection[Any]
    generation: int
    redis: RedisDoor
    keys: Keys
    settings: Settings
    shares: Shares
    metrics: GroupMetrics
    gate: Gate = field(default_factory=Gate)
    rebuilding: bool = False
    history: History | None = None

    @property
    def group(self) -> str:
        return group_of(self.projection.name, self.generation)

    @property
    def window_ms(self) -> int:
        return int(self.settings.idempotency.window_s * 1000)

    def view_keys(self, partition: int) -> ViewKeys:
        topic = self.projection.topic
        stream = self.keys.stream(topic.name, partition, topic.partitions)
        return ViewKeys(stream, self.projection.name, self.generation)
