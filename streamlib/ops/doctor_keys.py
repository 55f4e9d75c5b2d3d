"""Finds keys in streamlib's name pattern that belong to no declared topic or group."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from msgspec import Struct

from streamlib.keys import OWN_NAMESPACE, Keys
from streamlib.ops.findings import Diagnosis, Severity
from streamlib.redisio.indexes import GENERATION
from streamlib.redisio.scripts import Executes

LOOK_AT = 10_000
"""Keys of each server, unless all are asked for."""
MOST_TOLD = 20
_STEP = 1_000
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PARTITION = re.compile(r"\.\d+$")
_OF_GROUP = frozenset({"idem", "done", "retry", "retrybody", "again", "dead", "suspect", "replay", "owner", "keys"})
_OF_TOPIC = frozenset({"producers", "dedup", "later", "laterbody", "agg", "snap", "cmd"})
_REGISTERS = frozenset({"group", "limit", "replay"})
_EVENTS = frozenset({"retry", "retrybody", "again", "later", "laterbody"})
"""Kinds that hold events which nobody has handled yet."""

_ADVICE = "run the app that declares it; if there is none any more and nobody needs what they hold, remove them"


class Known(Struct, frozen=True):
    """What is declared in one namespace: topic -> partitions, and topic -> groups."""

    namespace: str
    partitions: dict[str, int]
    groups: dict[str, frozenset[str]]

    def topic_of(self, stream: str) -> str | None:
        """The topic that a stream's name (without the namespace) is a partition of."""
        whole = self.partitions.get(stream)
        topic = _PARTITION.sub("", stream)
        count = self.partitions.get(topic, 0)
        if whole == 1:
            return stream
        return topic if count > 1 and stream in {f"{topic}.{number}" for number in range(count)} else None


class Orphan(Struct, frozen=True):
    """A key without owner: whose it was, its kind, and the key."""

    owner: str
    kind: str
    key: str


class Scanned(Struct, frozen=True):
    """The keys of one server: how many were looked at, whether those were all, and which have no owner."""

    where: str
    looked_at: int
    whole: bool
    orphans: list[Orphan]


async def scan(lane: Executes, where: str, known: Known, most: int | None) -> Scanned:
    """Look at up to `most` keys of one server, None for all. Raises what the client raises."""
    cursor, looked_at = b"0", 0
    orphans: list[Orphan] = []
    while True:
        cursor, names = await lane.execute("SCAN", cursor, "COUNT", _STEP)
        looked_at += len(names)
        orphans += orphans_of(names, known)
        if cursor == b"0" or (most is not None and looked_at >= most):
            return Scanned(where, looked_at, cursor == b"0", orphans)


def orphans_of(names: Iterable[bytes], known: Known) -> list[Orphan]:
    """Those of these keys that are named like ours, in our namespace, and belong to nobody."""
    keys = (name.decode("utf-8", "backslashreplace") for name in names)
    return [orphan for key in keys if (orphan := _of_stream(key, known) or _of_registry(key, known)) is not None]


def check_keys(orphans: Iterable[Orphan]) -> list[Diagnosis]:
    """One finding for each lost owner, the first twenty of them."""
    owners: dict[str, list[Orphan]] = {}
    for orphan in orphans:
        owners.setdefault(orphan.owner, []).append(orphan)
    told = [_finding(owner, owners[owner]) for owner in sorted(owners)]
    if len(told) > MOST_TOLD:
        rest = len(told) - MOST_TOLD
        what = f"{rest} more topics and groups that nobody declared have keys"
        told[MOST_TOLD:] = [_diagnosis("warning", "keys", what, "see above", "see above")]
    return told


def _of_stream(key: str, known: Known) -> Orphan | None:
    tag, closed, rest = key[1:].partition("}:")
    kind, _, about = rest.partition(":")
    namespace, _, stream = tag.rpartition(":")
    if not key.startswith("{") or not closed or namespace != known.namespace or not _NAME.fullmatch(stream):
        return None
    if kind not in _OF_GROUP | _OF_TOPIC | {"view"}:
        return None
    topic = known.topic_of(stream)
    if topic is None:
        return Orphan(f"topic {_PARTITION.sub('', stream)}", kind, key)
    if kind in _OF_TOPIC:
        return None
    name = about.partition(":")[0]
    groups = known.groups.get(topic, frozenset())
    declared = {GENERATION.sub("", group) for group in groups} if kind == "view" else groups
    what = "view" if kind == "view" else "group"
    return None if name in declared else Orphan(f"{what} {name} of {topic}", kind, key)


def _of_registry(key: str, known: Known) -> Orphan | None:
    before = f"{Keys(known.namespace).topics().removesuffix('topics')}"
    parts = key.removeprefix(before).split(":")
    if not key.startswith(f"{OWN_NAMESPACE}:") or not key.startswith(before) or len(parts) != 3:
        return None
    kind, topic, group = parts
    if kind not in _REGISTERS or group in known.groups.get(topic, frozenset()):
        return None
    return Orphan(f"group {group} of {topic}", kind, key)


def _finding(owner: str, orphans: list[Orphan]) -> Diagnosis:
    kinds = Counter(orphan.kind for orphan in orphans)
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    what = f"{len(orphans)} keys ({counts}), {orphans[0].key!r} for one, and no app declared it"
    if kinds.keys() & _EVENTS:
        why = "they hold events that nobody will handle"
        return _diagnosis("danger", owner, what, why, _ADVICE)
    why = "they take memory, some for ever, unless it is the register of topics that was lost"
    return _diagnosis("warning", owner, what, why, _ADVICE)


def _diagnosis(severity: Severity, where: str, what: str, why: str, advice: str) -> Diagnosis:
    return Diagnosis(code="keys_without_owner", severity=severity, where=where, what=what, why=why, advice=advice)
