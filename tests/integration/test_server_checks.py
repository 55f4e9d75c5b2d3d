"""The server checks: what is refused, what is warned about, and what is not known."""

import asyncio
from collections.abc import Callable

import pytest
import redis

from streamlib.redisio.server import Finding, ServerInfo, check, probe
from streamlib.settings import RedisSettings, Settings
from tests.helpers.publishing import open_door
from tests.helpers.servers import RedisProc, available_kinds
from tests.helpers.waiting import wait_until

Servers = Callable[..., RedisProc]

SAFE = ServerInfo(kind="valkey", version="9.1.0", role="master", policy="noeviction", aof=True, default_user_open=False)
KINDS = {"valkey": ("valkey", (9,)), "redis8": ("redis", (8, 2)), "redis7": ("redis", (7, 0))}


async def ask(url: str) -> ServerInfo:
    async with open_door(url) as door:
        [info] = await probe(door)
        return info


def settings(url: str = "redis://127.0.0.1", *, allow_eviction: bool = False) -> Settings:
    return Settings(redis=RedisSettings(url=url, allow_eviction=allow_eviction))


def bad(info: ServerInfo, given: Settings | None = None) -> dict[str, Finding]:
    return {found.check: found for found in check([info], given or settings()) if not found.ok}


@pytest.mark.parametrize("kind", available_kinds())
async def test_a_server_is_known_for_what_it_is(own_server: Servers, kind: str) -> None:
    info = await ask(own_server(kind=kind, aof=True).url)
    expected_kind, version = KINDS[kind]
    assert (info.kind, info.version_tuple[: len(version)]) == (expected_kind, version)
    assert (info.role, info.policy, info.aof, info.default_user_open) == ("master", "noeviction", True, True)
    assert bad(info) == {}


@pytest.mark.row(37)
@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
async def test_an_evicting_server_is_refused_unless_allowed(own_server: Servers, policy: str) -> None:
    info = await ask(own_server(aof=True, conf={"maxmemory-policy": policy}).url)
    refused = bad(info)
    assert set(refused) == {"eviction"}
    assert refused["eviction"].fatal
    assert policy in refused["eviction"].detail
    assert not bad(info, settings(allow_eviction=True))["eviction"].fatal


async def test_a_replica_is_refused(own_server: Servers) -> None:
    primary, replica = own_server(), own_server()
    with replica.client() as client:
        client.replicaof("127.0.0.1", str(primary.port))
        linked = "the replica is linked"
        await asyncio.to_thread(
            wait_until, lambda: client.info("replication")["master_link_status"] == "up", what=linked
        )
    assert bad(await ask(replica.url))["role"].fatal


@pytest.mark.row(37, 43)
async def test_what_is_denied_is_not_known_and_warned_about(own_server: Servers) -> None:
    server = own_server()
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all", "-info", "-config", "-acl")
    info = await ask(server.url.replace("redis://", "redis://app:pw@"))
    assert info == ServerInfo()
    warned = bad(info)
    assert set(warned) == {"version", "eviction", "persistence"}
    assert not any(found.fatal for found in warned.values())


@pytest.mark.row(43)
async def test_without_config_the_policy_is_still_known(own_server: Servers) -> None:
    server = own_server()
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all", "-config", "-acl")
    info = await ask(server.url.replace("redis://", "redis://app:pw@"))
    assert (info.policy, info.default_user_open) == ("noeviction", None)


async def test_wrong_credentials_are_an_error(own_server: Servers) -> None:
    url = own_server().url
    with pytest.raises(redis.exceptions.AuthenticationError):
        await ask(url.replace("redis://", "redis://nobody:wrong@"))


@pytest.mark.parametrize(
    ("info", "name", "fatal"),
    [
        (ServerInfo(kind="redis", version="6.2.14", policy="noeviction", aof=True), "version", True),
        (ServerInfo(kind="valkey", version="7.1.0", policy="noeviction", aof=True), "version", True),
        (ServerInfo(kind="redis", version="7.0.0", policy="noeviction", aof=False), "persistence", False),
        (ServerInfo(kind="redis", version="7.0.0", policy="noeviction", aof=True, cluster=True), "cluster", True),
        (ServerInfo(kind="redis", version="7.0.0", policy="noeviction", aof=True, role="slave"), "role", True),
    ],
)
def test_each_fault_is_one_finding(info: ServerInfo, name: str, fatal: bool) -> None:
    found = bad(info)
    assert set(found) == {name}
    assert found[name].fatal is fatal


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("redis://127.0.0.1:6379", False),
        ("redis://localhost", False),
        ("unix:///run/redis.sock", False),
        ("redis://redis.example:6379/0", True),
        ("cluster://127.0.0.1:7000,[::1]:7001", False),
        ("cluster://127.0.0.1:7000,node.example:7000", True),
        ("sentinel://u:p@127.0.0.1:1,localhost/orders", False),
    ],
)
def test_a_default_user_without_password_is_fine_on_this_machine_only(url: str, warned: bool) -> None:
    open_to_all = ServerInfo(version="7.2.0", policy="noeviction", aof=True, default_user_open=True)
    assert ("access" in bad(open_to_all, settings(url))) is warned
    assert bad(SAFE, settings(url)) == {}
