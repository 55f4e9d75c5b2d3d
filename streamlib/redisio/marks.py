"""Done marks as members of small sets (`idempotency.store = "compact"`): a sixth of the memory of keys of their own.

`{S}:done:<group>` holds the plan: the segments in which marks lie, oldest first. A segment takes marks for a quarter of
the window, or until it is full, and is a number of sets, so many that each holds about 80 digests: small sets take next
to nothing beside their members. settle.lua opens segments, everybody else asks for the plan that stands.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from msgspec import Struct

from streamlib.errors import DeclarationError, StreamlibError
from streamlib.keys import StreamKeys
from streamlib.redisio.scripts import Arg, Executes

_DIGEST_BYTES = 16
_OTHER_PLAN = 2
_MOST_TRIES = 20


class Segment(Struct, frozen=True):
    """`opened` names it, ms; its marks are spread over `shards` sets."""

    opened: int
    shards: int


class Plan(Struct, frozen=True):
    """`text` as it is stored; segments oldest first."""

    text: str
    segments: tuple[Segment, ...]

    @classmethod
    def parse(cls, text: str) -> Plan:
        parts = (one.partition(".") for one in text.split())
        return cls(text, tuple(Segment(int(opened), int(shards)) for opened, _, shards in parts))


NO_PLAN = Plan("", ())


def digest_of(event_id: str) -> bytes:
    """What stands for an event in the sets. Of 10^9 events two share one with a probability of 10^-21."""
    return hashlib.blake2b(event_id.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).digest()


def sets_of(keys: StreamKeys, group: str, segments: Sequence[Segment], digests: Sequence[bytes]) -> list[str]:
    """Per event the set that may hold its mark in each of the segments, in their order."""
    numbers = [int.from_bytes(digest[:8], "big") for digest in digests]
    return [keys.mark_set(group, segment.opened, number % segment.shards) for number in numbers for segment in segments]


class Marks:
    """Where one group keeps done marks, as this process knows it: the plans of its partitions."""

    def __init__(self) -> None:
        self._plans: dict[str, Plan] = {}

    def plan(self, stream: str) -> Plan:
        return self._plans.get(stream, NO_PLAN)

    def learn(self, stream: str, text: str, tries: int) -> None:
        """Another plan stands than we knew. Raises StreamlibError when that is so again and again."""
        if tries >= _MOST_TRIES:
            raise StreamlibError(
                f"the plan of done marks of {stream} was another one {tries} times in a row; every worker of a group "
                "needs the same idempotency.window_s"
            )
        self._plans[stream] = Plan.parse(text)


class Members(Struct, frozen=True):
    """What a script is told about the marks of some events: keys that go last, arguments in two places."""

    keys: list[str]
    head: list[Arg]
    digests: list[bytes]


def members(
    marks: Marks | None, keys: StreamKeys, group: str, event_ids: Sequence[str], *, only_last: bool = False
) -> Members:
    """For these events; `only_last` where only the segment is needed that takes marks now."""
    if marks is None:
        return Members([], ["keys", ""], [])
    plan = marks.plan(keys.stream)
    digests = [digest_of(event_id) for event_id in event_ids]
    segments = plan.segments[-1:] if only_last else plan.segments
    return Members(sets_of(keys, group, segments, digests), ["members", plan.text], digests)


async def agreed(
    marks: Marks | None, stream: str, tell: Callable[[], Members], ask: Callable[[Members], Awaitable[Any]]
) -> Any:
    """The reply of a claim or a settle that knew the plan that stands; one that knew another wrote nothing. Raises
    StreamlibError when that is so again and again, and what the client raises."""
    tries = 0
    while True:
        reply = await ask(tell())
        if marks is None or not reply or reply[0] != _OTHER_PLAN:
            return reply
        tries += 1
        marks.learn(stream, reply[1].decode(), tries)


async def refuse_members(redis: Executes, keys: StreamKeys, group: str) -> None:
    """Raises DeclarationError where workers of this group keep done marks as members, and what the client raises."""
    if await redis.execute("EXISTS", keys.marks(group)):
        raise DeclarationError(other_store(keys, group))


def other_store(keys: StreamKeys, group: str) -> str:
    """Why a worker with idempotency.store="keys" may not run this group now."""
    return (
        f"group {group!r} at {keys.stream} has done marks of the compact store, which idempotency.store='keys' does "
        "not see: events might run twice; set idempotency.store='compact', or stop the workers that have it and wait "
        f"until their marks are gone, which is when {keys.marks(group)} has run out"
    )


async def plan_of(redis: Executes, keys: StreamKeys, group: str) -> Plan:
    """The plan that stands; without segments where no mark is a member. Raises what the client raises."""
    stored: bytes | None = await redis.execute("HGET", keys.marks(group), "plan")
    return Plan.parse(stored.decode()) if stored is not None else NO_PLAN


async def are_done(redis: Executes, keys: StreamKeys, group: str, event_ids: Sequence[str]) -> list[bool]:
    """Whether the marks of these events are members. Raises what the client raises."""
    plan = await plan_of(redis, keys, group)
    digests = [digest_of(event_id) for event_id in event_ids]
    sets, per_event = sets_of(keys, group, plan.segments, digests), len(plan.segments)
    found = []
    for at, digest in enumerate(digests):
        some = sets[at * per_event : (at + 1) * per_event]
        found.append(any([await redis.execute("SISMEMBER", name, digest) for name in some]))
    return found
