"""Looks at a Redis and at what streamlib has in it, and tells what endangers events. Changes nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from msgspec import Struct

from streamlib.keys import Keys
from streamlib.ops.doctor_copies import check_clocks, check_copies, check_watchers
from streamlib.ops.doctor_groups import check_group, check_stranger, live_groups, look_at_groups, strangers
from streamlib.ops.doctor_keys import LOOK_AT, Known, Lost, Scanned, check_keys, scan
from streamlib.ops.doctor_server import check_node
from streamlib.ops.doctor_streams import check_stream, look_at_streams
from streamlib.ops.findings import ORDER, Diagnosis, not_looked_at
from streamlib.redisio.connection import Lane, RedisDoor
from streamlib.redisio.failures import CLIENT_ERRORS, error_code
from streamlib.redisio.node_facts import Copy, NodeFacts, look_at
from streamlib.redisio.quorum import watchers
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

    What is denied, or does not answer while another server does, is a finding. Raises SetupError for a cluster with
    slots that nobody serves, and what the client raises where no primary answers.
    """
    async with redis.nodes() as lanes:
        named = {address or place_of(settings.redis.url): lane for address, lane in sorted(lanes.items())}
        nodes = await asyncio.gather(
            *(look_at(lane, where, _address(where, lanes), now_s=now_s) for where, lane in named.items())
        )
        if any(node.error for node in nodes):
            await _one_answers(redis, len(nodes))
        copies = await asyncio.gather(*(_copy(redis, copy, now_s) for node in nodes for copy in node.copies))
        findings = [found for node in (*nodes, *copies) for found in check_node(node, settings)]
        findings += [found for node in nodes for found in check_copies(node)]
        findings += check_watchers(await watchers(redis.settings))
        findings += check_clocks([*nodes, *copies], settings)
        groups = await _groups(redis, keys, findings, settings.worker.lease_ms)
        answering = {node.where: named[node.where] for node in nodes if not node.error}
        looked_at = await _keys(redis, keys, findings, answering, None if all_keys else LOOK_AT)
    findings.sort(key=lambda found: (ORDER.index(found.severity), found.code, found.where))
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


async def _one_answers(redis: RedisDoor, servers: int) -> None:
    """Commands without a key go on to the next server of a cluster when one does not answer."""
    for left in reversed(range(servers)):
        try:
            await redis.execute("PING")
        except CLIENT_ERRORS:
            if not left:
                raise
        else:
            return


async def _copy(redis: RedisDoor, copy: Copy, now_s: Callable[[], float]) -> NodeFacts:
    where = f"{copy.host[0]}:{copy.host[1]}"
    async with redis.beside(copy.host) as lane:
        return await look_at(lane, where, where, primary=False, now_s=now_s)


async def _groups(redis: RedisDoor, keys: Keys, findings: list[Diagnosis], lease_ms: int) -> int:
    """How many groups were looked at. A topic out of reach does not hide the others."""
    count = 0
    async with _told(findings, "groups"):
        live = await live_groups(redis, keys, lease_ms)
        for topic in sorted(await topics(redis, keys)):
            async with _told(findings, f"topic {topic}"):
                facts = await look_at_groups(redis, keys, topic, live, lease_ms)
                count += len(facts)
                findings += [found for one in facts for found in check_group(one)]
                findings += [found for one in await look_at_streams(redis, keys, topic) for found in check_stream(one)]
                findings += [check_stranger(one) for one in await strangers(redis, keys, topic)]
    return count


async def _keys(
    redis: RedisDoor, keys: Keys, findings: list[Diagnosis], lanes: Mapping[str, Lane], most: int | None
) -> int:
    """How many keys were looked at."""
    scanned: list[Scanned] = []
    lost: dict[str, Lost] = {}
    async with _told(findings, "keys"):
        partitions = await topics(redis, keys)
        groups = {topic: frozenset(await groups_of(redis, keys, topic)) for topic in partitions}
        known = Known(keys.namespace, partitions, groups)
        scanned += await asyncio.gather(*(scan(lane, where, known, most, lost) for where, lane in lanes.items()))
    for one in scanned:
        if not one.whole:
            what = f"only the first {one.looked_at:,} keys were looked at for keys without owner"
            findings.append(not_looked_at(one.where, what, "streamlib doctor --scan looks at all of them"))
    findings += check_keys(lost)
    return sum(one.looked_at for one in scanned)


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
    return not_looked_at(where, f"not looked at, or not wholly: {error}", right)
