"""What can happen to workers, servers and the network while a soak runs: each fault once or for a while."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from redis.crc import key_slot

from tests.chaos.spread import LEASE_MS
from tests.helpers.cluster import ClusterTopology
from tests.helpers.proxy import ChaosProxy
from tests.helpers.sentinel import SentinelTopology
from tests.helpers.servers import RedisProc
from tests.helpers.workers import WorkerProc

LEAST_S, MOST_S = 1.0, 5.0
"""From the begin of one fault to that of the next, unless it takes longer."""
STILL_S = (0.3, 2.5)
"""How long a server or a network stands still, seconds."""
AWAY_S = (0.5, 4.0)
"""How long a killed node of a cluster stays away, seconds."""

Kinds = dict[str, Callable[[], str]]
"""What a fault is called -> does it, and says whom it struck. All of it is over when it returns."""


class Fault(Struct, frozen=True):
    """One fault: when it began, seconds from the start, what it was, whom it struck, how long it took."""

    at_s: float
    kind: str
    target: str
    took_s: float


class Nemesis:
    """Does one fault after another, each kind once before any comes again; each is a line of JSON in `history`."""

    def __init__(self, kinds: Kinds, rng: random.Random, history: Path) -> None:
        self._kinds = kinds
        self._rng = rng
        self._history = history
        self.happened: list[Fault] = []

    def run(self, seconds: float) -> None:
        started_s = time.monotonic()
        coming: list[str] = []
        while (at_s := time.monotonic() - started_s) < seconds:
            if not coming:
                coming = self._rng.sample(sorted(self._kinds), len(self._kinds))
            kind = coming.pop()
            target = self._kinds[kind]()
            self.happened.append(Fault(at_s, kind, target, time.monotonic() - started_s - at_s))
            with self._history.open("ab") as history:
                history.write(msgspec.json.encode(self.happened[-1]) + b"\n")
            next_s = started_s + at_s + self._rng.uniform(LEAST_S, MOST_S)
            time.sleep(max(next_s - time.monotonic(), 0.0))


class WorkerFaults:
    """Workers that die, freeze and are replaced."""

    def __init__(self, workers: Sequence[WorkerProc], rng: random.Random) -> None:
        self._workers = workers
        self._rng = rng
        self.kinds: Kinds = {
            "worker killed": self._kill,
            "worker frozen past its lease": self._freeze,
            "worker stopped and started": self._restart,
        }

    def _draw(self) -> tuple[str, WorkerProc]:
        number = self._rng.randrange(len(self._workers))
        worker = self._workers[number]
        assert worker.running, f"a worker has ended by itself:\n{worker.log()[-4000:]}"
        return f"worker {number}", worker

    def _kill(self) -> str:
        name, worker = self._draw()
        worker.kill9()
        worker.start()
        return name

    def _freeze(self) -> str:
        name, worker = self._draw()
        worker.stop()
        time.sleep(self._rng.uniform(1.1, 2.0) * LEASE_MS / 1000)
        worker.cont()
        return name

    def _restart(self) -> str:
        name, worker = self._draw()
        worker.wait_ready().term()
        assert worker.wait(60) == 0, worker.log()[-4000:]
        worker.start()
        return name


class ServerFaults:
    """What any server may suffer; `server` says which one, each time anew."""

    def __init__(self, server: Callable[[], RedisProc], names: dict[int, str], rng: random.Random) -> None:
        self._server = server
        self._names = names
        self._rng = rng
        self.kinds: Kinds = {
            "scripts forgotten": self._forget_scripts,
            "connections killed": self._kill_connections,
            "server out of memory": self._fill_memory,
        }

    def _ask(self, *commands: tuple[Any, ...], pause_s: float = 0.0) -> str:
        server = self._server()
        with server.client() as client:
            for number, command in enumerate(commands):
                time.sleep(pause_s if number else 0.0)
                client.execute_command(*command)
        return self._names[server.port]

    def _forget_scripts(self) -> str:
        return self._ask(("SCRIPT FLUSH",))

    def _kill_connections(self) -> str:
        return self._ask(("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"))

    def _fill_memory(self) -> str:
        still_s = self._rng.uniform(*STILL_S)
        return self._ask(("CONFIG SET", "maxmemory", "1"), ("CONFIG SET", "maxmemory", "0"), pause_s=still_s)


class OneServerFaults:
    """One server behind bad networks: a road for each worker, and the last one for the publisher."""

    def __init__(
        self, server: RedisProc, roads: Sequence[ChaosProxy], streams: Sequence[str], group: str, rng: random.Random
    ) -> None:
        self._server = server
        self._roads = roads
        self._streams = streams
        self._group = group
        self._rng = rng
        self.kinds: Kinds = {
            **ServerFaults(lambda: server, {server.port: "server"}, rng).kinds,
            "server killed": self._kill,
            "server frozen": self._freeze,
            "group destroyed": self._destroy_group,
            "reply cut": self._cut_reply,
            "reply lost": self._lose_reply,
            "connections reset": self._reset,
            "network slow": self._slow,
            "network silent": self._silence,
        }

    def _kill(self) -> str:
        self._server.kill9()
        self._server.start()
        return "server"

    def _freeze(self) -> str:
        self._server.stop()
        time.sleep(self._rng.uniform(*STILL_S))
        self._server.cont()
        return "server"

    def _destroy_group(self) -> str:
        stream = self._rng.choice(self._streams)
        with self._server.client() as client:
            client.xgroup_destroy(stream, self._group)
        return stream

    def _road(self) -> tuple[str, ChaosProxy]:
        number = self._rng.randrange(len(self._roads))
        return (f"worker {number}" if number < len(self._roads) - 1 else "publisher"), self._roads[number]

    def _cut_reply(self) -> str:
        name, road = self._road()
        road.cut_replies_after(self._rng.randrange(2_000))
        return name

    def _lose_reply(self) -> str:
        name, road = self._road()
        road.drop_next_reply(b"EVALSHA")
        return name

    def _reset(self) -> str:
        name, road = self._road()
        road.reset_all()
        return name

    def _slow(self) -> str:
        name, road = self._road()
        road.delay(self._rng.uniform(20, 300), jitter_ms=20)
        time.sleep(self._rng.uniform(*STILL_S))
        road.heal()
        return name

    def _silence(self) -> str:
        name, road = self._road()
        road.blackhole()
        time.sleep(self._rng.uniform(*STILL_S))
        road.heal()
        return name


class SentinelFaults:
    """A primary that is replaced, again and again; each is over when all servers are whole."""

    def __init__(self, topology: SentinelTopology, rng: random.Random) -> None:
        self._topology = topology
        names = {server.port: f"server {number}" for number, server in enumerate(topology.servers)}
        self._names = names
        self.kinds: Kinds = {
            **ServerFaults(topology.primary_server, names, rng).kinds,
            "failover ordered": self._fail_over,
            "primary killed": self._kill,
            "primary frozen": self._freeze,
        }

    def _fail_over(self) -> str:
        new = self._topology.failover()
        self._topology.wait_until_whole()
        return f"to {self._names[new.port]}"

    def _kill(self) -> str:
        old = self._topology.kill_primary()
        self._topology.restart(old)
        self._topology.wait_until_whole()
        return self._names[old.port]

    def _freeze(self) -> str:
        old = self._topology.stop_primary()
        old.cont()
        self._topology.wait_until_whole()
        return self._names[old.port]


class ClusterFaults:
    """Slots that move, nodes that go away and come back with their data."""

    def __init__(self, topology: ClusterTopology, streams: Sequence[str], rng: random.Random) -> None:
        self._topology = topology
        self._streams = streams
        self._rng = rng
        self._names = {node.port: f"node {number}" for number, node in enumerate(topology.nodes)}
        self.kinds: Kinds = {
            **ServerFaults(self._draw, self._names, rng).kinds,
            "slot moved": self._move_slot,
            "node killed": self._kill,
            "node frozen": self._freeze,
        }

    def _draw(self) -> RedisProc:
        return self._rng.choice(self._topology.nodes)

    def _move_slot(self) -> str:
        stream = self._rng.choice(self._streams)
        to = self._draw()
        self._topology.move_slot(key_slot(stream.encode()), to, at_once=100)
        return f"{stream} to {self._names[to.port]}"

    def _kill(self) -> str:
        node = self._draw()
        self._topology.kill(node, wait=False)
        time.sleep(self._rng.uniform(*AWAY_S))
        self._topology.restart(node)
        return self._names[node.port]

    def _freeze(self) -> str:
        node = self._draw()
        node.stop()
        time.sleep(self._rng.uniform(*STILL_S))
        node.cont()
        self._topology.wait_until_ok()
        return self._names[node.port]
