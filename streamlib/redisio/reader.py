"""Reads entries for one group: new ones from S beside returning ones from `again`, and those that were left behind."""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct

from streamlib.codec import Codec, Fields
from streamlib.errors import DecodeError
from streamlib.keys import MAX_ID_BYTES, StreamKeys
from streamlib.message import Message
from streamlib.redisio.again import unpack
from streamlib.redisio.delivery import Delivery, How
from streamlib.redisio.failures import CLIENT_ERRORS, ErrorClass, classify
from streamlib.redisio.large_entries import Entry, Room, check_whole
from streamlib.redisio.scripts import Executes

_DEEP = 100
"""Entries of one partition that are worth a script of their own."""


class Received(Struct, frozen=True, gc=False):
    """A delivery with its envelope, or with the reason why there is none."""

    delivery: Delivery
    message: Message | None
    error: DecodeError | None = None


class Missing(Struct, frozen=True):
    """Pending entries that do not exist any more: somebody deleted what was not acknowledged."""

    stream: str
    entry_ids: list[str]


class Reader:
    """One group's view of partitions of a topic, by their numbers, as one consumer. `read` sends one command for all of
    them: they must lie on one server, or be one."""

    def __init__(self, partitions: Mapping[int, StreamKeys], group: str, consumer: str, codec: Codec) -> None:
        self.partitions = dict(partitions)
        self._group = group
        self._consumer = consumer
        self._codec = codec
        self._names = {number: (keys.again(group), keys.stream) for number, keys in partitions.items()}
        self._streams: dict[bytes, tuple[int, bool]] = {}
        for number, (again, stream) in self._names.items():
            self._streams[again.encode()] = (number, True)
            self._streams[stream.encode()] = (number, False)
        self._deep: deque[int] = deque()
        """Partitions under backlog, in turn."""
        self._before_look = 0
        """How many of them are read before the others are looked at."""

    async def read(self, redis: Executes, *, count: int, block_ms: int | None) -> list[Received]:
        """About `count` entries, returning ones first; waits up to `block_ms` for the first.

        Of many partitions a read brings a little of each, for COUNT is per stream. Those that have more are read a few
        at a time, and in between all others: claims and settles are one script for each partition, and many small ones
        cost more than the events.
        """
        while True:
            if self._before_look > 0:
                reply = await self._read_deep(redis, count)
            else:
                reply = await self._look(redis, count, None if self._deep else block_ms)
            if reply or not self._deep:
                return self._received(reply)

    async def _read_deep(self, redis: Executes, count: int) -> list[Any]:
        some = [self._deep.popleft() for _ in range(min(max(count // _DEEP, 1), len(self._deep)))]
        self._before_look -= len(some)
        count = max(1, count // len(some))
        reply = await self._ask(redis, some, count, None)
        self._deep.extend(self._full(reply, count))
        return reply

    async def _look(self, redis: Executes, count: int, block_ms: int | None) -> list[Any]:
        others, reply = [number for number in self.partitions if number not in self._deep], []
        if others:
            count = max(1, count // len(others))
            reply = await self._ask(redis, others, count, block_ms)
            if len(self.partitions) > 1:
                self._deep.extend(self._full(reply, count))
        self._before_look = len(self._deep)
        return reply

    def _full(self, reply: list[Any], count: int) -> list[int]:
        """Partitions that gave as much as was asked for, and so may have more."""
        return list(dict.fromkeys(self._streams[stream][0] for stream, entries in reply if len(entries) >= count))

    async def _ask(self, redis: Executes, partitions: Iterable[int], count: int, block_ms: int | None) -> list[Any]:
        """Stream and entries, of each that has some."""
        streams = [name for number in partitions for name in self._names[number]]
        block = [] if block_ms is None else ["BLOCK", block_ms]
        reply: list[Any] | None = await redis.execute(
            "XREADGROUP", "GROUP", self._group, self._consumer, "COUNT", count, *block,
            "STREAMS", *streams, *([">"] * len(streams)),
        )  # fmt: skip
        return reply or []

    def _received(self, reply: list[Any]) -> list[Received]:
        received: list[Received] = []
        for stream, entries in reply:
            partition, again = self._streams[stream]
            how: How = "retry" if again else "new"
            received += (
                receive(self.partitions[partition], partition, again, how, self._codec, *entry)
                for entry in entries
                if entry[1]
            )
        return received

    async def take_over(
        self, redis: Executes, partition: int, again: bool, *, idle_ms: int, cursor: str, count: int, room: Room
    ) -> tuple[str, list[Received], Missing]:
        """Entries nobody touched for `idle_ms`, from `cursor` on; the next cursor ("0-0" at the end)."""
        keys = self.partitions[partition]
        stream = keys.again(self._group) if again else keys.stream
        asked = ("XAUTOCLAIM", stream, self._group, self._consumer, idle_ms, cursor, "COUNT", count)
        if room.bounded:
            reply = await redis.execute(*asked, "JUSTID")
            entries = await _piecewise(redis, stream, reply[1], room)
        else:
            try:
                reply = await redis.execute(*asked)
            except CLIENT_ERRORS as error:
                room.failed(error)
                raise
            entries = [entry for entry in reply[1] if entry and entry[1]]
        found = [receive(keys, partition, again, "reclaimed", self._codec, *entry) for entry in entries]
        gone = [entry_id.decode() for entry_id in (reply[2] if len(reply) > 2 else ())]
        return reply[0].decode(), found, Missing(stream, gone)


async def _piecewise(redis: Executes, stream: str, ids: list[bytes], room: Room) -> list[Entry]:
    """All of these entries that exist, in as many reads as it takes."""
    found: list[Entry] = []
    while ids:
        try:
            some = await room.entries_of(redis, stream, ids)
        except CLIENT_ERRORS as error:
            if room.least or classify(error) is not ErrorClass.NETWORK:
                raise
            continue
        if not some:
            break
        found += some
        ids = ids[ids.index(some[-1][0]) + 1 :]
    return found


def receive(
    keys: StreamKeys,
    partition: int,
    again: bool,
    how: How,
    codec: Codec,
    raw_id: bytes,
    fields: Fields,
    *,
    epoch: int = 0,
) -> Received:
    """What an entry is to a worker: its event's envelope, or why there is none."""
    entry_id = origin_id = raw_id.decode()
    event_id, attempts, replays, parked_ms, message, error = "", 0, 0, 0, None, None
    try:
        if again:
            kept = unpack(entry_id, fields)
            event_id = fields[1].decode()
            attempts, replays, parked_ms = kept.attempts, kept.replays, kept.parked_ms
            origin_id, fields = kept.entry_id, kept.fields
        check_whole(origin_id, fields)
        message = codec.read(origin_id, fields)
    except DecodeError as problem:
        error = _alone(problem)
    except Exception as problem:  # noqa: BLE001 - a codec may be foreign, and its neighbours are not to be harmed
        error = DecodeError(f"entry {entry_id}: the codec failed: {type(problem).__name__}: {problem}")
        error.add_note("".join(traceback.format_exception(problem)))
    delivery = Delivery(
        keys=keys,
        partition=partition,
        again=again,
        entry_id=entry_id,
        origin_id=origin_id,
        event_id=event_id or (message.id if message else origin_id),
        fields=fields,
        how=how,
        attempts=attempts,
        replays=replays,
        parked_ms=parked_ms,
        epoch=epoch,
        key=message.key if message else _raw_key(fields),
    )
    return Received(delivery, message, error)


def _alone(error: DecodeError) -> DecodeError:
    """The error without frames: they hold the entry, and whoever called, who holds what was received, which holds the
    error. The garbage collector, to which a Received is unknown, would never find that ring."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def _raw_key(fields: Fields) -> str:
    """The key of an entry that cannot be read, if it names one: its successors wait for its end too."""
    named = dict(zip(fields[::2], fields[1::2], strict=False))
    key = named.get(b"key", b"")
    return key.decode("utf-8", "replace") if len(key) <= MAX_ID_BYTES else ""
