"""Finds keys in streamlib's name pattern that belong to no declared topic or group."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

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

_TAKE = "they take memory, some for ever, unless it is the register of topics that was lost"
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


class Lost(Struct, frozen=True):
    """The keys of one lost owner: how many of each kind, and one of them."""

    kinds: Counter[str]
    example: str


class Scanned(Struct, frozen=True):
    """The keys of one server: how many were looked at, and whether those were all."""

    where: str
    looked_at: int
    whole: bool


async def scan(lane: Executes, where: str, known: Known, most: int | None, lost: dict[str, Lost]) -> Scanned:
    """Look at up to `most` keys of one server, None for all; owner -> keys goes to `lost`. Raises what the client
    raises."""
    cursor, looked_at = b"0", 0
    while True:
        cursor, names = await lane.execute("SCAN", cursor, "COUNT", _STEP)
        looked_at += len(names)
        for orphan in orphans_of(names, known):
            lost.setdefault(orphan.owner, Lost(Counter(), orphan.key)).kinds[orphan.kind] += 1
        if cursor == b"0" or (most is not None and looked_at >= most):
            return Scanned(where, looked_at, cursor == b"0")


def orphans_of(names: Iterable[bytes], known: Known) -> list[Orphan]:
    """Those of these keys that are named like ours, in our namespace, and belong to nobody."""
    keys = (name.decode("utf-8", "backslashreplace") for name in names)
    return [orphan for key in keys if (orphan := _of_stream(key, known) or _of_registry(key, known)) is not None]


def check_keys(lost: Mapping[str, Lost]) -> list[Diagnosis]:
    """One finding for each lost owner, the first twenty of them."""
    told = [_finding(owner, lost[owner]) for owner in sorted(lost)]
    if len(told) > MOST_TOLD:
        what = f"{len(told) - MOST_TOLD} more topics and groups that no app declared have keys"
        told[MOST_TOLD:] = [_diagnosis("warning", "keys", what, _TAKE, _ADVICE)]
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


def _finding(owner: str, lost: Lost) -> Diagnosis:
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(lost.kinds.items()))
    what = f"{lost.kinds.total()} keys ({counts}), {lost.example!r} for one, and no app declared it"
    if lost.kinds.keys() & _EVENTS:
        return _diagnosis("danger", owner, what, "they hold events that nobody will handle", _ADVICE)
    return _diagnosis("warning", owner, what, _TAKE, _ADVICE)


def _diagnosis(severity: Severity, where: str, what: str, why: str, advice: str) -> Diagnosis:
    return Diagnosis(code="keys_without_owner", severity=severity, where=where, what=what, why=why, advice=advice)
