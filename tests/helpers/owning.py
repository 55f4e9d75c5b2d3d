"""One partition of an ordered group, owned and read by hand: takes, fenced reads, claims, settles, operators."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from streamlib import NativeCodec
from streamlib.redisio.claims import Held, renew
from streamlib.redisio.dead_letter import Failure
from streamlib.redisio.delivering import Delivered, OwnedReader
from streamlib.redisio.delivery import Delivery
from streamlib.redisio.key_states import KeyState, states_of
from streamlib.redisio.ownership import take
from streamlib.redisio.settler import Settlement, halt
from tests.helpers.delivering import GROUP, LEASE_MS, WINDOW_MS, Partition
from tests.helpers.publishing import open_door
from tests.helpers.servers import connect
from tests.helpers.settling import FAILURE


class OwnedPartition(Partition):
    """As Partition, but nothing is read without being its owner."""

    def put(self, event_id: str, key: str = "k", **fields: str) -> str:
        """Store an event of a key; its entry id."""
        entry = {"id": event_id, "type": "Placed", "v": "1", "key": key, "data": "{}", **fields}
        added: Any = self.client.xadd(self.keys.stream, entry)
        return str(added.decode())

    async def own(self, worker: str = "w1", *, lease_ms: int = LEASE_MS) -> OwnedReader:
        """Take the partition; what reads it in the epoch that begins."""
        lease = await take(self.door, self.keys.owner(GROUP), worker, lease_ms)
        assert lease.ours, "another worker owns it"
        return self.reader(worker, lease.epoch)

    def reader(self, worker: str, epoch: int) -> OwnedReader:
        return OwnedReader(
            self.keys, 0, NativeCodec(), group=GROUP, worker_id=worker, consumer=f"c-{worker}", epoch=epoch
        )

    def end_lease(self) -> None:
        """Let the owner's lease lie in the past."""
        self.client.hset(self.keys.owner(GROUP), "deadline", "1")

    def renewed(self, deliveries: Sequence[Delivery], worker: str = "w1") -> list[str]:
        """Renew claims as the thread does; the refs of those that were lost."""
        client = self.door.sync_client()
        try:
            held = [Held(self.keys, GROUP, one.again, one.ref, one.event_id) for one in deliveries]
            return renew(client, held, consumer=f"c-{worker}", worker_id=worker, lease_ms=LEASE_MS, window_ms=WINDOW_MS)
        finally:
            client.close()

    @property
    def epoch(self) -> int:
        return int(self.client.hget(self.keys.owner(GROUP), "epoch"))

    async def read(self, reader: OwnedReader, count: int = 500) -> Delivered:
        return await reader.read(self.door, count)

    async def ran(self, reader: OwnedReader, worker: str = "w1") -> list[Delivery]:
        """Read and claim what there is."""
        deliveries = [one.delivery for one in (await self.read(reader)).received]
        assert {name for name, _ in await self.claim(deliveries, worker)} == {"RUN"}
        return deliveries

    async def noted(self, key: str = "k") -> KeyState | None:
        """What is noted about a key."""
        return (await states_of(self.door, self.keys, GROUP, [key]))[key]


@asynccontextmanager
async def an_owned_partition(url: str) -> AsyncIterator[OwnedPartition]:
    async with open_door(url) as door:
        with connect(url) as client:
            yield OwnedPartition(door, client)


def halted(delivery: Delivery, failure: Failure = FAILURE, *, attempts: int = 3) -> Settlement:
    return halt(delivery, failure, attempts=attempts, group=GROUP, consumer="c-w1", now_ms=1_700_000_000_000)
