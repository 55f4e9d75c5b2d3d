"""Failing and halted keys of ordered groups: look at them, let one go on, or give its event up."""

from __future__ import annotations

from msgspec import Struct

from streamlib.errors import NotFound
from streamlib.keys import Keys
from streamlib.ops.places import Place, places
from streamlib.redisio import key_states as noted
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.key_states import KeyState
from streamlib.topic import partition_of_key

ORDERED = "ordered"


class FailingKey(Struct, frozen=True):
    """One key whose first event did not succeed yet, and where."""

    place: Place
    state: KeyState


async def failing_keys(redis: RedisDoor, keys: Keys, topic: str | None, group: str | None) -> list[FailingKey]:
    """The failing keys of these ordered groups, by topic, group, partition and key. Raises NotFound."""
    there = await places(redis, keys, topic, group)
    ordered = [place for place in there if place.kind == ORDERED]
    if group is not None and not ordered:
        raise _not_ordered(there[0])
    return [
        FailingKey(place, state)
        for place in ordered
        for state in await noted.key_states(redis, place.keys, place.group)
    ]


async def halted_key(redis: RedisDoor, keys: Keys, topic: str, group: str, key: str) -> FailingKey:
    """A halted key of an ordered group. Raises NotFound: no such group, nothing known of the key, or not halted."""
    there = await places(redis, keys, topic, group)
    if there[0].kind != ORDERED:
        raise _not_ordered(there[0])
    # Where it should be comes first; a producer of another make may have put it elsewhere.
    home = partition_of_key(key, len(there))
    failing: KeyState | None = None
    for place in sorted(there, key=lambda one: one.partition != home):
        state = (await noted.states_of(redis, place.keys, group, [key]))[key]
        if state is not None and state.halted:
            return FailingKey(place, state)
        failing = failing or state
    if failing is None:
        raise NotFound(
            f"key {key!r} of group {group!r} is not halted: nothing of it has failed; "
            f"`streamlib keys ls {topic} {group} --halted` lists those that are"
        )
    raise NotFound(f"key {key!r} of group {group!r} is not halted: what failed there comes again by itself")


async def resume(redis: RedisDoor, failing: FailingKey) -> None:
    """Let the key go on, all attempts ahead of its event. Raises NotFound when it is not halted any more."""
    if not await noted.resume(redis, failing.place.keys, failing.place.group, failing.state.key):
        raise _not_any_more(failing)


async def skip(redis: RedisDoor, failing: FailingKey, *, window_s: float) -> None:
    """Move the event at which the key halted to the dead letters. Raises NotFound when it is not halted there."""
    place = failing.place
    if not await noted.skip_at(redis, place.keys, place.group, failing.state, window_ms=int(window_s * 1000)):
        raise _not_any_more(failing)


def _not_any_more(failing: FailingKey) -> NotFound:
    return NotFound(f"key {failing.state.key!r} of group {failing.place.group!r} is not halted any more")


def _not_ordered(place: Place) -> NotFound:
    return NotFound(
        f"group {place.group!r} of topic {place.topic!r} is of kind {place.kind!r}: only an ordered group "
        '(ordering="key") has keys that wait or halt'
    )
