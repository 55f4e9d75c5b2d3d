"""A cluster's client for a thread: the same rules as on the loop, and a map that it can mend by itself."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import redis
import redis.exceptions

from streamlib.redisio.address import Host
from streamlib.redisio.clients import ClientMaker
from streamlib.redisio.failures import CLIENT_ERRORS, SetupError
from streamlib.redisio.routing import (
    ASK_S,
    REDIRECTS,
    REFRESH_S,
    UNREACHABLE,
    SlotMap,
    candidates,
    first_key,
    no_map,
    slot_of,
    target,
)


class ClusterThreadClient:
    """Shares the map with the loop's clients, but does not need the loop: it may be blocked."""

    def __init__(self, slots: SlotMap, seeds: Sequence[Host], maker: ClientMaker, timeout_s: float) -> None:
        self._map = slots
        self._seeds = seeds
        self._maker = maker
        self._timeout_s = timeout_s
        self._nodes: dict[Host, redis.Redis] = {}
        self._refreshed = 0.0

    def execute_command(self, *command: Any) -> Any:
        if not self._map.primaries:
            self._refresh(None)
        key = first_key(command)
        if key is None:
            return self._send(self._map.primaries[0], command)
        slot, asking = slot_of(key), False
        host = self._owner(slot)
        for left in reversed(range(REDIRECTS + 1)):
            try:
                return self._send(host, command, asking)
            except redis.exceptions.MovedError as error:
                host, asking = target(error, host), False
                self._map.moved(slot, host)
                if not left:
                    raise
            except redis.exceptions.AskError as error:
                host, asking = target(error, host), True
                if not left:
                    raise
        return None

    def close(self) -> None:
        for node in self._nodes.values():
            node.close()
        self._nodes.clear()

    def _owner(self, slot: int) -> Host:
        try:
            return self._map.owner(slot)
        except redis.exceptions.ClusterDownError:  # it may be served again by now
            self._refresh_quietly(None)
            return self._map.owner(slot)

    def _send(self, host: Host, command: tuple[Any, ...], asking: bool = False) -> Any:
        node = self._nodes.get(host)
        if node is None:
            node = self._nodes[host] = self._maker.node_sync(host, self._timeout_s)
        try:
            return _ask(node, command) if asking else node.execute_command(*command)  # type: ignore[no-untyped-call]
        except UNREACHABLE:
            self._refresh_quietly(host)
            raise
        except redis.exceptions.ClusterDownError:
            self._refresh_quietly(None)
            raise

    def _refresh_quietly(self, suspect: Host | None) -> None:
        """The command that failed has an error of its own; that the map is not to be had either is no news."""
        if time.monotonic() - self._refreshed < REFRESH_S:
            return
        try:
            self._refresh(suspect)
        except CLIENT_ERRORS:
            return

    def _refresh(self, suspect: Host | None) -> None:
        errors: list[Exception] = []
        try:
            for host in candidates(self._seeds, self._map.primaries, suspect):
                client = self._maker.node_sync(host, min(self._timeout_s, ASK_S))
                try:
                    if self._map.read(client.execute_command("CLUSTER", "SLOTS"), host):  # type: ignore[no-untyped-call]
                        return
                    errors.append(SetupError(f"{host[0]}:{host[1]} serves no slot and knows nobody who does"))
                except CLIENT_ERRORS as error:
                    errors.append(no_map(host, error))
                finally:
                    client.close()
        finally:
            self._refreshed = time.monotonic()
        raise errors[-1]


def _ask(node: redis.Redis, command: tuple[Any, ...]) -> Any:
    """ASKING counts for the next command of its own connection only."""
    connection = node.connection_pool.get_connection()
    try:
        connection.send_command("ASKING")  # type: ignore[no-untyped-call]
        connection.read_response()
        connection.send_command(*command)  # type: ignore[no-untyped-call]
        return connection.read_response()
    finally:
        node.connection_pool.release(connection)
