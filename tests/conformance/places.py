"""Where the conformance cases run: one server, a primary with sentinels, or a cluster."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.helpers.cluster import ClusterTopology
from tests.helpers.oracle import Ledger, assert_no_stray_keys, assert_nothing_lost, ledger
from tests.helpers.sentinel import SentinelTopology
from tests.helpers.servers import RedisProc

KINDS = ("standalone", "sentinel", "cluster")


class Place:
    """Some servers, and how many partitions a topic has there unless a case says otherwise."""

    def __init__(self, servers: RedisProc | SentinelTopology | ClusterTopology) -> None:
        self._servers = servers
        self.url = servers.url
        self.partitions = 1 if isinstance(servers, RedisProc) else 3
        # What a publish asks for so that it survives `break_down`.
        self.durability = "replicas:1" if isinstance(servers, SentinelTopology) else "primary"

    @contextmanager
    def client(self) -> Iterator[Any]:
        """A client for whatever key: of the server, of the primary, of the cluster."""
        if isinstance(self._servers, SentinelTopology):
            with self._servers.primary() as client:
                yield client
        else:
            with self._servers.client() as client:
                yield client

    def flush(self) -> None:
        if isinstance(self._servers, RedisProc):
            with self.client() as client:
                client.flushall()
        else:
            self._servers.flush()

    def break_down(self) -> None:
        """A server is killed, and comes back."""
        if isinstance(self._servers, SentinelTopology):
            self._servers.restart(self._servers.kill_primary())
            self._servers.wait_until_whole()
        elif isinstance(self._servers, ClusterTopology):
            self._servers.kill(self._servers.nodes[0])
            self._servers.restart(self._servers.nodes[0])
        else:
            self._servers.kill9()
            self._servers.start()

    def give_way(self) -> None:
        """A server ends as planned, and comes back."""
        if isinstance(self._servers, SentinelTopology):
            self._servers.failover()
        elif isinstance(self._servers, ClusterTopology):
            self._servers.nodes[1].terminate()
            self._servers.restart(self._servers.nodes[1])
        else:
            self._servers.restart()

    # -- what lies there ------------------------------------------------------------------------------------------

    def streams(self, topic: str) -> list[str]:
        return [topic] if self.partitions == 1 else [f"{topic}.{number}" for number in range(self.partitions)]

    def entries(self, topic: str) -> list[dict[bytes, bytes]]:
        with self.client() as client:
            return [fields for stream in self.streams(topic) for _, fields in client.xrange(stream)]

    def consumers(self, topic: str, group: str) -> list[Any]:
        with self.client() as client:
            return [one for stream in self.streams(topic) for one in client.xinfo_consumers(stream, group)]

    def ledger(self, topic: str, group: str, ids: Iterable[str]) -> Ledger:
        with self.client() as client:
            return ledger(client, self.streams(topic), group, ids)

    def assert_nothing_lost(self, topic: str, group: str, ids: Iterable[str]) -> Ledger:
        with self.client() as client:
            return assert_nothing_lost(client, self.streams(topic), group, ids)

    def assert_no_stray_keys(self) -> None:
        with self.client() as client:
            assert_no_stray_keys(client)


@contextmanager
def open_place(kind: str, server_kind: str, directory: Path, *, aof: bool = False) -> Iterator[Place]:
    """Start the servers of a place, and end them. With `aof` they keep their data through a kill."""
    servers: RedisProc | SentinelTopology | ClusterTopology
    if kind == "sentinel":
        servers = SentinelTopology(directory, kind=server_kind, aof=aof)
    elif kind == "cluster":
        servers = ClusterTopology(directory, kind=server_kind, aof=aof)
    else:
        servers = RedisProc(server_kind, directory, aof=aof)
    with servers:
        yield Place(servers)
