"""A primary with replicas, watched by sentinels: real processes that a test fails over, kills and freezes."""

import contextlib
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis

from tests.helpers.servers import HOST, RedisProc
from tests.helpers.waiting import wait_until

DOWN = (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError)
SETTLED_S = 60.0
_QUICK_MS = 200
"""How often sentinels greet each other and ask the servers; the default is up to 10 s, which would rule every test."""


class SentinelProc(RedisProc):
    """A sentinel: the same binary with a configuration file, which it rewrites as it learns."""

    def __init__(self, kind: str, directory: Path, monitor: list[str]) -> None:
        super().__init__(kind, directory)
        self._monitor = monitor

    def _command(self) -> list[str]:
        path = self.directory / "sentinel.conf"
        if not path.exists() or f"port {self.port}" not in path.read_text().splitlines():
            # The dir must stay short of quotes: a sentinel writes this line again as it is.
            lines = [f"port {self.port}", f"bind {HOST}", f"dir {self.directory}", "protected-mode no", *self._monitor]
            path.write_text("\n".join(lines) + "\n")
        return [str(self._binary), str(path), "--sentinel"]


class SentinelTopology:
    """`replicas` copies of one primary and `sentinels` watchers, which agree by majority.

    With `aof` the servers keep their data through a kill. Whoever is the primary is asked of the sentinels. As a
    context manager it starts on entry and always ends every process.
    """

    def __init__(
        self,
        directory: Path,
        *,
        kind: str = "valkey",
        replicas: int = 2,
        sentinels: int = 3,
        down_after_ms: int = 800,
        failover_timeout_ms: int = 2_000,
        aof: bool = False,
        conf: dict[str, str] | None = None,
        name: str = "streams",
    ) -> None:
        self.name = name
        self.down_after_ms = down_after_ms
        self._directory = directory
        self._kind = kind
        self._failover_timeout_ms = failover_timeout_ms
        # Full copies are sent at once instead of after 5 s; the old primary's writes end soon after it is alone.
        self._conf = {"repl-diskless-sync-delay": "0", "repl-timeout": "10", **(conf or {})}
        self.servers = [self._server(number, aof) for number in range(1 + replicas)]
        self._quorum = sentinels // 2 + 1
        self._many_sentinels = sentinels
        self.sentinels: list[SentinelProc] = []

    def _server(self, number: int, aof: bool) -> RedisProc:
        return RedisProc(self._kind, self._directory / f"server-{number}", aof=aof, conf=self._conf)

    @property
    def url(self) -> str:
        return f"sentinel://{','.join(f'{HOST}:{one.port}' for one in self.sentinels)}/{self.name}"

    def start(self) -> Self:
        """Start everything, and wait until all know of all."""
        first, *others = self.servers
        first.start()
        for other in others:
            other.conf["replicaof"] = f"{HOST} {first.port}"
            other.start()
        monitor = [
            f"sentinel monitor {self.name} {HOST} {first.port} {self._quorum}",
            f"sentinel down-after-milliseconds {self.name} {self.down_after_ms}",
            f"sentinel failover-timeout {self.name} {self._failover_timeout_ms}",
            f"sentinel parallel-syncs {self.name} {len(self.servers)}",
        ]
        for number in range(self._many_sentinels):
            watcher = SentinelProc(self._kind, self._directory / f"sentinel-{number}", monitor)
            self.sentinels.append(watcher.start())
            self._quicken(watcher)
        self.wait_until_whole()
        return self

    def close(self) -> None:
        """End every process, frozen ones too."""
        for process in [*self.sentinels, *self.servers]:
            process.terminate()

    # -- who is who -----------------------------------------------------------------------------------------------

    def primary_server(self) -> RedisProc:
        """The server that the sentinels name as primary now."""
        port = wait_until(self._primary_port, SETTLED_S, what="a sentinel names the primary", ignore=DOWN)
        return next(server for server in self.servers if server.port == port)

    def primary(self, *, timeout_s: float = 10) -> redis.Redis:
        """A client of the primary: bytes, RESP2 reply shapes, no silent resends."""
        return self.primary_server().client(timeout_s=timeout_s)

    def replicas(self) -> list[RedisProc]:
        first = self.primary_server()
        return [server for server in self.servers if server is not first]

    # -- faults ---------------------------------------------------------------------------------------------------

    def failover(self) -> RedisProc:
        """SENTINEL FAILOVER: a planned change of the primary. The new one, as soon as the sentinels name it."""
        old = self.primary_server()
        not_now = (redis.exceptions.ResponseError, *DOWN)  # INPROG, NOGOODSLAVE: the one before is not over yet

        def accepted() -> bool:
            with self.sentinels[0].client(timeout_s=5) as sentinel:
                return bool(_ask(sentinel, "SENTINEL FAILOVER", self.name))

        wait_until(accepted, SETTLED_S, every=0.1, what="the sentinels accept a failover", ignore=not_now)
        return self.wait_for_other_primary(old)

    def kill_primary(self, *, wait: bool = True) -> RedisProc:
        """SIGKILL the primary; the dead server, for `restart`. Waits for the next primary unless told not to."""
        old = self.primary_server()
        old.kill9()
        if wait:
            self.wait_for_other_primary(old)
        return old

    def stop_primary(self, *, wait: bool = True) -> RedisProc:
        """SIGSTOP the primary: its connections stay open and nothing answers. The frozen server, for `cont()`."""
        old = self.primary_server()
        old.stop()
        if wait:
            self.wait_for_other_primary(old)
        return old

    def restart(self, server: RedisProc) -> None:
        """Bring a dead server back on its port, as a replica of who is primary now."""
        first = self.primary_server()
        server.conf.pop("replicaof", None)
        if server is not first:
            server.conf["replicaof"] = f"{HOST} {first.port}"
        server.start()

    def wait_for_other_primary(self, old: RedisProc) -> RedisProc:
        """Wait until most sentinels name another primary than `old`, and it says so itself; the new one."""

        def other() -> RedisProc | None:
            ports = [port for port in self._named_ports() if port != old.port]
            if len(ports) < self._quorum:
                return None
            server = next(one for one in self.servers if one.port == ports[0])
            with server.client(timeout_s=1) as client:
                return server if client.info("replication")["role"] == "master" else None

        what = f"another primary than the one on port {old.port}"
        found = wait_until(other, SETTLED_S, what=what, ignore=DOWN)
        assert found is not None
        return found

    def wait_until_whole(self) -> None:
        """Wait until every server runs and copies the one primary, and every sentinel knows all others."""
        wait_until(self._whole, SETTLED_S, every=0.05, what="primary, replicas and sentinels agree", ignore=DOWN)

    def flush(self) -> None:
        """Empty the data, and wait until the replicas have done so too."""
        with self.primary() as client:
            client.flushall()
            client.wait(len(self.servers) - 1, 10_000)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _quicken(self, watcher: SentinelProc) -> None:
        periods = ("INFO-PERIOD", "PING-PERIOD", "ASK-PERIOD", "PUBLISH-PERIOD")
        with watcher.client() as client:
            for period in periods:
                _ask(client, "SENTINEL DEBUG", period, _QUICK_MS)

    def _primary_port(self) -> int:
        ports = self._named_ports()
        return max(set(ports), key=ports.count) if ports else 0

    def _named_ports(self) -> list[int]:
        named: list[int] = []
        for watcher in self.sentinels:
            with contextlib.suppress(*DOWN), watcher.client(timeout_s=1) as client:
                answer: Any = _ask(client, "SENTINEL GET-MASTER-ADDR-BY-NAME", self.name)
                named.append(int(answer[1]))
        return named

    def _whole(self) -> bool:
        if len(set(self._named_ports())) != 1:
            return False
        first = self.primary_server()
        with first.client(timeout_s=1) as client:
            state: Any = client.info("replication")
        copies = [row["state"] for name, row in state.items() if name.startswith("slave") and isinstance(row, dict)]
        if state["role"] != "master" or copies != ["online"] * (len(self.servers) - 1):
            return False
        return all(self._knows_all(watcher) for watcher in self.sentinels)

    def _knows_all(self, watcher: SentinelProc) -> bool:
        with watcher.client(timeout_s=1) as client:
            row = _row(_ask(client, "SENTINEL MASTER", self.name))
            replicas: Any = _ask(client, "SENTINEL REPLICAS", self.name)
        if (row["flags"], row["num-other-sentinels"]) != ("master", str(len(self.sentinels) - 1)):
            return False
        found = [_row(one) for one in replicas]
        fine = [one for one in found if one["flags"] == "slave" and one["master-link-status"] == "ok"]
        return len(fine) == len(found) == len(self.servers) - 1

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


def _row(flat: Any) -> dict[str, str]:
    if isinstance(flat, dict):
        return {_text(name): _text(value) for name, value in flat.items()}
    return {_text(flat[i]): _text(flat[i + 1]) for i in range(0, len(flat), 2)}


def _text(raw: Any) -> str:
    return raw.decode() if isinstance(raw, bytes) else str(raw)


def _ask(client: redis.Redis, *command: Any) -> Any:
    return client.execute_command(*command)  # type: ignore[no-untyped-call]
