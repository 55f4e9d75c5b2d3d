"""What is noted about keys of an ordered group: the failing event, its attempts, when it is due, whether it halted."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence

from msgspec import Struct

from streamlib.codec import Fields
from streamlib.errors import DecodeError
from streamlib.keys import StreamKeys
from streamlib.redisio.again import unpack
from streamlib.redisio.dead_letter import counted, told_fields
from streamlib.redisio.large_entries import Room
from streamlib.redisio.scripts import Executes, Script

_change = Script("key_state")
_skip = Script("skip")
_count_halted = Script("halted_keys", reads_only=True)
_HALTED = b"halted"
_NOTED = re.compile(rb"(a?[0-9]{1,20}-[0-9]{1,20}) ([0-9]{1,9}) (halted|[0-9]{1,16}) ([0-9]{1,16}) (.*)", re.DOTALL)


class KeyState(Struct, frozen=True):
    """One key whose first event did not succeed yet. `due_ms` is server time, 0 for now or never (`halted`).

    `ref` names the entry, with an "a" before it in the group's `again` stream; `parked_ms` is since when nobody knows
    its type.
    """

    key: str
    ref: str
    attempts: int
    due_ms: int
    halted: bool
    error: str
    parked_ms: int = 0
    noted: bytes = b""
    """The text as it stands in Redis."""

    @property
    def entry_id(self) -> str:
        return self.ref.removeprefix("a")

    @property
    def event_id(self) -> str:
        """The event at which the key halted; "" while it is not halted."""
        told = self.noted.split(b"\0", 2)
        return told[1].decode("utf-8", "replace") if self.halted and len(told) > 1 else ""


def parse(key: str, noted: bytes) -> KeyState | None:
    """What a field of `{S}:keys:<group>` says; None where somebody else wrote it."""
    found = _NOTED.fullmatch(noted)
    if found is None:
        return None
    ref, attempts, due, parked_ms, told = found.groups()
    halted = due == _HALTED
    if halted and b"\0" not in told:  # it does not say at which event
        return None
    error = told.partition(b"\0")[0].decode("utf-8", "replace")
    due_ms = 0 if halted else int(due)
    return KeyState(key, ref.decode(), int(attempts), due_ms, halted, error, int(parked_ms), noted)


async def key_states(redis: Executes, keys: StreamKeys, group: str) -> list[KeyState]:
    """The noted keys of one partition, by name. Raises what the client raises."""
    flat: list[bytes] = await redis.execute("HGETALL", keys.key_states(group))
    found = (parse(key.decode("utf-8", "replace"), noted) for key, noted in zip(flat[::2], flat[1::2], strict=True))
    return sorted((state for state in found if state is not None), key=lambda state: state.key)


async def halted_count(redis: Executes, keys: StreamKeys, group: str) -> int:
    """How many keys of one partition are halted. Raises what the client raises."""
    halted, cursor = 0, b"0"
    while True:
        cursor, count = await _count_halted.run(redis, [keys.key_states(group)], [cursor])
        halted += int(count)
        if cursor == b"0":
            return halted


async def states_of(
    redis: Executes, keys: StreamKeys, group: str, names: Sequence[str]
) -> Mapping[str, KeyState | None]:
    """What is noted about these keys now; None for nothing. Raises what the client raises."""
    stored: list[bytes | None] = await redis.execute("HMGET", keys.key_states(group), *names)
    return {name: parse(name, noted) if noted else None for name, noted in zip(names, stored, strict=True)}


async def resume(redis: Executes, keys: StreamKeys, group: str, key: str) -> bool:
    """Let a halted key go on with all attempts ahead of its event; False if it is not halted (any more).

    Its owner notices within a second. Safe to send twice: the second answer is False. Raises what the client raises.
    """
    state = (await states_of(redis, keys, group, [key]))[key]
    if state is None or not state.halted:
        return False
    resumed = f"{state.ref} 0 0 0 {state.error}".encode()
    return await _replace(redis, keys, group, key, state.noted, resumed)


async def skip(redis: Executes, keys: StreamKeys, group: str, key: str, *, window_ms: int) -> bool:
    """Move the event at which a key halted to the dead letters, so that the key goes on with the next; False if it is
    not halted (any more).

    Its owner notices within a second. Safe to send twice: the second answer is False. Raises what the client raises.
    """
    state = (await states_of(redis, keys, group, [key]))[key]
    if state is None or not state.halted:
        return False
    return await skip_at(redis, keys, group, state, window_ms=window_ms)


async def skip_at(redis: Executes, keys: StreamKeys, group: str, state: KeyState, *, window_ms: int) -> bool:
    """`skip`, if the key is still halted as `state` says: at that event, after those attempts."""
    event_id, *values = state.noted.split(b"\0")[1:]
    again, entry_id = state.ref.startswith("a"), state.entry_id
    stream = keys.again(group) if again else keys.stream
    # Of an entry that cannot be sent its beginning; of `again` nothing is given up, it is kept nowhere else.
    found = await Room(0 if again else 1).entries_of(redis, stream, [entry_id.encode()])
    at_ms = int(time.time() * 1000)
    letter = told_fields(_own_fields(entry_id, again, found[0][1]), values, at_ms=at_ms) if found else []
    code = await _skip.run(
        redis,
        [keys.key_states(group), stream, keys.dead(group), keys.idem(group, event_id.decode("utf-8", "replace"))],
        [group, state.key, state.noted, entry_id, window_ms, "1" if again else "0", *letter],
    )
    return bool(code == 1)


async def is_open(redis: Executes, keys: StreamKeys, group: str, ref: str) -> bool:
    """Whether the entry is still unacknowledged: a skip acknowledges it. Raises what the client raises."""
    stream, entry_id = keys.again(group) if ref.startswith("a") else keys.stream, ref.removeprefix("a")
    return bool(await redis.execute("XPENDING", stream, group, entry_id, entry_id, 1))


async def forget(redis: Executes, keys: StreamKeys, group: str, state: KeyState) -> bool:
    """Remove what is noted about a key whose entry is gone, unless it has changed. Safe to send twice."""
    return await _replace(redis, keys, group, state.key, state.noted, b"")


async def _replace(redis: Executes, keys: StreamKeys, group: str, key: str, seen: bytes, new: bytes) -> bool:
    code = await _change.run(redis, [keys.key_states(group)], [key, seen, new])
    return bool(code == 1)


def _own_fields(entry_id: str, again: bool, fields: Fields) -> Fields:
    if not again:
        return fields
    try:
        kept = unpack(entry_id, fields)
        return counted(kept.fields, kept.replays)
    except DecodeError:
        return fields
