"""Finds what stands still in an ordered group: events that halted their key or are parked, and how much waits there."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator

from msgspec import Struct

from streamlib.codec import Codec
from streamlib.keys import StreamKeys
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.delivery import Delivery
from streamlib.redisio.key_states import KeyState, key_states
from streamlib.redisio.owed import pending
from streamlib.redisio.reader import receive


class Standing(Struct, frozen=True):
    """A key at whose first event nothing happens by itself; `waiting` counts what is read of the key, that one too."""

    state: KeyState
    event_id: str
    waiting: int


async def standing(door: RedisDoor, keys: StreamKeys, group: str, codec: Codec) -> list[Standing]:
    """All such keys of one partition, by name."""
    states = [state for state in await key_states(door, keys, group) if _stands(state)]
    if not states:
        return []
    waiting, event_ids = Counter[str](), dict[str, str]()
    async for delivery in _delivered(door, keys, group, codec):
        waiting[delivery.key] += 1
        event_ids[delivery.ref] = delivery.event_id
    return [Standing(state, event_ids[state.ref], waiting[state.key]) for state in states if state.ref in event_ids]


def _stands(state: KeyState) -> bool:
    """A parked event has not run; one that ran and failed since is retried like others."""
    return state.halted or (state.parked_ms > 0 and state.attempts == 0)


async def _delivered(door: RedisDoor, keys: StreamKeys, group: str, codec: Codec) -> AsyncIterator[Delivery]:
    async for owed in pending(door, keys, group):
        if owed.fields is not None:
            yield receive(keys, 0, False, "reclaimed", codec, owed.entry_id.encode(), owed.fields).delivery
    for entry_id, fields in await door.execute("XRANGE", keys.again(group), "-", "+"):
        yield receive(keys, 0, True, "reclaimed", codec, entry_id, fields).delivery
