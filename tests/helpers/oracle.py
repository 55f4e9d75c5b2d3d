"""The oracle: what became of every published event, read from Redis alone, and keys nobody can explain.

The key names are spelled out here a second time on purpose: an oracle that asked the code under test where to
look would believe its mistakes.
"""

import fnmatch
import re
from collections.abc import Iterable, Sequence
from typing import Any

import redis
from msgspec import Struct

from tests.helpers.marks import is_member

MANY = 10_000_000
AnyClient = redis.Redis | redis.RedisCluster
"""Of one server or of a cluster, in bytes mode with RESP2 shapes."""


class Ledger(Struct, frozen=True):
    """Where the published events of one group are; event ids, an id may be in several sets."""

    published: frozenset[str]
    undelivered: frozenset[str]
    """Still ahead of the group in the stream, or delayed and not yet in it."""
    pending: frozenset[str]
    """Delivered from the stream and not acknowledged."""
    retrying: frozenset[str]
    """Scheduled for later, or lying in the group's `again` stream."""
    dead: frozenset[str]
    """A dead letter of this group exists."""
    done: frozenset[str]
    """Marked as done."""
    marked_dead: frozenset[str]
    """Marked as dead-lettered; without a dead letter that is no account (unless somebody purged it)."""

    @property
    def lost(self) -> frozenset[str]:
        return self.published - self.undelivered - self.pending - self.retrying - self.dead - self.done

    @property
    def settled(self) -> bool:
        """Has every published event reached its end: done or dead, nothing under way?"""
        under_way = self.undelivered | self.pending | self.retrying
        return self.published <= self.done | self.dead and not self.published & under_way

    def __str__(self) -> str:
        sets = ("published", "undelivered", "pending", "retrying", "dead", "done", "lost")
        return ", ".join(f"{len(getattr(self, name))} {name}" for name in sets)


def ledger(client: AnyClient, stream: str | Sequence[str], group: str, published_ids: Iterable[str]) -> Ledger:
    """Account for the published event ids of one group over one partition stream or several.

    Each stream is read in one transaction, so the account holds while workers run. `client` must be in bytes
    mode with RESP2 shapes, as `RedisProc.client()` is. Raises AssertionError when a stream holds entries and
    the group does not exist.
    """
    ids = sorted(set(published_ids))
    streams = [stream] if isinstance(stream, str) else list(stream)
    parts = [_partition_ledger(client, name, group, ids) for name in streams]

    def together(name: str) -> frozenset[str]:
        return frozenset[str]().union(*(getattr(part, name) for part in parts))

    return Ledger(
        published=frozenset(ids),
        undelivered=together("undelivered"),
        pending=together("pending"),
        retrying=together("retrying"),
        dead=together("dead"),
        done=together("done"),
        marked_dead=together("marked_dead"),
    )


def assert_nothing_lost(
    client: AnyClient, stream: str | Sequence[str], group: str, published_ids: Iterable[str]
) -> Ledger:
    """Fail when a published event is neither done, pending, retrying, dead nor still to be delivered."""
    account = ledger(client, stream, group, published_ids)
    if account.lost:
        some = ", ".join(sorted(account.lost)[:10])
        unburied = len(account.lost & account.marked_dead)
        raise AssertionError(
            f"group {group!r} of {stream!r} lost {len(account.lost)} events ({some}; {unburied} of them"
            f" marked dead without a dead letter): {account}"
        )
    return account


def _partition_ledger(client: AnyClient, stream: str, group: str, ids: list[str]) -> Ledger:
    tag = "{" + stream + "}"
    with _holder(client, stream).pipeline(transaction=True) as tx:
        tx.xrange(stream)
        tx.xinfo_groups(stream)
        tx.xpending_range(stream, group, min="-", max="+", count=MANY)
        tx.zrange(f"{tag}:retry:{group}", 0, -1)
        tx.xrange(f"{tag}:again:{group}")
        tx.xrange(f"{tag}:dead:{group}")
        tx.zrange(f"{tag}:later", 0, -1)
        if ids:
            tx.mget([f"{tag}:idem:{group}:{event_id}" for event_id in ids])
        replies: list[Any] = tx.execute(raise_on_error=False)
    entries, groups, pending, retry, again, dead, later, *marks = replies
    for reply in (entries, retry, again, dead, later, *marks):
        if isinstance(reply, Exception):
            raise reply
    event_ids = {entry_id: _event_id(entry_id, fields) for entry_id, fields in entries}
    states = dict(zip(ids, marks[0], strict=True)) if ids else {}
    delivered = _last_delivered(stream, group, groups) if entries else (0, 0)
    return Ledger(
        published=frozenset(ids),
        undelivered=frozenset(name for entry, name in event_ids.items() if _order(entry) > delivered)
        | frozenset(_text(member) for member in later),
        pending=frozenset(event_ids[row["message_id"]] for row in _rows(pending) if row["message_id"] in event_ids),
        retrying=frozenset(_text(member) for member in retry) | _ids_of(again),
        dead=_ids_of(dead),
        done=frozenset(
            event_id
            for event_id, state in states.items()
            if (state or b"").startswith(b"d") or (state is None and is_member(client, stream, group, event_id))
        ),
        marked_dead=frozenset(event_id for event_id, state in states.items() if (state or b"").startswith(b"x")),
    )


def _holder(client: AnyClient, key: str) -> redis.Redis:
    """A client of the server on which the key lies."""
    if isinstance(client, redis.Redis):
        return client
    found: redis.Redis = client.get_redis_connection(client.get_node_from_key(key))  # type: ignore[no-untyped-call]
    return found


def _nodes(client: AnyClient) -> list[redis.Redis]:
    """A client of each server that answers for keys."""
    if isinstance(client, redis.Redis):
        return [client]
    return [client.get_redis_connection(node) for node in client.get_primaries()]  # type: ignore[no-untyped-call]


def _last_delivered(stream: str, group: str, groups: Any) -> tuple[int, int]:
    for row in _rows(groups):
        if _text(row["name"]) == group:
            return _order(row["last-delivered-id"])
    raise AssertionError(f"stream {stream!r} holds entries, but has no group {group!r}")


def _rows(reply: Any) -> list[dict[str, Any]]:
    """The rows of an XINFO or XPENDING reply; no rows when stream or group do not exist."""
    if isinstance(reply, redis.exceptions.ResponseError):
        if str(reply).startswith(("no such key", "NOGROUP")):
            return []
        raise reply
    rows: list[dict[str, Any]] = reply
    return rows


def _ids_of(entries: list[tuple[bytes, dict[bytes, bytes]]]) -> frozenset[str]:
    return frozenset(_event_id(entry_id, fields) for entry_id, fields in entries)


def _event_id(entry_id: bytes, fields: dict[bytes, bytes] | None) -> str:
    """The field `id`; an entry that a foreign program added without one goes by its entry id."""
    return _text((fields or {}).get(b"id", entry_id))


def _order(entry_id: bytes) -> tuple[int, int]:
    milliseconds, _, sequence = entry_id.partition(b"-")
    return int(milliseconds), int(sequence)


def _text(raw: bytes) -> str:
    return raw.decode(errors="surrogateescape")


_NAME = r"[A-Za-z0-9._-]{1,72}"
_STREAM = rf"(?:{_NAME}:)?{_NAME}"
_TAG = rf"\{{{_STREAM}\}}"
_REGISTRY = rf"streamlib:(?:{_NAME}:)?"


class KeyRule(Struct, frozen=True):
    """Keys that may be there: the shape of the name, the type, and whether they must expire."""

    pattern: re.Pattern[str]
    type: str
    expires: bool = False


def _rule(pattern: str, type_: str, *, expires: bool = False) -> KeyRule:
    return KeyRule(re.compile(pattern, re.DOTALL), type_, expires)


KEY_RULES = (
    _rule(_STREAM, "stream"),
    _rule(rf"{_TAG}:idem:{_NAME}:.+", "string"),  # whether it must expire depends on its state
    _rule(rf"{_TAG}:done:{_NAME}", "hash", expires=True),
    _rule(rf"{_TAG}:done:{_NAME}:\d+:\d+", "set", expires=True),
    _rule(rf"{_TAG}:retry:{_NAME}", "zset"),
    _rule(rf"{_TAG}:retrybody:{_NAME}", "hash"),
    _rule(rf"{_TAG}:(again|dead):{_NAME}", "stream"),
    _rule(rf"{_TAG}:(suspect|owner|keys):{_NAME}", "hash"),
    _rule(rf"{_TAG}:producers", "hash"),
    _rule(rf"{_TAG}:dedup:.+", "string", expires=True),
    _rule(rf"{_TAG}:later", "zset"),
    _rule(rf"{_TAG}:laterbody", "hash"),
    _rule(rf"{_TAG}:view:{_NAME}:\d+(:row:.+)?", "hash"),
    _rule(rf"{_TAG}:view:{_NAME}:\d+:(by:.+|rows)", "zset"),
    _rule(rf"{_TAG}:agg:.+", "list"),
    _rule(rf"{_TAG}:snap:.+", "string"),
    _rule(rf"{_TAG}:cmd:.+", "string", expires=True),
    _rule(rf"{_REGISTRY}topics", "hash"),
    _rule(rf"{_REGISTRY}views", "hash"),
    _rule(rf"{_REGISTRY}group:{_NAME}:{_NAME}", "hash"),
    _rule(rf"{_REGISTRY}limit:{_NAME}:{_NAME}", "hash", expires=True),
    _rule(rf"{_REGISTRY}workers", "zset|hash"),
)


def assert_no_stray_keys(client: AnyClient, allowed_patterns: Iterable[str] = ()) -> None:
    """Fail when a key is left that neither KEY_RULES nor a glob of `allowed_patterns` explains.

    A key with a time to live goes away by itself and passes; one that must expire (a done or claimed
    idempotency key, `dedup`, `cmd`) fails without one, and so does a retry body whose retry is gone.
    """
    globs = [re.compile(fnmatch.translate(pattern)) for pattern in allowed_patterns]
    strays: list[str] = []
    for node in _nodes(client):
        keys: list[Any] = list(node.scan_iter(count=1000))
        strays += _strays(node, [key for key in keys if not any(glob.match(_text(key)) for glob in globs)])
    if strays:
        listed = "\n  ".join(sorted(strays)[:20])
        raise AssertionError(f"{len(strays)} keys left behind without a reason:\n  {listed}")


def _strays(client: redis.Redis, keys: list[bytes]) -> list[str]:
    with client.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.type(key)
            pipe.pttl(key)
        replies = pipe.execute()
    answers = zip(keys, replies[::2], replies[1::2], strict=True)
    lasting = [(key, _text(type_)) for key, type_, ttl_ms in answers if ttl_ms == -1]
    return [f"{_text(key)} ({why})" for key, type_ in lasting if (why := _why_stray(client, _text(key), type_))]


def _why_stray(client: redis.Redis, key: str, type_: str) -> str:
    """Why this key without a time to live must not be there, "" when it may."""
    rules = [rule for rule in KEY_RULES if rule.pattern.fullmatch(key)]
    fitting = [rule for rule in rules if type_ in rule.type.split("|")]
    if not fitting:
        return f"a {type_} where {rules[0].type} belongs" if rules else f"unknown {type_}"
    if all(rule.expires for rule in fitting):
        return "must have a time to live"
    state: Any = client.get(key) if "}:idem:" in key else None
    if (state or b"").startswith((b"d", b"c")):
        return "a done or claimed idempotency key must have a time to live"
    if "}:retrybody:" in key and not client.exists(key.replace("}:retrybody:", "}:retry:", 1)):
        return "bodies of retries that do not exist"
    if key.endswith("}:laterbody") and not client.exists(key.removesuffix("body")):
        return "bodies of delayed events that do not exist"
    return ""
