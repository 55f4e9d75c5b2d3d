"""Sends each command to the one node of a cluster that serves its key; what one node lacks disturbs no other."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Mapping
from typing import Any

import redis.asyncio
import redis.exceptions

from streamlib.redisio.address import Address, Host
from streamlib.redisio.clients import ClientMaker
from streamlib.redisio.cluster_thread import ClusterThreadClient
from streamlib.redisio.failures import CLIENT_ERRORS, SetupError
from streamlib.redisio.routing import (
    ASK_S,
    REDIRECTS,
    REFRESH_S,
    SLOTS,
    UNREACHABLE,
    SlotMap,
    candidates,
    first_key,
    no_map,
    slot_of,
    target,
)


class Cluster:
    """The nodes of one cluster and the map of its slots, for all clients of a process."""

    def __init__(self, address: Address, maker: ClientMaker, timeout_s: float) -> None:
        self.map = SlotMap()
        self.seeds = address.hosts
        self.maker = maker
        self.timeout_s = timeout_s
        self._refreshing: asyncio.Task[None] | None = None
        self._refreshed = 0.0
        self._clients: weakref.WeakSet[ClusterClient] = weakref.WeakSet()

    def client(self, timeout_s: float, key: str | None = None) -> ClusterClient:
        """A client for any key; with `key`, one whose commands without a key go where that key's went."""
        client = ClusterClient(self, timeout_s, key)
        self._clients.add(client)
        return client

    async def known(self) -> None:
        """Wait for the first map. Raises what the client raises, and SetupError where there is no cluster."""
        while not self.map.primaries:
            await self.refresh()

    async def refresh(self) -> None:
        """Ask for the map; who asks at the same time shares the answer. Raises as `known`."""
        await asyncio.shield(self._refresh(None))

    def refresh_soon(self, suspect: Host | None) -> None:
        """Ask for the map beside everything else, at most every 100 ms."""
        if self._refreshing is None or self._refreshing.done():
            self._refresh(suspect).add_done_callback(_heard)

    def _refresh(self, suspect: Host | None) -> asyncio.Task[None]:
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._ask(suspect), name="cluster map")
        return self._refreshing

    async def _ask(self, suspect: Host | None) -> None:
        await asyncio.sleep(max(self._refreshed + REFRESH_S - time.monotonic(), 0))
        errors: list[Exception] = []
        try:
            for host in candidates(self.seeds, self.map.primaries, suspect):
                client = self.maker.node(host, min(self.timeout_s, ASK_S))
                try:
                    if self.map.read(await client.execute_command("CLUSTER", "SLOTS"), host):  # type: ignore[no-untyped-call]
                        break
                    errors.append(SetupError(f"{host[0]}:{host[1]} serves no slot and knows nobody who does"))
                except CLIENT_ERRORS as error:
                    errors.append(no_map(host, error))
                finally:
                    await client.aclose()
            else:
                raise errors[-1]
        finally:
            self._refreshed = time.monotonic()
        for one in list(self._clients):
            await one.leave_others(self.map.primaries)

    async def close(self) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)


class ClusterClients:
    """Clients of a cluster."""

    one_node = False
    settled = None

    def __init__(self, address: Address, maker: ClientMaker, timeout_s: float) -> None:
        self._cluster = Cluster(address, maker, timeout_s)

    def client(self, timeout_s: float, key: str | None = None) -> ClusterClient:
        return self._cluster.client(timeout_s, key)

    def sync_client(self, timeout_s: float) -> ClusterThreadClient:
        return ClusterThreadClient(self._cluster.map, self._cluster.seeds, self._cluster.maker, timeout_s)

    async def nodes(self, timeout_s: float) -> Mapping[str, redis.asyncio.Redis]:
        """Asks for the map anew. Raises SetupError where slots are served by no node, and what the client raises."""
        await self._cluster.refresh()
        if missing := self._cluster.map.uncovered:
            raise SetupError(
                f"{missing} of the cluster's {SLOTS} slots are served by no node; assign them (CLUSTER ADDSLOTSRANGE, "
                "or redis-cli --cluster fix)"
            )
        return {
            f"{host}:{port}": self._cluster.maker.node((host, port), timeout_s)
            for host, port in self._cluster.map.primaries
        }

    def beside(self, host: Host, timeout_s: float) -> redis.asyncio.Redis:
        return self._cluster.maker.node(host, timeout_s)

    async def close(self) -> None:
        await self._cluster.close()


class ClusterClient:
    """Looks like a client of one server: a command goes to the primary that serves its first key.

    A node that does not answer raises for its own commands; nobody else's connection is touched. MOVED and ASK mean
    that nothing was done, so the command is sent again where they point to; ASKING and what it allows go on one
    connection. Replicas are never asked.
    """

    def __init__(self, cluster: Cluster, timeout_s: float, key: str | None) -> None:
        self._cluster = cluster
        self._map = cluster.map
        self._timeout_s = timeout_s
        self._home = None if key is None else slot_of(key)
        self._last: Host | None = None
        self._turn = 0
        self._nodes: dict[Host, redis.asyncio.Redis] = {}

    async def execute_command(self, *command: Any) -> Any:
        if not self._map.primaries:
            await self._cluster.known()
        key = first_key(command)
        if key is None:
            return await self._send(self._keyless(), command)
        slot = slot_of(key)
        host = self._owner(slot)
        asking = False
        for redirect in range(REDIRECTS + 1):
            try:
                found = await self._send(host, command, asking)
            except redis.exceptions.MovedError as error:
                host, asking = target(error, host), False
                self._map.moved(slot, host)
                self._cluster.refresh_soon(None)
                if redirect == REDIRECTS:
                    raise
            except redis.exceptions.AskError as error:
                host, asking = target(error, host), True
                if redirect == REDIRECTS:
                    raise
            else:
                self._last = host
                return found
        return None

    async def _send(self, host: Host, command: tuple[Any, ...], asking: bool = False) -> Any:
        node = self._nodes.get(host)
        if node is None:
            node = self._nodes[host] = self._cluster.maker.node(host, self._timeout_s)
        try:
            if asking:
                return await _ask(node, command)
            return await node.execute_command(*command)  # type: ignore[no-untyped-call]
        except UNREACHABLE:
            self._turn += 1
            self._cluster.refresh_soon(host)
            raise
        except redis.exceptions.ClusterDownError:
            self._cluster.refresh_soon(None)
            raise

    def _keyless(self) -> Host:
        """Where the last command went or the home slot is; for a client of all keys any node, while it answers."""
        if self._home is None:
            return self._map.primaries[self._turn % len(self._map.primaries)]
        return self._last or self._owner(self._home)

    def _owner(self, slot: int) -> Host:
        """The slot's primary. Where there was none, it is looked for anew: it may be served again by now."""
        try:
            return self._map.owner(slot)
        except redis.exceptions.ClusterDownError:
            self._cluster.refresh_soon(None)
            raise

    async def leave_others(self, primaries: tuple[Host, ...]) -> None:
        """Cut the connections to nodes that are no primaries any more, whoever waits on them."""
        for host in [host for host in self._nodes if host not in primaries]:
            node = self._nodes.pop(host)
            if self._last == host:
                self._last = None
            await node.aclose()

    async def aclose(self) -> None:
        nodes = list(self._nodes.values())
        self._nodes.clear()
        for node in nodes:
            await node.aclose()


async def _ask(node: redis.asyncio.Redis, command: tuple[Any, ...]) -> Any:
    """ASKING counts for the next command of its own connection only."""
    connection = await node.connection_pool.get_connection()  # type: ignore[no-untyped-call]
    try:
        await connection.send_command("ASKING")
        await connection.read_response()
        await connection.send_command(*command)
        return await connection.read_response()
    finally:
        await node.connection_pool.release(connection)


def _heard(task: asyncio.Task[None]) -> None:
    """The command that failed has raised; that the map is not to be had either is no news."""
    if not task.cancelled():
        task.exception()
