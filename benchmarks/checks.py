"""Looks at the database after a case: what is wrong with its result, as texts; an empty list when it is right."""

from collections.abc import Iterator, Sequence
from typing import Any

import redis

from benchmarks.case import Run, Size
from benchmarks.payload import GROUP, STREAM

CHUNK = 1000
MOST_MARKS = 100_000


def settled(
    client: redis.Redis, run: Run, total: int, *, streams: Sequence[str] = (STREAM,), group: str = GROUP
) -> list[str]:
    """Every event handled once, none pending or unread, and each marked as done."""
    problems = acknowledged(client, run, total, streams=streams, group=group)
    for stream in streams:
        problems += unmarked(client, stream, group)
    return problems


def acknowledged(
    client: redis.Redis, run: Run, total: int, *, streams: Sequence[str] = (STREAM,), group: str = GROUP
) -> list[str]:
    """Every event handled once, none pending, none unread."""
    problems = counted("handled", run.handled, total)
    for stream in streams:
        problems += counted(f"pending in {stream}", pending(client, stream, group), 0)
        problems += counted(f"unread in {stream}", unread(client, stream, group), 0)
    return problems


def counted(what: str, found: float, expected: float) -> list[str]:
    return [] if found == expected else [f"{what}: {found:,}, expected {expected:,}"]


def pending(client: redis.Redis, stream: str, group: str) -> int:
    told: Any = client.execute_command("XPENDING", stream, group)  # type: ignore[no-untyped-call]
    return int(told["pending"] if isinstance(told, dict) else told[0])


def unread(client: redis.Redis, stream: str, group: str) -> int:
    """Entries behind the last one that was delivered to the group."""
    groups: Any = client.xinfo_groups(stream)
    (found,) = [one for one in groups if one["name"] == group.encode()]
    behind: Any = client.xrange(stream, min="(" + found["last-delivered-id"].decode(), count=CHUNK)
    return len(behind)


def unmarked(client: redis.Redis, stream: str, group: str) -> list[str]:
    """The events of a stream, of the first 100,000, whose idempotency key does not say "done"."""
    problems, seen = 0, 0
    for ids in event_ids(client, stream):
        marks: Any = client.mget(["{" + stream + "}:idem:" + group + ":" + event_id for event_id in ids])
        problems += sum(mark != b"d" for mark in marks)
        seen += len(ids)
        if seen >= MOST_MARKS:
            break
    return [f"{problems:,} events of {stream} carry no done mark"] if problems else []


def done_marks(client: redis.Redis) -> int:
    """How many idempotency keys say "done"."""
    done, cursor = 0, 0
    while True:
        told: Any = client.scan(cursor, match="*}:idem:*", count=CHUNK)
        cursor, keys = told
        done += sum(mark == b"d" for mark in client.mget(keys)) if keys else 0
        if cursor == 0:
            return done


def event_ids(client: redis.Redis, stream: str) -> Iterator[list[str]]:
    """The event ids of a stream, in its order, in chunks."""
    after = "-"
    while chunk := _range(client, stream, after):
        yield [fields[b"id"].decode() for _, fields in chunk]
        after = "(" + chunk[-1][0].decode()


def _range(client: redis.Redis, stream: str, first: str) -> list[Any]:
    found: Any = client.xrange(stream, min=first, count=CHUNK)
    return list(found)


def published(client: redis.Redis, size: Size, run: Run) -> list[str]:
    """As many entries as were published, each with an event id of its own."""
    ids = [event_id for chunk in event_ids(client, STREAM) for event_id in chunk]
    return [
        *counted("published", run.handled, size.events),
        *counted("entries in the stream", len(ids), size.events),
        *counted("different event ids", len(set(ids)), size.events),
    ]
