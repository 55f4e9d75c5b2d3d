"""The past of a topic that was trimmed: from the aggregates' own lists, or from a file of JSON lines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
from msgspec import Struct

from streamlib.errors import Refused, StreamlibError
from streamlib.message import Message, entry_before, entry_order
from streamlib.ops.views import View
from streamlib.redisio.aggregate_reader import AggregateReader
from streamlib.worker.history import AT_ONCE, End, Past

_BREATH = 500
"""Lines that are read before others have their turn."""


class AggregateHistory:
    """What aggregates keep for ever. Events that were published past them are not in it."""

    told = "aggregates"

    def __init__(self, view: View) -> None:
        self._topic = view.projection.topic
        self._view = view
        self._reader = AggregateReader(view.redis, view.keys)

    async def check(self) -> None:
        """Nothing can be missing: an append writes the aggregate and the topic together."""

    async def end(self, partition: int) -> End:
        extent = (await self._view.extents())[partition]
        return End(extent.last, extent.added)

    async def events(self, partition: int, end: End) -> AsyncIterator[list[Past]]:
        batch: list[Past] = []
        async for aggregate_id in self._reader.aggregate_ids(self._topic, partition):
            async for stored in self._reader.read(self._topic, aggregate_id):
                if entry_order(stored.position.entry_id) > entry_order(end.entry_id):
                    break  # the stream has it
                fields = self._topic.codec.write(stored.message)
                batch.append(Past(stored.position.entry_id, fields, aggregate_id))
                if len(batch) == AT_ONCE:
                    yield batch
                    batch = []
        if batch:
            yield batch


class Line(Struct, frozen=True):
    """An event as `streamlib replay --out` writes it."""

    type: str
    id: str
    key: str
    data: msgspec.Raw
    version: int = 1


class FileHistory:
    """A file of the topic's first events. It must reach as far as the first entry that each stream still holds."""

    def __init__(self, view: View, path: Path) -> None:
        self.told = str(path)
        self._view = view
        self._topic = view.projection.topic
        self._path = path
        self._ends: dict[int, End] = {}
        self._first: dict[int, str] = {}
        """Partition -> the id of the event at which its stream goes on."""

    async def check(self) -> None:
        """Raise Refused where events are missing between the file and a stream, StreamlibError for a bad file."""
        for partition, (keys, extent) in enumerate(zip(self._view.parts(0), await self._view.extents(), strict=True)):
            stream = keys.stream.stream
            read = ("XRANGE", stream, "-", "+", "COUNT", 1)
            first = await self._view.ask(lambda read=read: self._view.redis.execute(*read))  # type: ignore[misc]
            if not first and extent.added:
                raise Refused(f"{stream} holds no entry: it cannot be told whether {self._path} reaches to its end")
            if first:
                entry_id = first[0][0].decode()
                self._first[partition] = self._topic.codec.read(entry_id, first[0][1]).id
                self._ends[partition] = End(entry_before(entry_id), extent.added - extent.length)
        missing = dict(self._first)
        async for message in self._messages():
            if missing.get(self._topic.partition_of(message)) == message.id:
                del missing[self._topic.partition_of(message)]
        trimmed = [number for number in missing if self._ends[number].added]
        if trimmed:
            raise Refused(
                f"{self._path} ends before partition {trimmed[0]} of topic {self._topic.name!r} begins: the first "
                f"entry there is event {missing[trimmed[0]]!r}, which is not in the file; what came in between is lost"
            )

    async def end(self, partition: int) -> End:
        return self._ends.get(partition, End("0-0", 0))

    async def events(self, partition: int, end: End) -> AsyncIterator[list[Past]]:
        batch: list[Past] = []
        async for message in self._messages():
            if self._topic.partition_of(message) != partition:
                continue
            if message.id == self._first.get(partition):
                break  # from here on the stream has it
            batch.append(Past(end.entry_id, self._topic.codec.write(message)))
            if len(batch) == AT_ONCE:
                yield batch
                batch = []
        if batch:
            yield batch

    async def _messages(self) -> AsyncIterator[Message]:
        try:
            with self._path.open("rb") as file:
                for number, text in enumerate(file, start=1):
                    if text.strip():
                        yield self._message(number, text)
                    if number % _BREATH == 0:
                        await asyncio.sleep(0)  # leases are renewed, and other partitions folded
        except OSError as error:
            raise StreamlibError(f"cannot read {self._path}: {error}") from error

    def _message(self, number: int, text: bytes) -> Message:
        try:
            line = msgspec.json.decode(text, type=Line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise StreamlibError(
                f"{self._path}, line {number}: {error}; wanted are lines as `streamlib replay --out` writes them"
            ) from error
        return Message(id=line.id, type=line.type, version=line.version, key=line.key, data=bytes(line.data))
