"""What a fault works with: a server for the library, one for what handlers did, workers, a publisher, a proxy."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from benchmarks.faults.deeds import RUNS
from benchmarks.faults.peers import Peer
from benchmarks.faults.runs import Runs
from tests.helpers.proxy import ChaosProxy
from tests.helpers.servers import RedisProc
from tests.helpers.waiting import wait_until
from tests.helpers.workers import ROOT, WorkerProc

READY_S = 60.0
_EVERY_S = 0.3
_NUMBERS = re.compile(r"[0-9a-f]{16,}|[0-9a-f-]{36}|\d{4,}")
Work = tuple[int, str, float]


class Rig(contextlib.ExitStack):
    """Everything of one run of one fault; all is gone on exit. Events below 0 are ours: they show who is awake."""

    def __init__(self, peer: Peer, directory: Path) -> None:
        super().__init__()
        self.peer = peer
        self.directory = directory
        self._pokes = 0

    def __enter__(self) -> Self:
        super().__enter__()
        self.server = self.enter_context(RedisProc("valkey", self.directory / "server"))
        effects = self.enter_context(RedisProc("valkey", self.directory / "effects"))
        self.client: Any = self.enter_context(self.server.client())
        self._effects: Any = self.enter_context(effects.client())
        self._effects_url = effects.url
        self._publisher = self.publisher()
        return self

    def proxy(self) -> ChaosProxy:
        return self.enter_context(ChaosProxy(self.server.url))

    def workers(self, count: int, url: str = "") -> list[WorkerProc]:
        """So many workers that have each handled an event of ours."""
        workers = [self._worker(url).start() for _ in range(count)]
        for worker in workers:
            self.callback(self.kill, worker)
        self.wait_awake(workers)
        return workers

    def wait_awake(self, workers: Sequence[WorkerProc]) -> None:
        """Raises AssertionError, with the end of a log, when one handles nothing."""
        wanted = {worker.pid for worker in workers}
        seen = len(self.runs().all)

        def awake() -> bool:
            for worker in workers:
                if not worker.running:
                    raise AssertionError(f"{self.peer.name} has ended: {worker.log()[-1500:]}")
            self.poke()
            time.sleep(_EVERY_S)
            return wanted <= {run.session for run in self.runs().all[seen:] if run.ended_ns}

        wait_until(awake, READY_S, what=f"{self.peer.name} handles events; {workers[0].log()[-1500:]}")

    def poke(self) -> None:
        """An event of ours."""
        self._pokes += 1
        self.publish([(-self._pokes, "work", 0.0)])

    def state(self, worker: WorkerProc, patience_s: float = 15) -> str:
        """exited, hung (it does not run an event of ours within `patience_s`) or runs."""
        self.poke()
        last, deadline = -self._pokes, time.monotonic() + patience_s
        while worker.running and time.monotonic() < deadline:
            if self.runs().ended([last]):
                return "runs"
            time.sleep(_EVERY_S)
        return "hung" if worker.running else "exited"

    @staticmethod
    def kill(worker: WorkerProc) -> None:
        """kill -9 to the worker and the processes it started, as when its container dies."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()

    def publisher(self, url: str = "") -> subprocess.Popen[str]:
        """A process that publishes; `url` leads it another way."""
        words = [self.peer.python, "-m", "benchmarks.faults.publish", self.peer.name]
        log = self.enter_context((self.directory / "publisher.log").open("ab"))
        publisher = subprocess.Popen(
            words, cwd=ROOT, env=os.environ | self._env(url), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
        )  # fmt: skip
        self.callback(publisher.__exit__, None, None, None)
        self.callback(publisher.kill)
        return publisher

    def publish(self, events: Sequence[Work], publisher: subprocess.Popen[str] | None = None) -> list[str]:
        """What came of each: "ok" or the class of the error. Raises RuntimeError when the publisher has ended."""
        process = publisher or self._publisher
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("a publisher has pipes")
        process.stdin.write(json.dumps(events) + "\n")
        process.stdin.flush()
        while line := process.stdout.readline():
            if line.startswith("["):  # a library may print lines of its own
                answers: list[str] = json.loads(line)
                return answers
        raise RuntimeError(
            f"the publisher of {self.peer.name} ended:\n{(self.directory / 'publisher.log').read_text()[-2000:]}"
        )

    def runs(self) -> Runs:
        return Runs.read(self._effects.lrange(RUNS, 0, -1))

    def pending(self) -> int | None:
        """Entries that groups of streams still hold; None where there is no stream."""
        found: list[int] = []
        for key in self.client.scan_iter(_type="stream"):
            found += [group["pending"] for group in self.client.xinfo_groups(key)]
        return sum(found) if found else None

    def kept(self, marker: bytes) -> str:
        """The keys that hold these bytes, with a star for what differs by event; "nothing" if there is none."""
        keys = {key.decode() for key in self.client.scan_iter() if marker in _bytes_of(self.client, key)}
        return ", ".join(sorted({_NUMBERS.sub("*", key) for key in keys})) or "nothing"

    def _worker(self, url: str) -> WorkerProc:
        return WorkerProc(
            self.peer.name,
            "",
            command=self.peer.command,
            cwd=self.directory,
            env=self._env(url),
            log_dir=self.directory,
        )

    def _env(self, url: str) -> dict[str, str]:
        url = url or self.server.url
        return {
            "PYTHONPATH": str(ROOT),
            "FAULTS_URL": url,
            "FAULTS_EFFECTS": self._effects_url,
            "STREAMLIB_REDIS_URL": url,
            "STREAMLIB_WORKER_LEASE_MS": "3000",
        }


class Supervisor:
    """Starts a worker again whenever its process has ended, as a service manager does; call `look` often."""

    def __init__(self, rig: Rig, worker: WorkerProc) -> None:
        self._rig = rig
        self._worker = worker
        self._restarts = 0

    def look(self) -> bool:
        """Never true, so that it may stand in a condition."""
        if not self._worker.running:
            self._rig.kill(self._worker)  # what it started may live
            self._worker.start()
            self._restarts += 1
        return False

    def seen(self, runs: Runs) -> int:
        """Restarts by this one, or by a library's own main process as far as the new process ran a handler."""
        return max(self._restarts, runs.processes() - self._rig.peer.processes)


def _bytes_of(client: Any, key: bytes) -> bytes:
    """Everything that a key holds, whatever its type."""
    read = {
        b"string": client.get,
        b"hash": client.hgetall,
        b"set": client.smembers,
        b"list": lambda name: client.lrange(name, 0, -1),
        b"zset": lambda name: client.zrange(name, 0, -1),
        b"stream": client.xrange,
    }[client.type(key)]
    return b" ".join(_flat(read(key)))


def _flat(value: Any) -> Iterator[bytes]:
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, dict):
        yield from _flat([*value.items()])
    elif value is not None:
        for one in value:
            yield from _flat(one)
