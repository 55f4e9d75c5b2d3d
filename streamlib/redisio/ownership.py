"""Ownership of a partition: one owner per group at a time, fenced by an epoch that only grows."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from streamlib.redisio.connection import SyncClient
from streamlib.redisio.scripts import Executes, Script

_own = Script("own")


class Lease(Struct, frozen=True):
    """The answer about one partition; `ms_left` until our lease ends, or until the owner's may be taken."""

    ours: bool
    epoch: int
    ms_left: int


async def take(redis: Executes, key: str, owner: str, lease_ms: int) -> Lease:
    """Become the owner unless another one's lease still holds. Safe to send twice."""
    return _read(await _own.run(redis, [key], ["take", owner, 0, lease_ms]))


async def renew(redis: Executes, key: str, owner: str, epoch: int, lease_ms: int) -> Lease:
    """Hold on to a partition; not `ours` when somebody else took it, or when it was released. Safe to send twice."""
    return _read(await _own.run(redis, [key], ["renew", owner, epoch, lease_ms]))


def renew_sync(redis: SyncClient, key: str, owner: str, epoch: int, lease_ms: int) -> Lease:
    """`renew` for a thread."""
    return _read(_own.run_sync(redis, [key], ["renew", owner, epoch, lease_ms]))


async def release(redis: Executes, key: str, owner: str, epoch: int) -> Lease:
    """Let others take the partition at once; harmless when it is not ours any more. Safe to send twice."""
    return _read(await _own.run(redis, [key], ["release", owner, epoch, 0]))


async def owner_of(redis: Executes, key: str, now_ms: int) -> str | None:
    """The worker whose lease holds at `now_ms` of the server's clock. Raises what the client raises."""
    owner, deadline = await redis.execute("HMGET", key, "owner", "deadline")
    return owner.decode("utf-8", "replace") if owner is not None and int(deadline or 0) > now_ms else None


def _read(reply: Any) -> Lease:
    ours, held_epoch, ms_left = reply
    return Lease(ours == 1, held_epoch, ms_left)
