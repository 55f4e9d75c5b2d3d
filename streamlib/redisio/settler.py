"""Settles outcomes: one script records what became of a batch of events and acknowledges their entries."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, Literal

from msgspec import Struct

from streamlib.codec import Fields
from streamlib.redisio.again import Again, pack
from streamlib.redisio.dead_letter import Failure, counted, dead_letter_fields
from streamlib.redisio.delivery import Delivery, fenced
from streamlib.redisio.marks import Marks, Members, agreed, members
from streamlib.redisio.scripts import Arg, Executes, Script

_settle = Script("settle")

Kind = Literal["ack", "done", "retry", "back", "return", "dead", "hold"]

HALTED_MS = -1
_MAX_TEXT = 500


class Settlement(Struct, frozen=True):
    """What is to be recorded for one delivery; made by the functions below."""

    delivery: Delivery
    kind: Kind
    number: int = 0
    parts: Sequence[Arg] = ()


def ack(delivery: Delivery) -> Settlement:
    """Nothing to record: a duplicate, or a type that the group does not handle."""
    return Settlement(delivery, "ack")


def done(delivery: Delivery, emitted: Sequence[Fields] = ()) -> Settlement:
    """The event was handled; `emitted` entries join the same partition stream with the ack."""
    parts: list[Arg] = []
    for fields in emitted:
        parts.append(len(fields))
        parts.extend(fields)
    return Settlement(delivery, "done", 0, parts)


def hold(delivery: Delivery, *, delay_ms: int, attempts: int, parked_ms: int = 0, text: str = "") -> Settlement:
    """The event stays pending with the owner of its partition, who runs it again after `delay_ms`; successors of its
    key wait behind it. `text` says why."""
    return Settlement(delivery, "hold", delay_ms, (attempts, parked_ms, _line(text)))


def halt(delivery: Delivery, failure: Failure, *, attempts: int, group: str, consumer: str, now_ms: int) -> Settlement:
    """The event stays pending and its key stands still until a person says `resume` or `skip`; what the dead letter
    would tell is kept for `skip`."""
    fields = dead_letter_fields(
        [], failure, attempts=attempts, entry_id=delivery.origin_id, group=group, consumer=consumer, at_ms=now_ms
    )
    values = (value.replace(b"\0", b"?") for value in fields[1::2])
    told = b"\0".join([_line(failure.error), _line(delivery.event_id), *values])
    return Settlement(delivery, "hold", HALTED_MS, (attempts, delivery.parked_ms, told))


def retry(delivery: Delivery, *, delay_ms: int, attempts: int, error: str = "") -> Settlement:
    """The event comes again after `delay_ms`; `attempts` are the runs spent by then, `error` why they failed."""
    if delivery.epoch:
        return hold(delivery, delay_ms=delay_ms, attempts=attempts, parked_ms=delivery.parked_ms, text=error)
    again = _again(delivery, attempts, delivery.parked_ms, "retry")
    return Settlement(delivery, "retry", delay_ms, (delivery.event_id, pack(again)))


def park(delivery: Delivery, *, delay_ms: int, now_ms: int, error: str = "") -> Settlement:
    """Nobody here knows the event: it comes again after `delay_ms`, no attempt spent."""
    parked_ms = delivery.parked_ms or now_ms
    if delivery.epoch:
        return hold(delivery, delay_ms=delay_ms, attempts=delivery.attempts, parked_ms=parked_ms, text=error)
    again = _again(delivery, delivery.attempts, parked_ms, "parked")
    return Settlement(delivery, "retry", delay_ms, (delivery.event_id, pack(again)))


def give_back(delivery: Delivery, *, claimed: bool) -> Settlement:
    """The event comes again at once, elsewhere, with no attempt spent."""
    if delivery.epoch:  # what was never claimed is simply still pending
        return Settlement(delivery, "hold")
    again = _again(delivery, delivery.attempts, delivery.parked_ms, "returned")
    return Settlement(delivery, "back" if claimed else "return", 0, (delivery.event_id, pack(again)))


def bury(delivery: Delivery, failure: Failure, *, attempts: int, group: str, consumer: str, now_ms: int) -> Settlement:
    """The event goes to the group's dead letters."""
    fields = dead_letter_fields(
        counted(delivery.fields, delivery.replays),
        failure,
        attempts=attempts,
        entry_id=delivery.origin_id,
        group=group,
        consumer=consumer,
        at_ms=now_ms,
    )
    return Settlement(delivery, "dead", 0, fields)


class Settled(enum.IntEnum):
    """What became of an outcome."""

    LOST = 0
    """The lease was lost: it does not count."""
    COUNTS = 1
    LEADS_ON = 2
    """It counts, and its successor is claimed."""


async def settle(
    redis: Executes,
    settlements: Sequence[Settlement],
    *,
    group: str,
    worker_id: str,
    window_ms: int,
    resent: bool,
    successors: Sequence[Delivery | None] = (),
    lease_ms: int = 0,
    marks: Marks | None = None,
) -> list[Settled]:
    """Settle deliveries of one partition and epoch (at most 500), answers in their order. In groups with owners
    `successors` has for each the delivery that is to be claimed with it, if it counts and does not hold its key.

    With `marks` done marks are members of sets, else keys; no successor is claimed then.
    Safe to send twice when the second says `resent`. Raises Fenced when the partition has another owner, or another
    epoch, by now.
    """
    keys, epoch = settlements[0].delivery.keys, settlements[0].delivery.epoch
    following = successors if epoch and marks is None else ()
    plain: Sequence[int] = () if epoch else [i for i, one in enumerate(settlements) if _is_plain(one)]
    places = plain if len(plain) == len(settlements) else _plain_first(plain, len(settlements))
    ordered = [settlements[i] for i in places]
    args = _outcomes(ordered, len(plain), following, epoch)
    event_ids = [one.delivery.event_id for one in ordered]
    only_last = not resent and all(one.kind != "return" for one in ordered[len(plain) :])

    async def ask(told: Members) -> Any:
        return await _settle.run(
            redis,
            [
                keys.stream,
                keys.again(group),
                keys.retry(group),
                keys.retry_body(group),
                keys.dead(group),
                keys.suspect(group),
                keys.owner(group),
                keys.key_states(group),
                keys.marks(group),
                *keys.idems(group, event_ids),
                *keys.idems(group, [one.event_id for one in following if one is not None]),
                *told.keys,
            ],
            [
                group, worker_id, window_ms, "1" if resent else "0", epoch, lease_ms, *told.head,
                len(told.keys) // len(ordered), len(ordered), len(plain), *args, *told.digests,
            ],
        )  # fmt: skip

    reply = await agreed(marks, keys.stream, lambda: members(marks, keys, group, event_ids, only_last=only_last), ask)
    if not reply:
        raise fenced(keys, group, epoch)
    answers = [Settled.COUNTS] * len(settlements)
    for i in range(1, len(reply), 2):
        answers[places[reply[i] - 1]] = Settled(reply[i + 1])
    return answers


def _outcomes(ordered: Sequence[Settlement], plain: int, following: Sequence[Delivery | None], epoch: int) -> list[Arg]:
    """What the script is told of each outcome, of the first `plain` ones no more than their refs."""
    args: list[Arg] = [one.delivery.entry_id for one in ordered[:plain]]
    for one, successor in zip_longest(ordered[plain:], following):
        key = one.delivery.key if epoch else ""
        after = successor.ref if successor is not None else ""
        args += (one.kind, one.delivery.ref, key, after, one.number, len(one.parts), *one.parts)
    return args


def _is_plain(one: Settlement) -> bool:
    """Whether the script needs no more than its entry id; in groups without owners."""
    return one.kind == "done" and not one.parts and not one.delivery.again


def _plain_first(plain: Sequence[int], count: int) -> list[int]:
    """The places of `count` outcomes in the order in which the script takes them."""
    first = set(plain)
    return [*plain, *(i for i in range(count) if i not in first)]


def _again(delivery: Delivery, attempts: int, parked_ms: int, why: str) -> Again:
    return Again(delivery.origin_id, attempts, parked_ms, why, delivery.fields, delivery.replays)


def _line(text: str) -> bytes:
    """At most 500 characters, none of them NUL; what is no Unicode (half a surrogate pair) as "?"."""
    return text.replace("\0", "?")[:_MAX_TEXT].encode("utf-8", "replace")
