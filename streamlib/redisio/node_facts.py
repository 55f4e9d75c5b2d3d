"""What one server tells about how safely it keeps what it is given; None and "" where it does not tell."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from msgspec import Struct

from streamlib.redisio.address import Host
from streamlib.redisio.failures import CLIENT_ERRORS
from streamlib.redisio.scripts import Executes
from streamlib.redisio.server import ServerInfo, allowed, config, number, open_user, parse_info, server_info

_SETTINGS = (
    "maxmemory-policy", "appendfsync", "min-replicas-to-write", "min-replicas-max-lag", "timeout", "tcp-keepalive",
    "client-output-buffer-limit", "enable-debug-command",
)  # fmt: skip


class Copy(Struct, frozen=True):
    """A replica as its primary sees it; `lag_s` is the time since it last said how far it is."""

    host: Host
    state: str
    lag_s: int


class BufferLimit(Struct, frozen=True):
    """When the server closes the connection of a client that does not fetch its replies; 0 for never."""

    hard_bytes: int
    soft_bytes: int
    soft_s: int


class NodeFacts(Struct, frozen=True, kw_only=True):
    """One server. `where` is shown to people; `primary` tells that it was reached as one; `error` is set, and all else
    unknown, where it does not answer; `denied` names the commands that it refused us."""

    where: str
    primary: bool = True
    error: str = ""
    denied: tuple[str, ...] = ()
    info: ServerInfo = ServerInfo()
    appendfsync: str = ""
    aof_written: bool | None = None
    aof_rewritten: bool | None = None
    snapshot_taken: bool | None = None
    used_bytes: int | None = None
    machine_bytes: int | None = None
    copies: tuple[Copy, ...] = ()
    good_copies: int | None = None
    min_copies: int | None = None
    """How many replicas must be near for the server to take writes; 0 also where a setting beside it turns it off."""
    max_lag_s: int | None = None
    link_up: bool | None = None
    idle_timeout_s: int | None = None
    keepalive_s: int | None = None
    buffer_limit: BufferLimit | None = None
    debug_allowed: str = ""
    clock_ahead_ms: float | None = None
    """Of the server, before this machine's."""
    clock_unsure_ms: float = 0.0


async def look_at(
    lane: Executes, where: str, address: str = "", *, primary: bool = True, now_s: Callable[[], float] = time.time
) -> NodeFacts:
    """Ask one server about itself. Does not raise for one that does not answer or denies something."""
    try:
        return await _look_at(lane, where, address, primary, now_s)
    except CLIENT_ERRORS as error:
        return NodeFacts(where=where, primary=primary, error=str(error) or type(error).__name__)


async def _look_at(lane: Executes, where: str, address: str, primary: bool, now_s: Callable[[], float]) -> NodeFacts:
    told = parse_info(await allowed(lane, "INFO"))
    begun_s = now_s()  # the connection stands by now, so that its making is no part of the doubt
    moment = await allowed(lane, "TIME")
    ended_s = now_s()
    settings = await config(lane, *_SETTINGS)
    default_user = await allowed(lane, "ACL", "GETUSER", "default")
    answers = {"INFO": told, "CONFIG GET": settings, "ACL GETUSER": default_user, "TIME": moment}
    policy = told.get("maxmemory_policy") or settings.get("maxmemory-policy", "")
    return NodeFacts(
        where=where,
        primary=primary,
        denied=tuple(name for name, answer in answers.items() if not answer),
        info=server_info(address, told, policy, open_user(default_user)),
        appendfsync=settings.get("appendfsync", ""),
        aof_written=_is_ok(told, "aof_last_write_status"),
        aof_rewritten=_is_ok(told, "aof_last_bgrewrite_status"),
        snapshot_taken=_is_ok(told, "rdb_last_bgsave_status"),
        used_bytes=number(told.get("used_memory")),
        machine_bytes=number(told.get("total_system_memory")),
        copies=_copies(told),
        good_copies=number(told.get("min_slaves_good_slaves")),
        min_copies=0 if settings.get("min-replicas-max-lag") == "0" else number(settings.get("min-replicas-to-write")),
        max_lag_s=number(settings.get("min-replicas-max-lag")),
        link_up=told["master_link_status"] == "up" if "master_link_status" in told else None,
        idle_timeout_s=number(settings.get("timeout")),
        keepalive_s=number(settings.get("tcp-keepalive")),
        buffer_limit=_buffer_limit(settings.get("client-output-buffer-limit", "")),
        debug_allowed=settings.get("enable-debug-command", ""),
        clock_ahead_ms=_server_ms(moment) - (begun_s + ended_s) * 500 if isinstance(moment, list) else None,
        clock_unsure_ms=(ended_s - begun_s) * 500,
    )


def _is_ok(told: Mapping[str, str], name: str) -> bool | None:
    return told[name] == "ok" if name in told else None


def _copies(told: Mapping[str, str]) -> tuple[Copy, ...]:
    found = []
    for position in range(number(told.get("connected_slaves")) or 0):
        pairs = (part.partition("=") for part in told.get(f"slave{position}", "").split(","))
        about = {name: value for name, _, value in pairs}
        if "ip" in about:
            host = (about["ip"], number(about.get("port")) or 0)
            found.append(Copy(host, about.get("state", ""), number(about.get("lag")) or 0))
    return tuple(found)


def _buffer_limit(text: str) -> BufferLimit | None:
    """That of normal clients: "normal 0 0 0 slave 268435456 67108864 60 ..."."""
    words = text.split()
    if "normal" not in words:
        return None
    at = words.index("normal")
    hard_bytes, soft_bytes, soft_s = (number(word) or 0 for word in words[at + 1 : at + 4])
    return BufferLimit(hard_bytes, soft_bytes, soft_s)


def _server_ms(moment: list[bytes]) -> float:
    return int(moment[0]) * 1000 + int(moment[1]) / 1000
