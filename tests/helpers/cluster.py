"""A cluster of real servers: slots that a test moves by hand, nodes that it kills and brings back."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry

from tests.helpers.servers import HOST, RedisProc, free_port
from tests.helpers.waiting import wait_until

SLOTS = 16_384
UP_S = 60.0
DOWN = (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError)
_MIGRATE_MS = 10_000


class ClusterTopology:
    """`primaries` nodes that share the slots evenly, each with `replicas` copies.

    With `full_coverage` off the other nodes go on answering while one is gone. With `aof` a node keeps its data
    through a kill. As a context manager it starts on entry and always ends every process.
    """

    def __init__(
        self,
        directory: Path,
        *,
        kind: str = "valkey",
        primaries: int = 3,
        replicas: int = 0,
        node_timeout_ms: int = 1_000,
        full_coverage: bool = True,
        aof: bool = False,
        conf: dict[str, str] | None = None,
    ) -> None:
        settings = {
            "cluster-enabled": "yes",
            "cluster-node-timeout": str(node_timeout_ms),
            "cluster-require-full-coverage": "yes" if full_coverage else "no",
            "cluster-allow-replica-migration": "no",
            "repl-diskless-sync-delay": "0",
            **(conf or {}),
        }
        self.primaries = primaries
        self.nodes = [
            # Its bus has a port of its own: the usual port + 10000 may be no port at all.
            RedisProc(kind, directory / f"node-{n}", aof=aof, conf=settings | {"cluster-port": str(free_port())})
            for n in range(primaries * (1 + replicas))
        ]

    @property
    def url(self) -> str:
        return f"cluster://{','.join(f'{HOST}:{node.port}' for node in self.nodes)}"

    def start(self) -> Self:
        """Start the nodes, share out the slots, and wait until the cluster is whole."""
        for node in self.nodes:
            node.start()
        share = SLOTS / self.primaries
        for number, node in enumerate(self.nodes):
            with node.client() as client:
                _ask(client, "CLUSTER SET-CONFIG-EPOCH", number + 1)
                if number < self.primaries:
                    first, last = round(number * share), round((number + 1) * share) - 1
                    _ask(client, "CLUSTER ADDSLOTSRANGE", first, last)
        with self.nodes[0].client() as client:
            for other in self.nodes[1:]:
                _ask(client, "CLUSTER MEET", HOST, other.port, other.conf["cluster-port"])
        wait_until(lambda: all(self._knows(node) == len(self.nodes) for node in self.nodes), UP_S, ignore=DOWN)
        for number, node in enumerate(self.nodes[self.primaries :]):
            with node.client() as client:
                _ask(client, "CLUSTER REPLICATE", self._id(self.nodes[number % self.primaries]))
        self.wait_until_ok()
        return self

    def close(self) -> None:
        """End every process, frozen ones too."""
        for node in self.nodes:
            node.terminate()

    # -- who is who -----------------------------------------------------------------------------------------------

    def node_of(self, key: str) -> RedisProc:
        """The node whose primary answers for this key now."""
        return self.node_of_slot(key_slot(key.encode()))

    def node_of_slot(self, slot: int) -> RedisProc:
        """The node that claims this slot: where several do (news travels), the one that most others name."""
        ports = [port for node in self.nodes if (port := self._named_owner(node, slot))]
        if not ports:
            raise RuntimeError(f"no node answers for slot {slot}")
        port = max(set(ports), key=ports.count)
        return next(node for node in self.nodes if node.port == port)

    def client(self, *, timeout_s: float = 10) -> redis.RedisCluster:
        """A client of the whole cluster: bytes, RESP2 reply shapes."""
        up = [node for node in self.nodes if _answers(node)]
        return redis.RedisCluster(
            host=HOST,
            port=up[0].port,
            protocol=2,
            decode_responses=False,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            require_full_coverage=False,
            retry=Retry(NoBackoff(), 3),
        )

    def flush(self) -> None:
        """Empty every primary."""
        for node in self.nodes:
            with node.client() as client, contextlib.suppress(redis.exceptions.ReadOnlyError):
                client.flushall()

    # -- slots that move ------------------------------------------------------------------------------------------

    def move_slot(self, slot: int, to: RedisProc, *, pause_s: float = 0.0, at_once: int = 10) -> int:
        """Move a slot and its keys while the cluster works, `at_once` keys at a time; how many keys went."""
        source = self.node_of_slot(slot)
        if source is to:
            return 0
        with self.half_moved(slot, to) as move:
            moved = 0
            while count := move.keys(at_once):
                moved += count
                time.sleep(pause_s)
        return moved

    @contextlib.contextmanager
    def half_moved(self, slot: int, to: RedisProc) -> Iterator["Move"]:
        """A slot that is on its way: within, keys that went are answered with ASK, and commands on several keys of
        which some went with TRYAGAIN. At the end all the rest has gone, and `to` owns the slot."""
        source = self.node_of_slot(slot)
        with source.client(timeout_s=30) as old, to.client(timeout_s=30) as new:
            _ask(new, "CLUSTER SETSLOT", slot, "IMPORTING", self._id(source))
            _ask(old, "CLUSTER SETSLOT", slot, "MIGRATING", self._id(to))
            move = Move(old, slot, to)
            yield move
            while move.keys(100):
                pass
            _ask(new, "CLUSTER SETSLOT", slot, "NODE", self._id(to))
            _ask(old, "CLUSTER SETSLOT", slot, "NODE", self._id(to))
        wait_until(lambda: self._all_name(slot, to), UP_S, what=f"all nodes name the new owner of slot {slot}")

    # -- faults ---------------------------------------------------------------------------------------------------

    def kill(self, node: RedisProc, *, wait: bool = True) -> None:
        """SIGKILL a node; waits until the others say so, unless told not to."""
        node_id = self._id(node)
        node.kill9()
        if wait:
            others = [one for one in self.nodes if one is not node and one.running]
            wait_until(lambda: all(self._thinks_failed(one, node_id) for one in others), UP_S, ignore=DOWN)

    def restart(self, node: RedisProc) -> None:
        """Bring a dead node back, with its data if `aof`, and wait until the cluster is whole again."""
        node.start()
        self.wait_until_ok()

    def wait_until_ok(self) -> None:
        """Wait until every running node finds the cluster whole, and replicas have their copy."""
        wait_until(lambda: all(map(self._is_ok, self.nodes)), UP_S, what="cluster_state:ok on every node", ignore=DOWN)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _id(self, node: RedisProc) -> str:
        with node.client() as client:
            answer: Any = _ask(client, "CLUSTER MYID")
        return answer.decode() if isinstance(answer, bytes) else str(answer)

    def _knows(self, node: RedisProc) -> int:
        return sum("handshake" not in line and "connected" in line for line in _nodes(node))

    def _is_ok(self, node: RedisProc) -> bool:
        if not node.running:
            return True
        with node.client(timeout_s=1) as client:
            info: Any = _ask(client, "CLUSTER INFO")
            replication: Any = client.info("replication")
        failing = any("fail" in line.split()[2] for line in _nodes(node))
        copies = replication["role"] == "master" or replication["master_link_status"] == "up"
        return b"cluster_state:ok" in _raw(info) and not failing and bool(copies)

    def _thinks_failed(self, node: RedisProc, node_id: str) -> bool:
        flags = {line.split()[0]: line.split()[2].split(",") for line in _nodes(node)}
        return "fail" in flags.get(node_id, ["fail"])

    def _named_owner(self, node: RedisProc, slot: int) -> int:
        """The port of the primary that this node names for a slot, 0 if it names or says nothing."""
        if not node.running:
            return 0
        try:
            lines = _nodes(node)
        except DOWN:
            return 0
        for line in lines:
            words = line.split()
            ranges = [word for word in words[8:] if not word.startswith("[")]
            if any(_holds(word, slot) for word in ranges):
                return int(words[1].split("@")[0].rpartition(":")[2])
        return 0

    def _all_name(self, slot: int, owner: RedisProc) -> bool:
        return all(self._named_owner(node, slot) == owner.port for node in self.nodes if node.running)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Move:
    """The keys of a slot that is on its way."""

    def __init__(self, source: redis.Redis, slot: int, to: RedisProc) -> None:
        self._source = source
        self._slot = slot
        self._to = to

    def keys(self, count: int) -> int:
        """Send the next `count` keys; how many there were."""
        names: Any = _ask(self._source, "CLUSTER GETKEYSINSLOT", self._slot, count)
        self.named(*names)
        return len(names)

    def named(self, *keys: bytes | str) -> None:
        """Send just these keys."""
        if keys:
            _ask(self._source, "MIGRATE", HOST, self._to.port, "", 0, _MIGRATE_MS, "KEYS", *keys)


def _holds(word: str, slot: int) -> bool:
    first, _, last = word.partition("-")
    return int(first) <= slot <= int(last or first)


def _nodes(node: RedisProc) -> list[str]:
    with node.client(timeout_s=2) as client:
        client.response_callbacks.clear()
        answer: Any = _ask(client, "CLUSTER NODES")
    return [line for line in _raw(answer).decode().splitlines() if line]


def _raw(answer: Any) -> bytes:
    """A bulk reply as it came: redis-py reads some into tables of its own."""
    if isinstance(answer, dict):
        return "\r\n".join(f"{name}:{value}" for name, value in answer.items()).encode()
    return answer if isinstance(answer, bytes) else str(answer).encode()


def _answers(node: RedisProc) -> bool:
    if not node.running:
        return False
    try:
        with node.client(timeout_s=1) as client:
            return bool(client.ping())
    except DOWN:
        return False


def _ask(client: redis.Redis, *command: Any) -> Any:
    return client.execute_command(*command)  # type: ignore[no-untyped-call]
