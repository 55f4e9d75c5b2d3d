"""What endangers events in one server: eviction, disk, memory, connections, version. Each check looks at facts only."""

from __future__ import annotations

from collections.abc import Callable

from streamlib.ops.findings import Code, Diagnosis, Severity, not_looked_at, of_problem
from streamlib.redisio import server
from streamlib.redisio.node_facts import NodeFacts
from streamlib.redisio.server_holes import holes_of
from streamlib.settings import Settings

Check = Callable[[NodeFacts, Settings], list[Diagnosis]]

NEAR, FULL = 0.8, 0.95
"""Shares of the memory bound from which it is unwise, and a danger."""
_MIB = 1024 * 1024

_UNKNOWN = {
    "INFO": ("version, append-only file, last writes to disk, memory and replicas", "+info"),
    "CONFIG GET": (
        "appendfsync, min-replicas-to-write, timeout, tcp-keepalive and client-output-buffer-limit", "+config|get",
    ),
    "ACL GETUSER": ("whether anybody may connect without a password", "+acl|getuser"),
    "TIME": ("the server's clock", "+time"),
}  # fmt: skip


def check_node(facts: NodeFacts, settings: Settings) -> list[Diagnosis]:
    """Every finding about one server."""
    if facts.error:
        return unreachable(facts, settings)
    return [found for check in CHECKS for found in check(facts, settings)]


def unreachable(facts: NodeFacts, settings: Settings) -> list[Diagnosis]:
    """A server that did not answer. A replica may only be hidden from here."""
    severity: Severity = "danger" if facts.primary else "not_looked_at"
    why = "its events are out of reach" if facts.primary else "nobody knows whether it could take over"
    advice = "is it running, and does the name that it goes by lead there from this machine?"
    return [_found("unreachable", severity, facts, f"it does not answer: {facts.error}", why, advice)]


def denied(facts: NodeFacts, settings: Settings) -> list[Diagnosis]:
    return [
        not_looked_at(
            facts.where,
            f"{command} is denied: {_UNKNOWN[command][0]} were not looked at",
            f"run doctor as a user with {_UNKNOWN[command][1]}",
        )
        for command in facts.denied
    ]


def version(facts: NodeFacts, settings: Settings) -> list[Diagnosis]:
    if problem := server.too_old(facts.info):
        return of_problem("version_too_old", "danger", facts.where, problem)
    return [
        _found(
            "version_hole", "warning", facts,
            f"{facts.info} has {hole.names}, unless your distributor has mended it",
            hole.why, f"upgrade to {hole.mended_in(facts.info)} or later",
        )
        for hole in holes_of(facts.info)
    ]  # fmt: skip


def eviction(facts: NodeFacts, settings: Settings) -> list[Diagnosis]:
    harmless = facts.info.maxmemory == 0 or settings.redis.allow_eviction
    return of_problem("eviction", "warning" if harmless else "danger", facts.where, server.evicts(facts.info))


def role(facts: NodeFacts, settings: Settings) -> list[Diagnosis]:
    return of_problem("role", "danger", facts.where, server.replica(facts.info)) if facts.primary else []


def access(facts: NodeFacts, settings: Settings) -> list[Diagnosis]:
    return of_problem("open_to_all", "warning", facts.where, server.open_to_all(facts.info, settings.redis.url))


def encryption(facts: NodeFacts, settings: Settings) -> list[Diagnosis]:
    return of_problem("not_encrypted", "warning", facts.where, server.not_encrypted(facts.info, settings.redis.url))


def verification(facts: NodeFacts, settings: Settings) -> list[Diagnosis]:
    return of_problem("not_verified", "warning", facts.where, server.not_verified(settings.redis.url))


def debugging(facts: NodeFacts, settings: Settings) -> list[Diagnosis]:
    if facts.debug_allowed != "yes":
        return []
    why = "whoever may use DEBUG can stop the server or spoil its data with one command"
    return [_found("debug_allowed", "warning", facts, "enable-debug-command is yes", why, "set it to no")]


def append_only_file(facts: NodeFacts, settings: Settings) -> list[Diagnosis]:
    found = of_problem("aof_off", "danger", facts.where, server.not_appended(facts.info))
    if facts.info.aof and facts.appendfsync == "no":
        why = "what was confirmed lies in the machine's memory until it likes to write it, half a minute on Linux"
        found.append(_found("appendfsync_no", "danger", facts, "appendfsync is no", why, "set everysec, or always"))
    return found


def last_writes(facts: NodeFacts, settings: Settings) -> list[Diagnosis]:
    """Whether what was last written to disk could be written."""
    advice = "look at the server's log and at the space and rights of its directory"
    writes: tuple[tuple[Code, bool | None, str, str], ...] = (
        ("aof_write_failed", facts.aof_written, "write to the append-only file", "it takes no events until it can"),
        ("aof_rewrite_failed", facts.aof_rewritten, "rewrite of the append-only file", "the file only grows"),
        ("snapshot_failed", facts.snapshot_taken, "snapshot",
         "with save points it takes no events until one succeeds, and replicas cannot be filled"),
    )  # fmt: skip
    return [
        _found(code, "danger", facts, f"the last {what} failed", why, advice)
        for code, done, what, why in writes
        if done is False
    ]


def memory(facts: NodeFacts, settings: Settings) -> list[Diagnosis]:
    bound = facts.info.maxmemory or facts.machine_bytes
    if not facts.used_bytes or not bound or facts.used_bytes < NEAR * bound:
        return []
    full = facts.used_bytes >= FULL * bound
    bounded = bool(facts.info.maxmemory)
    name = "maxmemory" if bounded else "the machine's memory (maxmemory is 0)"
    used = f"{facts.used_bytes / _MIB:,.0f} of {bound / _MIB:,.0f} MiB"
    why = "a full server refuses events" if bounded else "the operating system kills a server that needs more"
    advice = "raise it, shorten retention.* or idempotency.window_s, or add partitions on more nodes"
    severity: Severity = "danger" if full else "warning"
    return [_found("memory_near_limit", severity, facts, f"{used} of {name} are used", why, advice)]


def idle_timeout(facts: NodeFacts, settings: Settings) -> list[Diagnosis]:
    """A blocking read is no idle connection; the one that renews claims rests for a quarter of the lease."""
    rests_s = settings.worker.lease_ms / 4000
    if not facts.idle_timeout_s or facts.idle_timeout_s > rests_s:
        return []
    what = f"timeout is {facts.idle_timeout_s} s, and workers renew their claims every {rests_s:g} s"
    why = "the server closes that connection each time; a claim that is renewed too late runs elsewhere too"
    return [_found("idle_timeout", "warning", facts, what, why, f"set timeout 0, or more than {rests_s:g}")]


def keepalive(facts: NodeFacts, settings: Settings) -> list[Diagnosis]:
    if facts.keepalive_s != 0:
        return []
    why = "a worker whose machine is gone stays connected, and events that are read for it wait for a lease"
    return [_found("keepalive_off", "warning", facts, "tcp-keepalive is 0", why, "set 300, the server's default")]


def output_buffer(facts: NodeFacts, settings: Settings) -> list[Diagnosis]:
    """A read brings at most what a worker has room for, and one event more."""
    limit = facts.buffer_limit
    largest = settings.worker.prefetch_bytes + settings.limits.payload_bytes
    bounds = [bound for bound in (limit.hard_bytes, limit.soft_bytes) if bound] if limit else []
    if not bounds or min(bounds) >= largest:
        return []
    what = f"client-output-buffer-limit normal is {min(bounds):,} bytes, and one read may bring {largest:,}"
    why = "the server closes the connection of a worker that reads more, and what it read waits for a lease"
    advice = "set it to 0 0 0, the server's default, or lower worker.prefetch_bytes"
    return [_found("output_buffer_limit", "warning", facts, what, why, advice)]


CHECKS: tuple[Check, ...] = (
    denied, version, role, eviction, append_only_file, last_writes, memory, access, encryption, verification,
    debugging,
    idle_timeout, keepalive, output_buffer,
)  # fmt: skip


def _found(code: Code, severity: Severity, facts: NodeFacts, what: str, why: str, advice: str) -> Diagnosis:
    return Diagnosis(code=code, severity=severity, where=facts.where, what=what, why=why, advice=advice)
