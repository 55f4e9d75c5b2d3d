"""Looks at a Redis and at what streamlib has in it, and tells what endangers events. Changes nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from msgspec import Struct

from streamlib.keys import Keys
from streamlib.ops.doctor_copies import check_clocks, check_copies
from streamlib.ops.doctor_groups import check_group, check_stranger, look_at_groups, strangers
from streamlib.ops.doctor_keys import LOOK_AT, Known, Scanned, check_keys, scan
from streamlib.ops.doctor_server import check_node
from streamlib.ops.findings import ORDER, Diagnosis, not_looked_at
from streamlib.redisio.connection import Lane, RedisDoor
from streamlib.redisio.failures import CLIENT_ERRORS, error_code
from streamlib.redisio.node_facts import Copy, NodeFacts, look_at
from streamlib.redisio.registry import groups_of, topics
from streamlib.settings import Settings


class Report(Struct, frozen=True, kw_only=True):
    """What was found, the worst first, and how much was looked at."""

    findings: list[Diagnosis]
    servers: int
    groups: int
    keys: int

    @property
    def endangered(self) -> bool:
        """Whether anything endangers events."""
        return any(found.severity == "danger" for found in self.findings)


async def examine(
    redis: RedisDoor,
    keys: Keys,
    settings: Settings,
    *,
    all_keys: bool = False,
    now_s: Callable[[], float] = time.time,
) -> Report:
    """Look at every server, group and key; without `all_keys` at 10,000 keys of each primary.

    What is denied, or does not answer while others do, is a finding. Raises SetupError for a cluster with slots that
    nobody serves, and what the client raises for the first server.
    """
    async with redis.nodes() as lanes:
        named = {address or place_of(settings.redis.url): lane for address, lane in sorted(lanes.items())}
        nodes = await asyncio.gather(
            *(look_at(lane, where, _address(where, lanes), now_s=now_s) for where, lane in named.items())
        )
        copies = await asyncio.gather(*(_copy(redis, copy, now_s) for node in nodes for copy in node.copies))
        findings = [found for node in (*nodes, *copies) for found in check_node(node, settings)]
        findings += [found for node in nodes for found in check_copies(node)]
        findings += check_clocks([*nodes, *copies], settings)
        groups = 0
        async with _told(findings, "groups"):
            for facts in await look_at_groups(redis, keys, settings.worker.lease_ms):
                groups += 1
                findings += check_group(facts)
            findings += [check_stranger(one) for one in await strangers(redis, keys)]
        scanned = await _keys(redis, keys, findings, named, None if all_keys else LOOK_AT)
    findings.sort(key=lambda found: (ORDER.index(found.severity), found.code, found.where))
    looked_at = sum(one.looked_at for one in scanned)
    return Report(findings=findings, servers=len(nodes) + len(copies), groups=groups, keys=looked_at)


def place_of(url: str) -> str:
    """Where an address leads, without who asks there: "127.0.0.1:6379", "the primary of NAME", "embedded://DIR"."""
    parts = urlsplit(url)
    if parts.scheme in ("unix", "embedded"):
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    if parts.scheme == "sentinel":
        return f"the primary of {parts.path.strip('/')}"
    return parts.netloc.rpartition("@")[2]


def _address(where: str, lanes: Mapping[str, Lane]) -> str:
    return where if where in lanes else ""


async def _copy(redis: RedisDoor, copy: Copy, now_s: Callable[[], float]) -> NodeFacts:
    where = f"{copy.host[0]}:{copy.host[1]}"
    async with redis.beside(copy.host) as lane:
        return await look_at(lane, where, where, primary=False, now_s=now_s)


async def _keys(
    redis: RedisDoor, keys: Keys, findings: list[Diagnosis], named: Mapping[str, Lane], most: int | None
) -> list[Scanned]:
    scanned: list[Scanned] = []
    async with _told(findings, "keys"):
        partitions = await topics(redis, keys)
        groups = {topic: frozenset(await groups_of(redis, keys, topic)) for topic in partitions}
        known = Known(keys.namespace, partitions, groups)
        scanned += await asyncio.gather(*(scan(lane, where, known, most) for where, lane in named.items()))
    for one in scanned:
        if not one.whole:
            what = f"only the first {one.looked_at:,} keys were looked at for keys without owner"
            findings.append(not_looked_at(one.where, what, "streamlib doctor --scan looks at all of them"))
    findings += check_keys(orphan for one in scanned for orphan in one.orphans)
    return scanned


@asynccontextmanager
async def _told(findings: list[Diagnosis], where: str) -> AsyncIterator[None]:
    """What cannot be looked at is a finding."""
    try:
        yield
    except CLIENT_ERRORS as error:
        findings.append(_not_told(where, error))


def _not_told(where: str, error: Exception) -> Diagnosis:
    if error_code(error) == "WRONGTYPE":
        return Diagnosis(
            code="wrong_type", severity="danger", where=where,
            what=f"a key that streamlib uses holds another type: {error}", why="workers cannot use it",
            advice="rename or remove it, or set redis.namespace; streamlib check APP names the key",
        )  # fmt: skip
    right = "grant the user that right" if error_code(error) == "NOPERM" else "mend that first"
    return not_looked_at(where, f"they were not looked at, or not all: {error}", right)
