"""Does an app fit a Redis? Looks only: nothing is created, changed or started."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from msgspec import Struct

from streamlib.keys import Keys, StreamKeys
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.failures import CLIENT_ERRORS, error_code
from streamlib.redisio.large_entries import stream_facts
from streamlib.redisio.registry import groups_of, topics
from streamlib.redisio.server import Finding, ServerInfo, probe
from streamlib.redisio.server import check as check_server
from streamlib.settings import Settings
from streamlib.topic import TopicSpec

BYTES_PER_MARK = {"keys": 180, "compact": 100}
"""One finished event's done mark, per store, measured on Redis 7 and 8 and Valkey 9 with UUIDs as event ids."""
AT_ONCE = 64
_MIB = 1024 * 1024
_WAITAOF_SINCE = (7, 2)


class Declared(Struct, frozen=True):
    """A group or projection (`kind` "handler", "ordered" or "projection") as the app declares it."""

    topic: TopicSpec
    name: str
    kind: str


async def check(
    redis: RedisDoor, keys: Keys, settings: Settings, specs: Sequence[TopicSpec], groups: Sequence[Declared]
) -> list[Finding]:
    """Everything that would keep this app from starting on this Redis (fatal), or that is unwise.

    Raises what the client raises.
    """
    servers = await probe(redis)
    found = check_server(servers, settings)
    try:
        known = await topics(redis, keys)
    except CLIENT_ERRORS as error:
        if error_code(error) != "WRONGTYPE":
            raise
        found.append(Finding("registry", False, _wrong_type(keys.topics(), "hash", "another type"), fatal=True))
        return found
    for spec in specs:
        found.append(_partitions(spec, known.get(spec.name)))
        found.append(_durability(spec, servers))
        kinds = await groups_of(redis, keys, spec.name)
        found += [_kind(group, kinds) for group in groups if group.topic is spec and group.name in kinds]
    found.append(await _key_types(redis, keys, specs, groups))
    if found[-1].ok:
        found.append(await _idempotency(redis, keys, settings, groups, servers))
    return found


def _partitions(spec: TopicSpec, stored: int | None) -> Finding:
    name = f"topic {spec.name}"
    if stored is None:
        return Finding(name, True, f"new here, with partitions={spec.partitions}", fatal=True)
    if stored != spec.partitions:
        detail = (
            f"has {stored} partitions in Redis, but partitions={spec.partitions} is declared; declare {stored}, "
            "or make a new topic: keys would move"
        )
        return Finding(name, False, detail, fatal=True)
    return Finding(name, True, f"partitions={stored}, as stored", fatal=True)


def _durability(spec: TopicSpec, servers: Sequence[ServerInfo]) -> Finding:
    name = f"durability of {spec.name}"
    wanted = int(spec.durability.partition(":")[2] or 0)
    for info in servers:
        if spec.durability == "fsync" and (info.aof is False or info.version_tuple < _WAITAOF_SINCE):
            detail = f"fsync needs appendonly yes and WAITAOF (Redis or Valkey 7.2); {_name(info)} is {info}"
            return Finding(name, False, detail, fatal=True)
        if wanted > info.replicas:
            detail = f"{spec.durability}, but {_name(info)} has {info.replicas} replicas: publishes raise NotConfirmed"
            return Finding(name, False, detail, fatal=False)
    return Finding(name, True, spec.durability, fatal=True)


def _name(info: ServerInfo) -> str:
    return info.address or "the server"


def _kind(group: Declared, kinds: dict[str, str]) -> Finding:
    name, stored = f"group {group.name} of {group.topic.name}", kinds[group.name]
    if stored != group.kind:
        detail = f"is a {stored} in Redis, but is declared as a {group.kind}; choose another name"
        return Finding(name, False, detail, fatal=True)
    return Finding(name, True, f"a {stored}, as stored", fatal=True)


async def _key_types(redis: RedisDoor, keys: Keys, specs: Sequence[TopicSpec], groups: Sequence[Declared]) -> Finding:
    wanted: dict[str, str] = {}
    for spec in specs:
        for partition in range(spec.partitions):
            names = keys.stream(spec.name, partition, spec.partitions)
            wanted |= _types(names, [group for group in groups if group.topic is spec])
    for group in groups:
        wanted[keys.group(group.topic.name, group.name)] = "hash"
    every = list(wanted)
    for start in range(0, len(every), AT_ONCE):
        some = every[start : start + AT_ONCE]
        for key, stored in zip(some, await asyncio.gather(*(redis.execute("TYPE", k) for k in some)), strict=True):
            if stored.decode() not in ("none", wanted[key]):
                detail = _wrong_type(key, wanted[key], stored.decode())
                return Finding("keys", False, detail, fatal=True)
    return Finding("keys", True, f"{len(every)} keys are free or of the right type", fatal=True)


def _types(names: StreamKeys, groups: Sequence[Declared]) -> dict[str, str]:
    types = {names.stream: "stream", names.producers(): "hash"}
    for group in groups:
        types[names.dead(group.name)] = "stream"
        if group.kind != "handler":
            types[names.owner(group.name)] = "hash"
        if group.kind == "ordered":
            types[names.key_states(group.name)] = "hash"
        if group.kind != "projection":
            types[names.again(group.name)] = "stream"
            types[names.retry(group.name)] = "zset"
            types[names.retry_body(group.name)] = "hash"
            types[names.suspect(group.name)] = "hash"
    return types


async def _idempotency(
    redis: RedisDoor, keys: Keys, settings: Settings, groups: Sequence[Declared], servers: Sequence[ServerInfo]
) -> Finding:
    """What the marks of finished events will hold in memory."""
    window_s = settings.idempotency.window_s
    bytes_per_mark = BYTES_PER_MARK[settings.idempotency.store]
    per_thousand = 1_000 * window_s * bytes_per_mark / _MIB
    expected = 0.0
    for group in groups:
        if group.kind != "projection":
            expected += await _events_per_second(redis, keys, group.topic) * window_s * bytes_per_mark
    detail = (
        f"a window of {window_s:g} s holds about {per_thousand:,.0f} MiB per group for every 1,000 events per second; "
        f"at the rate of the events stored now about {expected / _MIB:,.1f} MiB in all"
    )
    bounds = [info.maxmemory for info in servers]
    maxmemory = sum(bound or 0 for bound in bounds)
    if all(bounds) and expected > maxmemory:
        over = f"{detail}, more than maxmemory ({maxmemory / _MIB:,.0f} MiB); shorten idempotency.window_s"
        return Finding("idempotency", False, over, fatal=False)
    return Finding("idempotency", True, detail, fatal=False)


async def _events_per_second(redis: RedisDoor, keys: Keys, spec: TopicSpec) -> float:
    """The mean rate over the time that the stored events span."""
    rate = 0.0
    for partition in range(spec.partitions):
        stream = keys.stream(spec.name, partition, spec.partitions).stream
        if not await redis.execute("EXISTS", stream):
            continue
        told = await stream_facts(redis, stream)
        first_ms, last_ms = _ms(told[b"recorded-first-entry-id"]), _ms(told[b"last-generated-id"])
        if last_ms > first_ms:
            rate += int(told[b"length"]) * 1000 / (last_ms - first_ms)
    return rate


def _ms(entry_id: bytes) -> int:
    return int(entry_id.partition(b"-")[0])


def _wrong_type(key: str, wanted: str, stored: str) -> str:
    return f"key {key!r} should be a {wanted}, but is a {stored}; rename or remove it, or set redis.namespace"
