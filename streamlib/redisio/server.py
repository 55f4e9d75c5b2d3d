"""What kind of server this is, and whether it can keep our promises."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import urlsplit

import msgspec
import redis.exceptions
from msgspec import Struct

from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.failures import ErrorClass, classify
from streamlib.redisio.scripts import Executes
from streamlib.settings import Settings

MIN_REDIS = (7, 0)
MIN_VALKEY = (7, 2)
SAFE_POLICY = "noeviction"

_LOOPBACK = {"", "localhost", "127.0.0.1", "::1"}


class ServerInfo(Struct, frozen=True, kw_only=True):
    """What a server says of itself; None and "" where it does not tell. `address` is "" for the only primary."""

    address: str = ""
    kind: str = "redis"
    version: str = ""
    role: str = ""
    policy: str = ""
    maxmemory: int | None = None
    aof: bool | None = None
    cluster: bool = False
    replicas: int = 0
    read_only: bool = False
    default_user_open: bool | None = None

    @property
    def version_tuple(self) -> tuple[int, ...]:
        """(9, 1, 0); empty where the version is not known."""
        return tuple(int(part) for part in re.findall(r"\d+", self.version)[:3])

    def __str__(self) -> str:
        return f"{self.kind.capitalize()} {self.version or 'of unknown version'}"


class Finding(Struct, frozen=True):
    """One thing looked at. With a `fatal` one that is not `ok`, nothing is started."""

    check: str
    ok: bool
    detail: str
    fatal: bool


async def probe(door: RedisDoor) -> list[ServerInfo]:
    """Ask every primary about itself; what it denies stays unknown. Raises SetupError for a cluster with slots that
    nobody serves, and what the client raises."""
    async with door.nodes() as lanes:
        return [await _ask(address, lane) for address, lane in sorted(lanes.items())]


async def _ask(address: str, lane: Executes) -> ServerInfo:
    info = _parse(await _allowed(lane, "INFO"))
    policy = info.get("maxmemory_policy") or await _config(lane, "maxmemory-policy")
    valkey = info.get("valkey_version")
    return ServerInfo(
        address=address,
        kind="valkey" if valkey else info.get("server_name", "redis"),
        version=valkey or info.get("redis_version", ""),
        role=info.get("role", ""),
        policy=policy,
        maxmemory=_number(info.get("maxmemory")),
        aof=info["aof_enabled"] == "1" if "aof_enabled" in info else None,
        cluster=info.get("cluster_enabled") == "1",
        replicas=_number(info.get("connected_slaves")) or 0,
        read_only=info.get("role") == "slave" and info.get("slave_read_only", "1") == "1",
        default_user_open=_open_user(await _allowed(lane, "ACL", "GETUSER", "default")),
    )


def check(servers: Sequence[ServerInfo], settings: Settings) -> list[Finding]:
    """What these primaries can promise, the fatal checks first; each check tells of the one that fails it worst."""
    by_check = zip(*(_check_one(info, settings) for info in servers), strict=True)
    return [max(findings, key=lambda finding: (not finding.ok, finding.fatal)) for findings in by_check]


def _check_one(info: ServerInfo, settings: Settings) -> list[Finding]:
    found = [
        _version(info),
        _eviction(info, settings),
        _role(info),
        _cluster(info, settings),
        _persistence(info),
        _access(info, settings),
    ]
    if not info.address:
        return found
    return [msgspec.structs.replace(one, detail=f"{info.address}: {one.detail}") for one in found]


def _version(info: ServerInfo) -> Finding:
    least = MIN_VALKEY if info.kind == "valkey" else MIN_REDIS
    if not info.version_tuple:
        return Finding("version", False, "the server does not tell its version; allow INFO", fatal=False)
    if info.version_tuple < least:
        needed = f"{info} is too old; use Redis 7.0 or Valkey 7.2 or later"
        return Finding("version", False, needed, fatal=True)
    return Finding("version", True, str(info), fatal=True)


def _eviction(info: ServerInfo, settings: Settings) -> Finding:
    name = "eviction"
    if not info.policy:
        unknown = f"maxmemory-policy is not known (INFO and CONFIG are denied); make sure it is {SAFE_POLICY}"
        return Finding(name, False, unknown, fatal=False)
    if info.policy == SAFE_POLICY:
        return Finding(name, True, f"maxmemory-policy is {SAFE_POLICY}", fatal=True)
    detail = (
        f"maxmemory-policy is {info.policy}: a full server would throw away events and idempotency keys; set "
        f"{SAFE_POLICY}"
    )
    if settings.redis.allow_eviction:
        return Finding(name, False, f"{detail} (allowed by redis.allow_eviction)", fatal=False)
    return Finding(name, False, f"{detail}, or redis.allow_eviction = true to accept the loss", fatal=True)


def _role(info: ServerInfo) -> Finding:
    if info.read_only:
        detail = "this is a read-only replica; point redis.url at the primary"
        return Finding("role", False, detail, fatal=True)
    if info.role == "slave":
        detail = "this is a replica that takes writes and loses them with the next sync; use the primary"
        return Finding("role", False, detail, fatal=True)
    return Finding("role", True, info.role.replace("master", "primary") or "not known", fatal=True)


def _cluster(info: ServerInfo, settings: Settings) -> Finding:
    for_cluster = settings.redis.url.startswith("cluster://")
    if info.cluster and not for_cluster:
        detail = "this is a cluster's node, and redis.url is for one server; use cluster://host:port,host:port"
        return Finding("cluster", False, detail, fatal=True)
    return Finding("cluster", True, "every slot is served" if for_cluster else "one server", fatal=True)


def _persistence(info: ServerInfo) -> Finding:
    if info.aof is None:
        return Finding("persistence", False, "not known whether appendonly is on; allow INFO", fatal=False)
    if not info.aof:
        detail = "appendonly is off: a restart loses what came since the last snapshot; set appendonly yes"
        return Finding("persistence", False, detail, fatal=False)
    return Finding("persistence", True, "appendonly is on", fatal=False)


def _access(info: ServerInfo, settings: Settings) -> Finding:
    if info.default_user_open and not _is_local(info.address, settings.redis.url):
        detail = "anybody who reaches this server may do anything (user default has no password); set one"
        return Finding("access", False, detail, fatal=False)
    shown = {True: "open, on this machine only", False: "user default needs a password", None: "not known"}
    return Finding("access", True, shown[info.default_user_open], fatal=False)


def _is_local(address: str, url: str) -> bool:
    parts = urlsplit(url)
    if parts.scheme in ("unix", "embedded"):
        return True
    hosts = (address or parts.netloc.rpartition("@")[2]).split(",")
    return all(re.sub(r":\d*$", "", host).strip("[]") in _LOOPBACK for host in hosts)


async def _allowed(lane: Executes, *command: str) -> object:
    """The reply, None where the server denies or does not have this command."""
    try:
        reply: object = await lane.execute(*command)
    except redis.exceptions.ResponseError as error:
        if classify(error) in (ErrorClass.CONFIG, ErrorClass.BUG):
            return None
        raise
    return reply


async def _config(lane: Executes, name: str) -> str:
    reply = await _allowed(lane, "CONFIG", "GET", name)
    if isinstance(reply, list) and len(reply) == 2 and isinstance(reply[1], bytes):
        return reply[1].decode()
    return ""


def _parse(info: object) -> dict[str, str]:
    text = info.decode("utf-8", "replace") if isinstance(info, bytes) else ""
    pairs = (line.partition(":") for line in text.splitlines() if not line.startswith("#"))
    return {name: value for name, colon, value in pairs if colon}


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _open_user(reply: object) -> bool | None:
    """Does ACL GETUSER tell of a user that is on and needs no password?"""
    if not isinstance(reply, list):
        return None
    told = dict(zip(reply[::2], reply[1::2], strict=False))
    flags = told.get(b"flags", [])
    return b"nopass" in flags and b"on" in flags
