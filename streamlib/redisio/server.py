"""What kind of server this is, and whether it can keep our promises."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

import msgspec
import redis.exceptions
from msgspec import Struct

from streamlib.redisio.address import is_encrypted, is_verified
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


class Problem(Struct, frozen=True):
    """What is wrong, why it matters, and what to do."""

    what: str
    why: str
    advice: str

    def __str__(self) -> str:
        return f"{self.what}: {self.why}; {self.advice}"


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
    told = parse_info(await allowed(lane, "INFO"))
    policy = told.get("maxmemory_policy") or (await config(lane, "maxmemory-policy")).get("maxmemory-policy", "")
    return server_info(address, told, policy, open_user(await allowed(lane, "ACL", "GETUSER", "default")))


def server_info(address: str, told: Mapping[str, str], policy: str, default_user_open: bool | None) -> ServerInfo:
    """What the lines of INFO say; `policy` and `default_user_open` may have come from elsewhere."""
    valkey = told.get("valkey_version")
    return ServerInfo(
        address=address,
        kind="valkey" if valkey else told.get("server_name", "redis"),
        version=valkey or told.get("redis_version", ""),
        role=told.get("role", ""),
        policy=policy,
        maxmemory=number(told.get("maxmemory")),
        aof=told["aof_enabled"] == "1" if "aof_enabled" in told else None,
        cluster=told.get("cluster_enabled") == "1",
        replicas=number(told.get("connected_slaves")) or 0,
        read_only=told.get("role") == "slave" and told.get("slave_read_only", "1") == "1",
        default_user_open=default_user_open,
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
        _finding("tls", not_verified(settings.redis.url), "who answers is verified, or TLS is off", fatal=False),
    ]
    if not info.address:
        return found
    return [msgspec.structs.replace(one, detail=f"{info.address}: {one.detail}") for one in found]


def too_old(info: ServerInfo) -> Problem | None:
    """A known version that we do not work with."""
    least = MIN_VALKEY if info.kind == "valkey" else MIN_REDIS
    if not info.version_tuple or info.version_tuple >= least:
        return None
    return Problem(f"{info} is too old", "workers do not start on it", "use Redis 7.0 or Valkey 7.2 or later")


def evicts(info: ServerInfo) -> Problem | None:
    """A known policy under which a full server deletes keys."""
    if info.policy in ("", SAFE_POLICY):
        return None
    why = "a full server would throw away events and idempotency keys"
    return Problem(f"maxmemory-policy is {info.policy}", why, f"set {SAFE_POLICY}")


def replica(info: ServerInfo) -> Problem | None:
    """A server that should be a primary and is none."""
    if info.read_only:
        return Problem("this is a read-only replica", "nothing can be stored", "point redis.url at the primary")
    if info.role == "slave":
        return Problem("this is a replica that takes writes", "it loses them with the next sync", "use the primary")
    return None


def not_appended(info: ServerInfo) -> Problem | None:
    """An append-only file that is known to be off."""
    if info.aof is not False:
        return None
    return Problem("appendonly is off", "a restart loses what came since the last snapshot", "set appendonly yes")


def open_to_all(info: ServerInfo, url: str) -> Problem | None:
    """A user default without password, on a server that other machines reach."""
    if not info.default_user_open or _is_local(info.address, url):
        return None
    return Problem("user default has no password", "anybody who reaches this server may do anything", "set one")


def not_encrypted(info: ServerInfo, url: str) -> Problem | None:
    """A connection that other machines may listen to."""
    if _is_local(info.address, url) or is_encrypted(url):
        return None
    why = "whoever is on the way reads passwords and events, and can change them"
    return Problem("the connection to it is not encrypted", why, "use TLS: rediss://, or ?tls=1 with several servers")


def not_verified(url: str) -> Problem | None:
    """TLS with whoever answers."""
    if is_verified(url):
        return None
    return Problem(
        "TLS does not verify who answers",
        "whoever is on the way can pose as this server, and then reads passwords and events and changes them",
        "leave ssl_cert_reqs and ssl_check_hostname out of redis.url, and name your authority in redis.ca_file",
    )


def _version(info: ServerInfo) -> Finding:
    if not info.version_tuple:
        return Finding("version", False, "the server does not tell its version; allow INFO", fatal=False)
    return _finding("version", too_old(info), str(info), fatal=True)


def _eviction(info: ServerInfo, settings: Settings) -> Finding:
    name = "eviction"
    if not info.policy:
        unknown = f"maxmemory-policy is not known (INFO and CONFIG are denied); make sure it is {SAFE_POLICY}"
        return Finding(name, False, unknown, fatal=False)
    problem = evicts(info)
    if problem and settings.redis.allow_eviction:
        return Finding(name, False, f"{problem} (allowed by redis.allow_eviction)", fatal=False)
    if problem:
        return Finding(name, False, f"{problem}, or redis.allow_eviction = true to accept the loss", fatal=True)
    return Finding(name, True, f"maxmemory-policy is {SAFE_POLICY}", fatal=True)


def _role(info: ServerInfo) -> Finding:
    return _finding("role", replica(info), info.role.replace("master", "primary") or "not known", fatal=True)


def _cluster(info: ServerInfo, settings: Settings) -> Finding:
    for_cluster = settings.redis.url.startswith("cluster://")
    if info.cluster and not for_cluster:
        detail = "this is a cluster's node, and redis.url is for one server; use cluster://host:port,host:port"
        return Finding("cluster", False, detail, fatal=True)
    return Finding("cluster", True, "every slot is served" if for_cluster else "one server", fatal=True)


def _persistence(info: ServerInfo) -> Finding:
    if info.aof is None:
        return Finding("persistence", False, "not known whether appendonly is on; allow INFO", fatal=False)
    return _finding("persistence", not_appended(info), "appendonly is on", fatal=False)


def _access(info: ServerInfo, settings: Settings) -> Finding:
    shown = {True: "open, on this machine only", False: "user default needs a password", None: "not known"}
    return _finding("access", open_to_all(info, settings.redis.url), shown[info.default_user_open], fatal=False)


def _finding(name: str, problem: Problem | None, otherwise: str, *, fatal: bool) -> Finding:
    return Finding(name, problem is None, str(problem or otherwise), fatal)


def _is_local(address: str, url: str) -> bool:
    parts = urlsplit(url)
    if parts.scheme in ("unix", "embedded"):
        return True
    hosts = (address or parts.netloc.rpartition("@")[2]).split(",")
    return all(re.sub(r":\d*$", "", host).strip("[]") in _LOOPBACK for host in hosts)


async def allowed(lane: Executes, *command: str) -> object:
    """The reply, None where the server denies or does not have this command."""
    try:
        reply: object = await lane.execute(*command)
    except redis.exceptions.ResponseError as error:
        if classify(error) in (ErrorClass.CONFIG, ErrorClass.BUG):
            return None
        raise
    return reply


async def config(lane: Executes, *names: str) -> dict[str, str]:
    """These settings of the server; empty where it denies them."""
    reply = await allowed(lane, "CONFIG", "GET", *names)
    flat = [part.decode("utf-8", "replace") for part in reply] if isinstance(reply, list) else []
    return dict(zip(flat[::2], flat[1::2], strict=True))


def parse_info(info: object) -> dict[str, str]:
    """The lines of INFO; empty where it was denied."""
    text = info.decode("utf-8", "replace") if isinstance(info, bytes) else ""
    pairs = (line.partition(":") for line in text.splitlines() if not line.startswith("#"))
    return {name: value for name, colon, value in pairs if colon}


def number(text: str | None) -> int | None:
    """What is written in digits alone."""
    return int(text) if text and text.isdigit() else None


def open_user(reply: object) -> bool | None:
    """Does ACL GETUSER tell of a user that is on and needs no password?"""
    if not isinstance(reply, list):
        return None
    told = dict(zip(reply[::2], reply[1::2], strict=False))
    flags = told.get(b"flags", [])
    return b"nopass" in flags and b"on" in flags
