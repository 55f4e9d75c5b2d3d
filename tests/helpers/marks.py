"""Where done marks are kept in this run: STREAMLIB_TEST_IDEMPOTENCY=compact runs the same tests on members of sets."""

import hashlib
import os
from typing import Any

import redis

from streamlib.settings import IdempotencySettings

COMPACT = os.environ.get("STREAMLIB_TEST_IDEMPOTENCY", "keys") == "compact"
IDEMPOTENCY = IdempotencySettings(store="compact" if COMPACT else "keys")
AnyClient = redis.Redis | redis.RedisCluster


def mark(client: AnyClient, stream: str, group: str, event_id: str) -> bytes | None:
    """The idempotency key's value, b"d" for a member too; None for neither."""
    stored: Any = client.get("{" + stream + "}:idem:" + group + ":" + event_id)
    return b"d" if stored is None and is_member(client, stream, group, event_id) else stored


def forget(client: AnyClient, stream: str, group: str, event_id: str) -> None:
    """Delete what is known of the event; where marks are members, everything that is known of any."""
    tag = "{" + stream + "}"
    client.delete(f"{tag}:idem:{group}:{event_id}", *client.keys(f"{tag}:done:{group}:*"))


def is_member(client: AnyClient, stream: str, group: str, event_id: str) -> bool:
    """Whether a set of this group holds the event's digest; names and digests are spelled out a second time here."""
    tag = "{" + stream + "}"
    digest = hashlib.blake2b(event_id.encode(), digest_size=16).digest()
    plan: Any = client.hget(f"{tag}:done:{group}", "plan")
    segments = [segment.split(".") for segment in (plan or b"").decode().split()]
    number = int.from_bytes(digest[:8], "big")
    return any(
        client.sismember(f"{tag}:done:{group}:{opened}:{number % int(shards)}", digest)  # type: ignore[arg-type]
        for opened, shards in segments
    )
