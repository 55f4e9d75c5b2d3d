"""Who owned what, and who was a member, watched in Redis all along: a sample every few milliseconds."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import redis
from msgspec import Struct

_EVERY_S = 0.02


class Owned(Struct, frozen=True):
    """One partition: its owner and epoch, whether the lease of it held, and whether it was released."""

    owner: str
    epoch: int
    held: bool
    released: bool


class Sample(Struct, frozen=True):
    """All partitions and all members at one moment of the server's clock; `pids`: worker id -> process."""

    at_ms: int
    owned: tuple[Owned, ...]
    pids: dict[str, int]

    def shares(self, workers: Iterable[str]) -> list[int]:
        """How many partitions each of these holds."""
        return [sum(one.held and one.owner == worker for one in self.owned) for worker in workers]

    def levelled(self, workers: Sequence[str]) -> bool:
        """These hold everything, and none two more than another."""
        shares = self.shares(workers)
        return sum(shares) == len(self.owned) and max(shares) - min(shares) <= 1


class OwnerWatch:
    """The samples of one group over its partition streams."""

    def __init__(self, client: redis.Redis, streams: Sequence[str], group: str) -> None:
        self.samples: list[Sample] = []
        self._client = client
        self._keys = [f"{{{stream}}}:owner:{group}" for stream in streams]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Meanwhile a thread samples."""
        stop = threading.Event()
        errors: list[BaseException] = []

        def watch() -> None:
            try:
                while not stop.wait(_EVERY_S):
                    self.samples.append(self._sample())
            except BaseException as error:  # noqa: BLE001 - raised again in the test's own thread
                errors.append(error)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            if errors:
                raise errors[0]

    def since(self, at_ms: int) -> list[Sample]:
        return [sample for sample in list(self.samples) if sample.at_ms >= at_ms]

    def now_ms(self) -> int:
        """The server's clock."""
        return _ms(self._client.time())

    def _sample(self) -> Sample:
        with self._client.pipeline(transaction=True) as tx:
            tx.time()
            tx.hgetall("streamlib:workers")
            for key in self._keys:
                tx.hmget(key, ["owner", "epoch", "deadline"])
            time, workers, *owners = tx.execute()
        at_ms = _ms(time)
        return Sample(at_ms, tuple(_owned(found, at_ms) for found in owners), _pids(workers))


def stayed(samples: Sequence[Sample]) -> list[int]:
    """The partitions that had one and the same owner in all of these."""
    columns = zip(*(sample.owned for sample in samples), strict=True)
    return [number for number, column in enumerate(columns) if len({one.owner for one in column}) == 1]


def given_up(samples: Sequence[Sample], partitions: Iterable[int]) -> list[int]:
    """Those of the partitions that were released, or began a new epoch."""
    return [
        number
        for number in partitions
        if any(sample.owned[number].released for sample in samples)
        or len({sample.owned[number].epoch for sample in samples}) > 1
    ]


def _owned(found: Sequence[bytes | None], at_ms: int) -> Owned:
    owner, epoch, deadline = (part.decode() if part is not None else "" for part in found)
    return Owned(owner, int(epoch or 0), int(deadline or 0) > at_ms, int(deadline or 0) == 0)


def _pids(workers: Mapping[bytes, bytes]) -> dict[str, int]:
    told = {name.decode(): value.partition(b" ")[2] for name, value in workers.items() if name != b"changes"}
    return {name: json.loads(text)["pid"] for name, text in told.items()}


def _ms(time: Any) -> int:
    seconds, microseconds = time
    return int(seconds) * 1000 + int(microseconds) // 1000
