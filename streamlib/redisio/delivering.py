"""Reads of a partition that has an owner: fenced, what is pending before what is new, each in order."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from streamlib.codec import Codec
from streamlib.keys import StreamKeys
from streamlib.redisio.delivery import fenced
from streamlib.redisio.failures import CLIENT_ERRORS
from streamlib.redisio.large_entries import Room
from streamlib.redisio.reader import Missing, Received, receive
from streamlib.redisio.scripts import Arg, Executes, Script

_deliver = Script("deliver")
_BEGIN = "0-0"


class Delivered(Struct, frozen=True):
    """One read. `pending` tells what was left behind from what is new; `now_ms` is the server's clock.

    `left` counts what is pending with the group after a read that is empty.
    """

    now_ms: int
    pending: bool
    received: list[Received]
    missing: list[Missing]
    left: int = 0

    @property
    def empty(self) -> bool:
        """Nothing was there to read."""
        return not self.pending and not self.received


class OwnedReader:
    """The owner's view of one partition in one epoch. It remembers how far it has read."""

    def __init__(
        self,
        keys: StreamKeys,
        partition: int,
        codec: Codec,
        *,
        group: str,
        worker_id: str,
        consumer: str,
        epoch: int,
        payload_bytes: int = 0,
    ) -> None:
        self._keys = keys
        self._partition = partition
        self._codec = codec
        self._group = group
        self._consumer = consumer
        self._worker_id = worker_id
        self._epoch = epoch
        self._after = {False: _BEGIN, True: _BEGIN}
        self._ends = {False: _BEGIN, True: _BEGIN}
        self._rooms = {False: Room(payload_bytes), True: Room()}
        """Of `again` nothing is given up: what lies there is kept nowhere else."""

    async def read(self, redis: Executes, count: int) -> Delivered:
        """Up to `count` entries of S and of `again` each: pending ones first, and only then new ones.

        Safe to send twice. Raises Fenced, and what the client raises.
        """
        keys, group, by_ids = self._keys, self._group, any(room.bounded for room in self._rooms.values())
        after, again_after = _next_id(self._after[False]), _next_id(self._after[True])
        how = "ids" if by_ids else ""
        asked: list[Arg] = [self._worker_id, self._epoch, group, self._consumer, count, after, again_after, how]
        try:
            reply = await _deliver.run(redis, [keys.owner(group), keys.stream, keys.again(group)], asked)
        except CLIENT_ERRORS as error:
            for room in self._rooms.values():
                room.failed(error)
            raise
        if not reply:
            raise fenced(keys, group, self._epoch)
        now_ms, kind, again, plain, again_gone, plain_gone, again_end, plain_end, left = reply
        pending = kind == b"pending"
        if by_ids:  # what does not fit stays pending, and comes before what is new
            again = await self._fetch(redis, True, again)
            plain = await self._fetch(redis, False, plain)
        received = self._receive(True, again, pending) + self._receive(False, plain, pending)
        self._ends = {True: again_end.decode(), False: plain_end.decode()}
        gone = [(keys.again(group), again_gone), (keys.stream, plain_gone)]
        missing = [Missing(stream, [one.decode() for one in ids]) for stream, ids in gone if ids]
        return Delivered(now_ms, pending, received, missing, left)

    async def _fetch(self, redis: Executes, again: bool, ids: list[Any]) -> list[Any]:
        """The first of these entries."""
        stream, room = self._keys.again(self._group) if again else self._keys.stream, self._rooms[again]
        if ids:
            return await room.entries_of(redis, stream, [entry_id for [entry_id] in ids])
        room.came()
        return []

    def _receive(self, again: bool, entries: list[Any], pending: bool) -> list[Received]:
        how = "reclaimed" if pending else "retry" if again else "new"
        found = [
            receive(self._keys, self._partition, again, how, self._codec, *entry, epoch=self._epoch)  # type: ignore[arg-type]
            for entry in entries
        ]
        if found:
            self._after[again] = found[-1].delivery.entry_id
        return found

    async def wait(self, redis: Executes, block_ms: int) -> None:
        """After an empty read: until something new may be there, at most `block_ms`. Takes nothing, so anybody may."""
        keys, group = self._keys, self._group
        streams = (keys.stream, keys.again(group), self._ends[False], self._ends[True])
        await redis.execute("XREAD", "COUNT", 1, "BLOCK", block_ms, "STREAMS", *streams)


def _next_id(entry_id: str) -> str:
    """The smallest id after this one that an entry can have."""
    ms, _, sequence = entry_id.partition("-")
    return f"{ms}-{int(sequence) + 1}" if int(sequence) < 2**64 - 1 else f"{int(ms) + 1}-0"
