"""Claims idempotency keys before events run, and renews the claims of those that run."""

from __future__ import annotations

import enum
from collections.abc import Sequence

from msgspec import Struct

from streamlib.keys import StreamKeys
from streamlib.redisio.connection import SyncClient
from streamlib.redisio.delivery import Delivery, fenced
from streamlib.redisio.scripts import Executes, Script

_claim = Script("claim")
_renew = Script("renew")


class Verdict(enum.IntEnum):
    """What a claim found."""

    RUN = 0
    DUPLICATE = 1
    BUSY = 2
    SUSPECT = 3


class Claimed(Struct, frozen=True):
    """The answer for one delivery: `number` is ms left for BUSY, workers that died on it for RUN."""

    verdict: Verdict
    number: int


_RUN = Claimed(Verdict.RUN, 0)


async def claim(
    redis: Executes,
    deliveries: Sequence[Delivery],
    *,
    group: str,
    worker_id: str,
    lease_ms: int,
    window_ms: int,
    take_suspects: bool = False,
) -> list[Claimed]:
    """Claim deliveries of one partition and epoch (at most 500), answers in their order. Safe to send twice.

    Raises Fenced when the partition has another owner, or another epoch, by now.
    """
    keys, epoch = deliveries[0].keys, deliveries[0].epoch
    mode = "suspects" if take_suspects else "normal"
    reply = await _claim.run(
        redis,
        [keys.suspect(group), keys.owner(group), *keys.idems(group, [d.event_id for d in deliveries])],
        [worker_id, lease_ms, window_ms, mode, epoch, *[d.ref for d in deliveries]],
    )
    if not reply:
        raise fenced(keys, group, epoch)
    answers = [_RUN] * len(deliveries)
    for i in range(1, len(reply), 3):
        place, verdict, number = reply[i : i + 3]
        answers[place - 1] = Claimed(Verdict(verdict), number)
    return answers


class Held(Struct, frozen=True):
    """One claim that a process holds: the entry's ref and its event id."""

    keys: StreamKeys
    group: str
    again: bool
    ref: str
    event_id: str


def renew(
    redis: SyncClient, held: Sequence[Held], *, consumer: str, worker_id: str, lease_ms: int, window_ms: int
) -> list[str]:
    """Renew claims on entries of one stream (at most 500); the refs whose claim was lost. Safe to send twice."""
    keys, group = held[0].keys, held[0].group
    reply = _renew.run_sync(
        redis,
        [keys.again(group) if held[0].again else keys.stream, *keys.idems(group, [h.event_id for h in held])],
        [group, consumer, worker_id, lease_ms, window_ms, *[h.ref for h in held]],
    )
    return [ref.decode() for ref in reply]
