"""Claims idempotency keys before events run, and renews the claims of those that run."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from streamlib.errors import DeclarationError
from streamlib.keys import StreamKeys
from streamlib.redisio.connection import SyncClient
from streamlib.redisio.delivery import Delivery, fenced
from streamlib.redisio.marks import Marks, Members, agreed, members, other_store
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
_OTHER_STORE = 3


async def claim(
    redis: Executes,
    deliveries: Sequence[Delivery],
    *,
    group: str,
    worker_id: str,
    lease_ms: int,
    window_ms: int,
    take_suspects: bool = False,
    marks: Marks | None = None,
) -> list[Claimed]:
    """Claim deliveries of one partition and epoch (at most 500), answers in their order. Safe to send twice.

    With `marks` done marks are members of sets, else keys. Raises Fenced when the partition has another owner, or
    another epoch, by now; DeclarationError without `marks` where another worker of the group keeps them as members.
    """
    keys, epoch = deliveries[0].keys, deliveries[0].epoch
    mode = "suspects" if take_suspects else "normal"
    event_ids = [d.event_id for d in deliveries]

    async def ask(told: Members) -> Any:
        return await _claim.run(
            redis,
            [
                keys.suspect(group), keys.owner(group), keys.marks(group), keys.again(group),
                *keys.idems(group, event_ids), *told.keys,
            ],
            [
                worker_id, lease_ms, window_ms, mode, epoch, len(deliveries), *told.head,
                *[d.ref for d in deliveries], *told.digests,
            ],
        )  # fmt: skip

    reply = await agreed(marks, keys.stream, lambda: members(marks, keys, group, event_ids), ask)
    if not reply:
        raise fenced(keys, group, epoch)
    if reply[0] == _OTHER_STORE:
        raise DeclarationError(other_store(keys, group))
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
