"""Other libraries as cases: which there are, with which Python each runs, what its result must be."""

import importlib.util
from collections.abc import Mapping, Sequence

import redis
from msgspec import Struct

from benchmarks import checks
from benchmarks.case import Case, Run, Size, nothing

SLOW = 10
"""These get a tenth of the events: they handle a few hundred a second."""


class Peer(Struct, frozen=True):
    """A library: its module in `benchmarks/peers/`, with which of our cases it is compared, its package."""

    name: str
    about: str
    base: str = "worker"
    share: int = 1
    package: str = ""
    publishes: bool = False

    def case(self, python: str) -> Case:
        return Case(
            name=f"peer_{self.name}",
            about=self.about,
            run=None,
            check=self._check,
            fill=nothing,
            base=self.base,
            module=f"benchmarks.peers.{self.name}",
            python=python,
            share=self.share,
        )

    def _check(self, client: redis.Redis, size: Size, run: Run) -> Sequence[str]:
        part = size.part(self.share)
        return checks.counted("handled", run.handled, part.events if self.publishes else part.total)


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("faststream", "FastStream: typed subscriber of a stream's group"),
        Peer(
            "faststream_publish",
            "FastStream: a thousand coroutines await publish",
            base="publish_awaited",
            package="faststream",
            publishes=True,
        ),
        Peer("taskiq", "taskiq with taskiq-redis' stream broker"),
        Peer("saq", "SAQ: ten jobs at once"),
        Peer("arq", "arq: ten jobs at once"),
        Peer("streaq", "streaQ", share=SLOW),
        Peer("process_redis_events", "process-redis-events"),
        Peer("redis_stream_queue", "redis-stream-queue: batch callback, no idempotency", base="worker_batch"),
        Peer("tarsk", "tarsk-redis: sync handlers under a Rust supervisor", base="worker_sync"),
        Peer("dramatiq", "Dramatiq: sync handlers in 8 threads", base="worker_sync"),
        Peer("redis_streams", "redis-streams: blocking consumer, batches of 10", base="worker_sync"),
        Peer("celery", "Celery: prefork, one process", base="worker_sync", share=SLOW),
        Peer("rq", "RQ: a fork per job", base="worker_sync", share=SLOW),
    )
}


def peers(pythons: Mapping[str, str]) -> list[Case]:
    """The cases of the peers that are installed here, or for which another Python is given.

    Raises LookupError for the name of none.
    """
    if unknown := pythons.keys() - PEERS.keys():
        raise LookupError(f"no peer {min(unknown)!r}; there are: {', '.join(PEERS)}")
    return [
        peer.case(pythons.get(name, ""))
        for name, peer in PEERS.items()
        if name in pythons or importlib.util.find_spec(peer.package or name) is not None
    ]
