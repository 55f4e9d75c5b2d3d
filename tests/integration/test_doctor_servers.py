"""Doctor on real servers: healthy ones give nothing, each bad setting is its finding, what is denied is told."""

import asyncio
import contextlib
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from streamlib.keys import Keys
from streamlib.ops.acl import rules
from streamlib.ops.doctor import Report, examine
from streamlib.ops.findings import Diagnosis
from streamlib.redisio.registry import declare_group, declare_topic
from streamlib.settings import RedisSettings, Settings
from tests.helpers.cluster import ClusterTopology
from tests.helpers.publishing import ORDERS, open_door, topic
from tests.helpers.sentinel import SentinelTopology
from tests.helpers.servers import HOST, RedisProc
from tests.helpers.waiting import wait_until

Servers = Callable[..., RedisProc]

QUICK = {"repl-diskless-sync-delay": "0"}
DOCS = Path(__file__).parents[2] / "docs/doctor.md"


async def doctor(url: str, *, timeout_s: float = 5.0, **options: Any) -> Report:
    async with open_door(url, timeout_s=timeout_s) as door:
        return await examine(door, Keys(), Settings(redis=RedisSettings(url=url)), **options)


def found(report: Report) -> dict[str, Diagnosis]:
    """By code, without what only says that this is an old server or a single one."""
    return {one.code: one for one in report.findings if one.code not in ("version_hole", "no_replicas")}


def lines(server: RedisProc, section: str) -> Any:
    with server.client() as client:
        return client.info(section)


async def until(condition: Callable[[], object], what: str) -> None:
    await asyncio.to_thread(wait_until, condition, what=what)


async def replicated(own_server: Servers, conf: dict[str, str]) -> tuple[RedisProc, RedisProc]:
    primary = own_server(aof=True, conf=QUICK | conf)
    replica = own_server(aof=True, conf=QUICK | conf | {"replicaof": f"{HOST} {primary.port}"})
    await until(lambda: lines(primary, "replication").get("slave0", {}).get("state") == "online", "a replica")
    return primary, replica


async def test_a_healthy_primary_with_its_replica_gives_nothing(own_server: Servers) -> None:
    primary, _ = await replicated(own_server, {"min-replicas-to-write": "1"})
    await until(lambda: lines(primary, "replication")["min_slaves_good_slaves"] == 1, "the replica counts")
    report = await doctor(primary.url)
    assert (found(report), report.servers, report.endangered) == ({}, 2, False)


@pytest.mark.parametrize(
    ("conf", "code", "severity"),
    [
        ({"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"}, "eviction", "danger"),
        ({"maxmemory-policy": "allkeys-lru"}, "eviction", "warning"),
        ({"appendonly": "no"}, "aof_off", "danger"),
        ({"appendfsync": "no"}, "appendfsync_no", "danger"),
        ({"timeout": "1"}, "idle_timeout", "warning"),
        ({"enable-debug-command": "yes"}, "debug_allowed", "warning"),
        ({"tcp-keepalive": "0"}, "keepalive_off", "warning"),
        ({"client-output-buffer-limit": "normal 1mb 0 0"}, "output_buffer_limit", "warning"),
        ({"min-replicas-to-write": "1", "min-replicas-max-lag": "10"}, "min_replicas_not_met", "danger"),
    ],
)
async def test_a_bad_setting_is_one_finding(
    own_server: Servers, conf: dict[str, str], code: str, severity: str
) -> None:
    server = own_server(aof=True, conf=conf)
    report = await doctor(server.url)
    told = found(report)
    assert {name: one.severity for name, one in told.items()} == {code: severity}
    assert told[code].where == f"{HOST}:{server.port}"
    assert report.endangered is (severity == "danger")


async def test_a_lag_without_bound_turns_the_replicas_off(own_server: Servers) -> None:
    primary, replica = await replicated(own_server, {"min-replicas-to-write": "1", "min-replicas-max-lag": "0"})
    assert set(found(await doctor(primary.url))) == {"min_replicas_unset"}
    replica.terminate()
    await until(lambda: lines(primary, "replication")["connected_slaves"] == 0, "the replica is gone")
    with primary.client() as client:
        assert client.set("taken", "although nobody copies it")
    assert found(await doctor(primary.url)) == {}


async def test_a_single_server_has_no_replica(own_server: Servers) -> None:
    report = await doctor(own_server(aof=True).url)
    assert [one.severity for one in report.findings if one.code == "no_replicas"] == ["warning"]
    assert not report.endangered


async def test_a_server_that_is_nearly_full(own_server: Servers) -> None:
    server = own_server(aof=True)
    with server.client() as client:
        client.config_set("maxmemory", round(client.info("memory")["used_memory"] * 1.1))
        assert set(found(await doctor(server.url))) == {"memory_near_limit"}


async def test_a_full_disk_under_the_append_only_file(own_server: Servers) -> None:
    server = own_server(aof=True, conf={"appendfsync": "everysec"})
    (server.directory / "appendonlydir/appendonly.aof.2.incr.aof").symlink_to("/dev/full")
    with server.client() as client:
        client.bgrewriteaof()
        what = "the rewrite has ended"
        await until(lambda: Path(server.directory, "appendonlydir/appendonly.aof.2.base.rdb").exists(), what)
        client.set("a", 1)
        await until(lambda: client.info("persistence")["aof_last_write_status"] == "err", "a write failed")
    assert set(found(await doctor(server.url))) == {"aof_write_failed"}


@pytest.mark.parametrize(
    ("command", "status", "code"),
    [
        ("BGSAVE", "rdb_last_bgsave_status", "snapshot_failed"),
        ("BGREWRITEAOF", "aof_last_bgrewrite_status", "aof_rewrite_failed"),
    ],
)
async def test_a_directory_that_is_gone(own_server: Servers, command: str, status: str, code: str) -> None:
    server = own_server(aof=True)
    shutil.rmtree(server.directory)
    with server.client() as client:
        with contextlib.suppress(redis.exceptions.ResponseError):  # some refuse at once
            client.execute_command(command)
        await until(lambda: client.info("persistence")[status] == "err", "it failed")
    assert set(found(await doctor(server.url))) == {code}


async def test_a_replica_that_is_behind_and_one_that_split_brain_would_lose(own_server: Servers) -> None:
    primary, replica = await replicated(own_server, {"min-replicas-max-lag": "1"})
    replica.stop()
    await until(lambda: lines(primary, "replication")["slave0"]["lag"] > 1, "the replica is behind")
    told = found(await doctor(primary.url, timeout_s=0.5))
    replica.cont()
    assert {name: one.severity for name, one in told.items()} == {
        "replica_behind": "danger",
        "min_replicas_unset": "warning",
        "unreachable": "not_looked_at",
    }
    assert told["unreachable"].where == f"{HOST}:{replica.port}"


async def test_a_replica_is_looked_at_as_its_primary_is(own_server: Servers) -> None:
    primary, replica = await replicated(own_server, {"min-replicas-to-write": "1"})
    with replica.client() as client:
        client.config_set("maxmemory", "100mb")
        client.config_set("maxmemory-policy", "allkeys-lru")
    assert {one.where for one in found(await doctor(primary.url)).values()} == {f"{HOST}:{replica.port}"}
    assert set(found(await doctor(replica.url))) == {"role", "eviction"}


async def test_a_replica_is_asked_as_the_same_user(own_server: Servers) -> None:
    primary, replica = await replicated(own_server, {"min-replicas-to-write": "1"})
    for server, given in ((primary, rights()), (replica, [right for right in rights() if right != "+config|get"])):
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", "doctor", ">p/w", *given)
    report = await doctor(primary.url.replace("redis://", "redis://doctor:p%2Fw@"))
    assert {name: one.where for name, one in found(report).items()} == {"not_looked_at": f"{HOST}:{replica.port}"}


async def test_clocks_that_differ(own_server: Servers) -> None:
    server = own_server(aof=True)
    told = found(await doctor(server.url, now_s=lambda: time.time() - 90))
    assert set(told) == {"clock_skew"}
    assert "90.0 s ahead of this machine's" in told["clock_skew"].what


async def test_what_is_denied_is_told_and_never_well(own_server: Servers) -> None:
    server = own_server(conf={"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"})
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~*", "-@all", "+ping")
    report = await doctor(server.url.replace("redis://", "redis://app:pw@"))
    assert {one.severity for one in report.findings} == {"not_looked_at"}
    whats = " ".join(one.what for one in report.findings)
    assert all(command in whats for command in ("INFO", "CONFIG GET", "ACL GETUSER", "TIME"))
    assert {one.where for one in report.findings} == {f"{HOST}:{server.port}", "groups", "keys"}
    assert "pw" not in whats


def rights() -> list[str]:
    """What the documentation gives to the user of doctor."""
    (more,) = re.findall(r"^ACL SETUSER doctor (.*)$", DOCS.read_text(), re.M)
    return [*rules(["observer"], Keys(), {}), *more.split()]


async def test_the_rights_that_doctor_needs(own_server: Servers) -> None:
    server = own_server(conf={"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"})
    async with open_door(server.url) as door:
        await declare_topic(door, Keys(), ORDERS)
        for kind in ("handler", "ordered", "projection"):
            await declare_group(door, Keys(), ORDERS, kind, kind, ["Made"])
    with server.client() as client:
        client.xadd("orders", {"id": "1", "type": "Made"}, id="1000-0")
        client.xadd("{orders}:again:handler", {"id": "1", "type": "Made"}, id="1000-0")
        client.xadd("{orders}:dead:ordered", {"id": "1"})
        client.xreadgroup("handler", "gone", {"orders": ">", "{orders}:again:handler": ">"})
        client.execute_command("ACL", "SETUSER", "doctor", ">pw", *rights())
    everything = await doctor(server.url)
    assert {"eviction", "dead_group", "dead_letters_growing"} <= set(found(everything))
    assert await doctor(server.url.replace("redis://", "redis://doctor:pw@")) == everything


async def test_every_server_behind_sentinels(tmp_path: Path, server_kind: str) -> None:
    conf = {"min-replicas-to-write": "1", "maxmemory": "100mb"}
    with SentinelTopology(tmp_path, kind=server_kind, aof=True, conf=conf) as topology:
        report = await doctor(topology.url)
        assert (found(report), report.servers) == ({}, 3)
        replica = next(one for one in topology.servers if one is not topology.primary_server())
        with replica.client() as client:
            client.config_set("maxmemory-policy", "allkeys-lru")
        told = found(await doctor(topology.url))
    assert {name: one.where for name, one in told.items()} == {"eviction": f"{HOST}:{replica.port}"}


async def test_every_node_of_a_cluster(tmp_path: Path, server_kind: str) -> None:
    conf = {"min-replicas-to-write": "1", "maxmemory": "100mb"}
    with ClusterTopology(tmp_path, kind=server_kind, replicas=1, aof=True, conf=conf) as topology:
        report = await doctor(topology.url)
        assert (found(report), report.servers) == ({}, 6)
        for node in (topology.nodes[1], topology.nodes[4]):
            with node.client() as client:
                client.config_set("appendfsync", "no")
        told = await doctor(topology.url)
    wheres = {f"{HOST}:{node.port}" for node in (topology.nodes[1], topology.nodes[4])}
    assert {one.where for one in told.findings if one.code == "appendfsync_no"} == wheres


async def test_a_primary_that_is_gone_does_not_hide_the_others(tmp_path: Path, server_kind: str) -> None:
    with ClusterTopology(tmp_path, kind=server_kind, full_coverage=False, aof=True) as topology:
        register = {topology.node_of("streamlib:topics"), topology.node_of("streamlib:workers")}
        gone = next(node for node in topology.nodes if node not in register)
        names = [f"t{number}" for number in range(20)]
        lost = next(name for name in names if topology.node_of(name) is gone)
        kept = next(
            name
            for name in names
            if gone not in (topology.node_of(name), topology.node_of(f"streamlib:group:{name}:email"))
        )
        async with open_door(topology.url) as door:
            for name in (lost, kept):
                await declare_topic(door, Keys(), topic(name))
                await declare_group(door, Keys(), topic(name), "email", "handler", ["Made"])
        with topology.client() as client:
            client.xadd(kept, {"id": "1", "type": "Made"}, id="1000-0")
        topology.kill(gone)
        report = await doctor(topology.url)
    dangers = [(one.code, one.where) for one in report.findings if one.severity == "danger"]
    assert dangers == [("dead_group", f"group email of {kept}"), ("unreachable", f"{HOST}:{gone.port}")]
    assert [one.where for one in report.findings if one.severity == "not_looked_at"] == [f"topic {lost}"]


async def test_too_few_sentinels(tmp_path: Path, server_kind: str) -> None:
    conf = {"min-replicas-to-write": "1"}
    with SentinelTopology(tmp_path, kind=server_kind, replicas=1, aof=True, conf=conf) as topology:
        left, *others = topology.sentinels
        for one in others:
            one.kill9()

        def noticed() -> bool:
            with left.client() as client, contextlib.suppress(redis.exceptions.ResponseError):
                client.execute_command("SENTINEL", "CKQUORUM", topology.name)
                return False
            return True

        await until(noticed, "the sentinel misses the others")
        report = await doctor(topology.url)
    told = [(one.code, one.severity, one.where) for one in report.findings if one.code != "version_hole"]
    gone = sorted(f"{HOST}:{one.port}" for one in others)
    assert told == [
        ("no_failover", "danger", f"{HOST}:{left.port}"),
        *(("sentinel_silent", "warning", where) for where in gone),
    ]
