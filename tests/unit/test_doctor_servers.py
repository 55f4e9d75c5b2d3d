"""What doctor thinks of a server, from facts alone: each finding, and what is next to it and fine."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest

from streamlib.ops.doctor import place_of
from streamlib.ops.doctor_copies import check_clocks, check_copies, check_watchers
from streamlib.ops.doctor_server import check_node
from streamlib.ops.findings import Code
from streamlib.redisio.node_facts import BufferLimit, Copy, NodeFacts
from streamlib.redisio.quorum import Verdict, Watcher
from streamlib.redisio.server import ServerInfo
from streamlib.redisio.server_holes import HOLES, holes_of
from streamlib.settings import RedisSettings, Settings, WorkerSettings

DOCS = Path(__file__).parents[2] / "docs/doctor.md"
MIB = 1024 * 1024
GOOD = ServerInfo(
    kind="valkey", version="9.1.0", role="master", policy="noeviction", maxmemory=0, aof=True, default_user_open=False
)
SETTINGS = Settings(redis=RedisSettings(url="rediss://redis.example:6379"), worker=WorkerSettings(lease_ms=30_000))
ONLINE = Copy(("10.0.0.2", 6379), "online", 1)
HEALTHY: dict[str, Any] = {
    "where": "10.0.0.1:6379",
    "appendfsync": "everysec",
    "aof_written": True,
    "aof_rewritten": True,
    "snapshot_taken": True,
    "used_bytes": 100 * MIB,
    "machine_bytes": 1_000 * MIB,
    "copies": (ONLINE,),
    "good_copies": 1,
    "min_copies": 1,
    "max_lag_s": 10,
    "idle_timeout_s": 0,
    "keepalive_s": 300,
    "buffer_limit": BufferLimit(0, 0, 0),
    "clock_ahead_ms": 3.0,
    "clock_unsure_ms": 1.0,
}


def info(**changes: Any) -> ServerInfo:
    return ServerInfo(**{name: getattr(GOOD, name) for name in GOOD.__struct_fields__} | changes)


def facts(**changes: Any) -> NodeFacts:
    return NodeFacts(**{"info": GOOD} | HEALTHY | changes)


def told(node: NodeFacts, settings: Settings = SETTINGS) -> list[tuple[str, str]]:
    found = [*check_node(node, settings), *check_copies(node), *check_clocks([node], settings)]
    assert all(one.what and one.why and one.advice and one.where == node.where for one in found)
    return [(one.code, one.severity) for one in found]


def test_a_healthy_server_gives_nothing() -> None:
    assert told(facts()) == []


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"info": info(policy="allkeys-lru", maxmemory=MIB * 900)}, ("eviction", "danger")),
        ({"info": info(policy="volatile-ttl", maxmemory=None)}, ("eviction", "danger")),
        ({"info": info(policy="allkeys-lru", maxmemory=0)}, ("eviction", "warning")),
        ({"info": info(aof=False)}, ("aof_off", "danger")),
        ({"appendfsync": "no"}, ("appendfsync_no", "danger")),
        ({"aof_written": False}, ("aof_write_failed", "danger")),
        ({"aof_rewritten": False}, ("aof_rewrite_failed", "danger")),
        ({"snapshot_taken": False}, ("snapshot_failed", "danger")),
        ({"used_bytes": 800 * MIB, "info": info(maxmemory=1_000 * MIB)}, ("memory_near_limit", "warning")),
        ({"used_bytes": 950 * MIB, "info": info(maxmemory=1_000 * MIB)}, ("memory_near_limit", "danger")),
        ({"used_bytes": 960 * MIB}, ("memory_near_limit", "danger")),
        ({"info": info(version="7.1.0")}, ("version_too_old", "danger")),
        ({"info": info(version="8.1.3")}, ("version_hole", "warning")),
        ({"info": info(role="slave", read_only=True)}, ("role", "danger")),
        ({"info": info(role="slave")}, ("role", "danger")),
        ({"info": info(default_user_open=True)}, ("open_to_all", "warning")),
        ({"debug_allowed": "yes"}, ("debug_allowed", "warning")),
        ({"idle_timeout_s": 7}, ("idle_timeout", "warning")),
        ({"keepalive_s": 0}, ("keepalive_off", "warning")),
        ({"buffer_limit": BufferLimit(8 * MIB, 0, 0)}, ("output_buffer_limit", "warning")),
        ({"buffer_limit": BufferLimit(0, MIB, 10)}, ("output_buffer_limit", "warning")),
        ({"copies": (), "min_copies": 0}, ("no_replicas", "warning")),
        ({"copies": (Copy(("10.0.0.2", 6379), "wait_bgsave", 0),)}, ("replica_behind", "danger")),
        ({"copies": (Copy(("10.0.0.2", 6379), "online", 11),)}, ("replica_behind", "danger")),
        ({"min_copies": 0}, ("min_replicas_unset", "warning")),
        ({"min_copies": 2}, ("min_replicas_not_met", "danger")),
        ({"good_copies": 0}, ("min_replicas_not_met", "danger")),
        ({"clock_ahead_ms": 1_002.0}, ("clock_skew", "warning")),
        ({"clock_ahead_ms": -1_002.0}, ("clock_skew", "warning")),
        ({"denied": ("CONFIG GET",)}, ("not_looked_at", "not_looked_at")),
        ({"denied": ("TIME",), "clock_ahead_ms": None}, ("not_looked_at", "not_looked_at")),
        ({"error": "Connection refused"}, ("unreachable", "danger")),
        ({"error": "Connection refused", "primary": False}, ("unreachable", "not_looked_at")),
    ],
)
def test_each_fault_is_one_finding(changes: dict[str, Any], finding: tuple[str, str]) -> None:
    assert told(facts(**changes)) == [finding]


@pytest.mark.parametrize(
    "changes",
    [
        {"used_bytes": 799 * MIB, "info": info(maxmemory=1_000 * MIB)},
        {"debug_allowed": "local"},
        {"idle_timeout_s": 8},
        {"buffer_limit": BufferLimit(9 * MIB, 9 * MIB, 10)},
        {"copies": (Copy(("10.0.0.2", 6379), "online", 10),)},
        {"clock_ahead_ms": 5_000.0, "clock_unsure_ms": 4_500.0},
        {"info": info(role="slave", read_only=True), "primary": False, "copies": ()},
        {"info": info(default_user_open=True, address="127.0.0.1:6379")},
        {"info": info(version="")},
    ],
)
def test_what_is_next_to_a_fault_is_fine(changes: dict[str, Any]) -> None:
    assert told(facts(**changes)) == []


def test_eviction_that_was_allowed_is_a_warning() -> None:
    allowed = Settings(redis=RedisSettings(url="rediss://redis.example", allow_eviction=True))
    evicting = facts(info=info(policy="allkeys-lru", maxmemory=MIB * 900))
    assert told(evicting, allowed) == [("eviction", "warning")]


@pytest.mark.parametrize(
    ("url", "address", "found"),
    [
        ("redis://redis.example:6379", "", ["not_encrypted"]),
        ("redis://127.0.0.1:6379", "", []),
        ("rediss://redis.example:6379", "", []),
        ("sentinel://127.0.0.1:1/streams", "10.0.0.2:6379", ["not_encrypted"]),
        ("sentinel://127.0.0.1:1/streams?tls=1", "10.0.0.2:6379", []),
        ("cluster://10.0.0.2:1", "127.0.0.1:6379", []),
        ("rediss://redis.example:6379?ssl_cert_reqs=none", "", ["not_verified"]),
        ("rediss://redis.example:6379?ssl_check_hostname=0", "", ["not_verified"]),
        ("rediss://redis.example:6379?ssl_cert_reqs=required&ssl_check_hostname=true", "", []),
        ("sentinel://127.0.0.1:1/streams?tls=1&ssl_cert_reqs=none", "10.0.0.2:6379", ["not_verified"]),
        ("cluster://10.0.0.2:1?ssl_check_hostname=no&tls=1", "10.0.0.2:6379", ["not_verified"]),
        ("embedded://data", "", []),
    ],
)
def test_what_others_may_listen_to(url: str, address: str, found: list[str]) -> None:
    settings = Settings(redis=RedisSettings(url=url))
    assert [code for code, _ in told(facts(info=info(address=address)), settings)] == found


def test_nothing_is_well_that_was_denied() -> None:
    nothing = NodeFacts(where="x:1", denied=("INFO", "CONFIG GET", "ACL GETUSER", "TIME"))
    assert told(nothing) == [("not_looked_at", "not_looked_at")] * 4


def test_clocks_of_servers_may_be_half_a_lease_apart() -> None:
    first, last = facts(clock_ahead_ms=-500.0), facts(where="10.0.0.3:6379", clock_ahead_ms=14_503.0)
    codes = [(one.code, one.where) for one in check_clocks([last, first], SETTINGS)]
    assert codes == [("clock_skew", "10.0.0.3:6379"), ("clocks_apart", "10.0.0.3:6379")]
    assert [one.code for one in check_clocks([first, facts(clock_ahead_ms=900.0)], SETTINGS)] == []


@pytest.mark.parametrize(
    ("verdict", "found"),
    [
        ("enough", []),
        ("too_few", [("no_failover", "danger")]),
        ("silent", [("sentinel_silent", "warning")]),
        ("denied", [("not_looked_at", "not_looked_at")]),
    ],
)
def test_a_sentinel(verdict: Verdict, found: list[tuple[str, str]]) -> None:
    told = check_watchers([Watcher("10.0.0.9:26379", verdict, "in its words")])
    assert [(one.code, one.severity) for one in told] == found
    assert all("in its words" in one.what for one in told)


@pytest.mark.parametrize(
    ("kind", "version", "holes", "mended_in"),
    [
        ("redis", "7.0.4", (0, 1, 2, 3), ("7.0.5", "7.0.12", "7.2.8", "7.2.11")),
        ("redis", "7.0.15", (2, 3), ("7.2.8", "7.2.11")),
        ("redis", "7.2.7", (2, 3, 4), ("7.2.8", "7.2.11", "7.2.8")),
        ("redis", "7.2.11", (), ()),
        ("redis", "7.4.2", (2, 3, 4), ("7.4.3", "7.4.6", "7.4.3")),
        ("redis", "8.0.3", (3,), ("8.0.4",)),
        ("redis", "8.2.1", (3,), ("8.2.2",)),
        ("redis", "8.2.3", (), ()),
        ("redis", "8.4.0", (), ()),
        ("valkey", "7.2.8", (2, 3), ("7.2.9", "7.2.11")),
        ("valkey", "8.0.5", (3,), ("8.0.6",)),
        ("valkey", "8.1.4", (), ()),
        ("valkey", "9.0.0", (), ()),
        ("redis", "", (), ()),
    ],
)
def test_versions_with_holes(kind: str, version: str, holes: tuple[int, ...], mended_in: tuple[str, ...]) -> None:
    server = ServerInfo(kind=kind, version=version)
    found = holes_of(server)
    assert found == [HOLES[number] for number in holes]
    assert tuple(hole.mended_in(server) for hole in found) == mended_in


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("redis://app:s3cret@redis.example:6379/0", "redis.example:6379"),
        ("rediss://:s3cr@et@redis.example:6379", "redis.example:6379"),
        ("redis://redis.example?password=s3cret", "redis.example"),
        ("unix://app:s3cret@/run/redis.sock?password=s3cret", "unix:///run/redis.sock"),
        ("sentinel://app:s3cret@a:1,b:2/streams?sentinel_password=s3cret", "the primary of streams"),
        ("embedded://data", "embedded://data"),
    ],
)
def test_a_place_has_no_secrets(url: str, place: str) -> None:
    assert place_of(url) == place


def test_every_finding_is_documented() -> None:
    rows = [line.split("|")[1] for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    documented = [code for row in rows for code in re.findall(r"`(\w+)`", row)]
    assert sorted(documented) == sorted(get_args(Code))
