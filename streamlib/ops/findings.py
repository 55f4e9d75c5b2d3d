"""What `streamlib doctor` finds: each thing with why it matters and what to do."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from streamlib.redisio.server import Problem

Severity = Literal["danger", "warning", "not_looked_at"]
"""Events can be lost, or nobody will handle them; worse than it should be; nobody knows."""

Code = Literal[
    "unreachable", "version_too_old", "version_hole", "role", "eviction", "aof_off", "appendfsync_no",
    "aof_write_failed", "aof_rewrite_failed", "snapshot_failed", "memory_near_limit", "open_to_all", "not_encrypted",
    "not_verified", "debug_allowed", "idle_timeout",
    "keepalive_off", "output_buffer_limit", "no_replicas", "replica_behind", "min_replicas_unset",
    "min_replicas_not_met", "sentinel_silent", "no_failover", "clock_skew", "clocks_apart", "stuck_pending",
    "dead_group", "paused_group", "halted_keys", "dead_letters_growing", "unregistered_group",
    "ids_from_the_future", "keys_without_owner",
    "wrong_type", "not_looked_at",
]  # fmt: skip

ORDER: tuple[Severity, ...] = ("danger", "warning", "not_looked_at")


class Diagnosis(Struct, frozen=True, kw_only=True):
    """One thing found. `code` names its kind for programs, `where` the server, group or keys."""

    code: Code
    severity: Severity
    where: str
    what: str
    why: str
    advice: str


def of_problem(code: Code, severity: Severity, where: str, problem: Problem | None) -> list[Diagnosis]:
    """A problem that the checks at a worker's start know too."""
    if problem is None:
        return []
    about = {"what": problem.what, "why": problem.why, "advice": problem.advice}
    return [Diagnosis(code=code, severity=severity, where=where, **about)]


def not_looked_at(where: str, what: str, advice: str) -> Diagnosis:
    """Silence about it would read as if all were well."""
    return Diagnosis(
        code="not_looked_at", severity="not_looked_at", where=where, what=what, why="nobody knows whether it is well",
        advice=advice,
    )  # fmt: skip
