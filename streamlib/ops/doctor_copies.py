"""What endangers events between servers: replicas that are missing or behind, and clocks that differ."""

from __future__ import annotations

from collections.abc import Sequence

from streamlib.ops.findings import Code, Diagnosis, Severity
from streamlib.redisio.node_facts import NodeFacts
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
    what = f"it has {len(facts.copies)} replicas, and min-replicas-to-write is 0"
    why = "a primary that is cut off goes on taking events, and they are lost when it comes back as a replica"
    return [_found("min_replicas_unset", "warning", facts, what, why, "set min-replicas-to-write 1")]


def refusing(facts: NodeFacts) -> list[Diagnosis]:
    good = facts.good_copies if facts.good_copies is not None else len(facts.copies)
    if not facts.min_copies or good >= facts.min_copies:
        return []
    what = f"min-replicas-to-write is {facts.min_copies}, and {good} replicas are near enough"
    advice = "bring the replicas back, or lower min-replicas-to-write for the time being"
    return [_found("min_replicas_not_met", "danger", facts, what, "it takes no events", advice)]


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
