"""Which node of a cluster answers a command: the key it is routed by, and the map of the slots."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import redis.exceptions
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from streamlib.redisio.address import Host
from streamlib.redisio.failures import SetupError

SLOTS: int = REDIS_CLUSTER_HASH_SLOTS
REDIRECTS = 5
REFRESH_S = 0.1
"""A failing node is no reason to ask for the map more often than so."""
ASK_S = 1.0
UNREACHABLE = (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError)
_KEYLESS = frozenset({
    "ACL", "ASKING", "AUTH", "BGREWRITEAOF", "BGSAVE", "CLIENT", "CLUSTER", "COMMAND", "CONFIG", "DBSIZE", "DEBUG",
    "ECHO", "FLUSHALL", "FLUSHDB", "FUNCTION", "HELLO", "INFO", "KEYS", "LASTSAVE", "LATENCY", "MODULE", "PING",
    "PUBLISH", "RANDOMKEY", "RESET", "ROLE", "SAVE", "SCAN", "SCRIPT", "SELECT", "SHUTDOWN", "SLOWLOG", "TIME",
    "WAIT", "WAITAOF",
})  # fmt: skip
_KEY_BEHIND_COUNT = frozenset({"EVAL", "EVALSHA", "EVAL_RO", "EVALSHA_RO", "FCALL", "FCALL_RO"})
_KEY_BEHIND_VERB = frozenset({"XGROUP", "XINFO", "OBJECT", "MEMORY"})
_KEY_BEHIND_STREAMS = frozenset({"XREAD", "XREADGROUP"})


def first_key(command: Sequence[Any]) -> Any:
    """The first key of a command, by which it is routed; None where it has none."""
    name = str(command[0]).upper()
    if name in _KEYLESS:
        return None
    if name in _KEY_BEHIND_COUNT:
        at = 3 if int(command[2]) else 0
    elif name in _KEY_BEHIND_STREAMS:
        at = next(i for i, word in enumerate(command) if word in ("STREAMS", b"STREAMS", "streams")) + 1
    else:
        at = 2 if name in _KEY_BEHIND_VERB else 1
    return command[at] if 0 < at < len(command) else None


def slot_of(key: Any) -> int:
    found: int = key_slot(key if isinstance(key, bytes) else str(key).encode())
    return found


class SlotMap:
    """Which primary serves which slot, as last told. One for all clients of a process; replaced whole, so threads may
    read it while it changes."""

    def __init__(self) -> None:
        self.owners: list[Host | None] = []
        self.primaries: tuple[Host, ...] = ()

    def read(self, reply: Any, asked: Host) -> bool:
        """Take over what CLUSTER SLOTS answered; False if that node knows of no slot (it is new, or was wiped)."""
        owners: list[Host | None] = [None] * SLOTS
        for first, last, primary, *_ in reply:
            host = primary[0].decode() if primary[0] else ""
            # Nodes that do not know their own address leave it out: it is the one we reached them by.
            owner = (host if host not in ("", "?") else asked[0], int(primary[1]))
            owners[first : last + 1] = [owner] * (last + 1 - first)
        primaries = tuple(sorted({owner for owner in owners if owner is not None}))
        if primaries:
            self.owners, self.primaries = owners, primaries
        return bool(primaries)

    def moved(self, slot: int, owner: Host) -> None:
        """One slot has another owner from now on."""
        self.owners[slot] = owner
        if owner not in self.primaries:
            self.primaries = (*self.primaries, owner)

    def owner(self, slot: int) -> Host:
        """Raises ClusterDownError where no node serves the slot."""
        found = self.owners[slot]
        if found is None:
            raise redis.exceptions.ClusterDownError(f"CLUSTERDOWN slot {slot} is served by no node")
        return found

    @property
    def uncovered(self) -> int:
        """How many slots no node serves."""
        return self.owners.count(None) if self.owners else SLOTS


def target(error: redis.exceptions.AskError, answered: Host) -> Host:
    """Where MOVED and ASK point to; without a host it is the one that answered."""
    host, port = error.node_addr
    return (host or answered[0], int(port))


def candidates(seeds: Iterable[Host], known: Iterable[Host], suspect: Host | None) -> list[Host]:
    """Whom to ask for the map: the primaries we know in any order, then those of the address; a suspect comes last."""
    found = list(known)
    random.shuffle(found)
    found = list(dict.fromkeys([*found, *seeds]))
    return sorted(found, key=lambda host: host == suspect)


def no_map(host: Host, error: Exception) -> Exception:
    """The error of a node that did not tell the map, in words of ours where they say more."""
    if "cluster support disabled" in str(error):
        return SetupError(f"{host[0]}:{host[1]} is no node of a cluster; for one server use redis://")
    return error
