"""What endangers events between servers: replicas missing or behind, too few sentinels, clocks that differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from streamlib.ops.findings import Code, Diagnosis, Severity, not_looked_at
from streamlib.redisio.node_facts import NodeFacts
from streamlib.redisio.quorum import Verdict, Watcher
from streamlib.settings import Settings

SKEW_MS = 1_000
_LAG_S = 10
"""From when on a replica is behind where min-replicas-max-lag is not known; it is that setting's default."""


def check_copies(facts: NodeFacts) -> list[Diagnosis]:
    """Every finding about the replicas of one primary."""
    if facts.error or facts.info.role != "master":
        return []
    return [*missing(facts), *behind(facts), *split_brain(facts), *refusing(facts)]


def missing(facts: NodeFacts) -> list[Diagnosis]:
    if facts.copies:
        return []
    why = "what its disk loses is gone, and nothing goes on while it is down"
    advice = 'add a replica with sentinels or a cluster; durability="replicas:1" then waits for it'
    return [_found("no_replicas", "warning", facts, "it has no replica", why, advice)]


def behind(facts: NodeFacts) -> list[Diagnosis]:
    """Replicas that do not copy now, or did not say for long how far they are."""
    most_s = facts.max_lag_s or _LAG_S
    why = "a failover to it loses what it has not got"
    advice = "look at that replica's log, its network and its load"
    return [
        _found(
            "replica_behind", "danger", facts,
            f"its replica {copy.host[0]}:{copy.host[1]} is {copy.state or 'of unknown state'}, last heard of "
            f"{copy.lag_s} s ago",
            why, advice,
        )
        for copy in facts.copies
        if copy.state != "online" or copy.lag_s > most_s
    ]  # fmt: skip


def split_brain(facts: NodeFacts) -> list[Diagnosis]:
    if not facts.copies or facts.min_copies != 0:
        return []
    what = f"it has {len(facts.copies)} replicas, and min-replicas-to-write is 0 or off"
    why = "a primary that is cut off goes on taking events, and they are lost when it comes back as a replica"
    return [
        _found(
            "min_replicas_unset",
            "warning",
            facts,
            what,
            why,
            "set min-replicas-to-write 1, with its min-replicas-max-lag at 10",
        )
    ]


def refusing(facts: NodeFacts) -> list[Diagnosis]:
    good = facts.good_copies if facts.good_copies is not None else len(facts.copies)
    if not facts.min_copies or good >= facts.min_copies:
        return []
    what = f"min-replicas-to-write is {facts.min_copies}, and {good} replicas are near enough"
    advice = "bring the replicas back, or lower min-replicas-to-write for the time being"
    return [_found("min_replicas_not_met", "danger", facts, what, "it takes no events", advice)]


def check_watchers(watchers: Sequence[Watcher]) -> list[Diagnosis]:
    """Every finding about the sentinels: those that do not answer, and what the others say of them."""
    return [found for watcher in watchers for found in _WATCHER[watcher.verdict](watcher)]


def _too_few(watcher: Watcher) -> list[Diagnosis]:
    what = f"this sentinel says: {watcher.told}"
    why = "when the primary is gone no other server takes over"
    return [
        Diagnosis(
            code="no_failover", severity="danger", where=watcher.where, what=what, why=why,
            advice="bring the other sentinels back, and mend the network between them",
        )
    ]  # fmt: skip


def _silent(watcher: Watcher) -> list[Diagnosis]:
    return [
        Diagnosis(
            code="sentinel_silent", severity="warning", where=watcher.where,
            what=f"this sentinel does not answer: {watcher.told}",
            why="with a majority of them gone no other server takes over",
            advice="start it, or take it out of redis.url",
        )
    ]  # fmt: skip


def _denied(watcher: Watcher) -> list[Diagnosis]:
    what = f"this sentinel did not tell whether there are enough of them: {watcher.told}"
    return [not_looked_at(watcher.where, what, "allow SENTINEL CKQUORUM, and check sentinel_username and the name")]


_WATCHER: dict[Verdict, Callable[[Watcher], list[Diagnosis]]] = {
    "enough": lambda _: [], "too_few": _too_few, "silent": _silent, "denied": _denied,
}  # fmt: skip


def check_clocks(nodes: Sequence[NodeFacts], settings: Settings) -> list[Diagnosis]:
    """Clocks that differ from this machine's, and from each other so much that a failover shifts every lease."""
    known = [one for one in nodes if one.clock_ahead_ms is not None]
    return [*(found for one in known for found in _skew(one)), *_apart(known, settings)]


def _skew(facts: NodeFacts) -> list[Diagnosis]:
    ahead_ms = facts.clock_ahead_ms or 0.0
    if abs(ahead_ms) - facts.clock_unsure_ms <= SKEW_MS:
        return []
    what = f"its clock is {abs(ahead_ms) / 1000:.1f} s {'ahead of' if ahead_ms > 0 else 'behind'} this machine's"
    why = "times of events, ages in tables and --since are wrong by as much; leases go by the server's clock alone"
    return [_found("clock_skew", "warning", facts, what, why, "run NTP on both machines")]


def _apart(known: Sequence[NodeFacts], settings: Settings) -> list[Diagnosis]:
    by_clock = sorted(known, key=lambda one: one.clock_ahead_ms or 0.0)
    if len(by_clock) < 2:
        return []
    first, last = by_clock[0], by_clock[-1]
    apart_ms = (last.clock_ahead_ms or 0.0) - (first.clock_ahead_ms or 0.0)
    if apart_ms - first.clock_unsure_ms - last.clock_unsure_ms <= settings.worker.lease_ms / 2:
        return []
    what = f"its clock is {apart_ms / 1000:.1f} s ahead of that of {first.where}"
    why = "after a failover between them leases end too early, and an event may run twice at once, or too late"
    return [_found("clocks_apart", "danger", last, what, why, "run NTP on both machines")]


def _found(code: Code, severity: Severity, facts: NodeFacts, what: str, why: str, advice: str) -> Diagnosis:
    return Diagnosis(code=code, severity=severity, where=facts.where, what=what, why=why, advice=advice)
