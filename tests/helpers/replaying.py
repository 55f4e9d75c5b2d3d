"""A topic with entries written by hand, a group that has been given them, and replays of its ranges."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from streamlib.event import Event, Registry
from streamlib.keys import Keys
from streamlib.ops.pace import Pace
from streamlib.ops.ranges import BEGIN, Asked
from streamlib.ops.replay import Replay
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.registry import declare_group, declare_topic
from streamlib.redisio.replays import Totals
from streamlib.topic import TopicSpec
from tests.helpers.publishing import open_door
from tests.helpers.servers import connect

GROUP = "email"
WINDOW_S = 60.0


class Broken(Exception):
    """What ends a replay in mid-run."""


class Placed(Event):
    order_id: str


class Paid(Event):
    order_id: str


class Topic:
    """`orders`, on one partition unless said otherwise; its group `email` is a handler's."""

    def __init__(self, door: RedisDoor, client: Any, spec: TopicSpec, keys: Keys) -> None:
        self.door = door
        self.client = client
        self.spec = spec
        self.keys = keys
        self.streams = [keys.stream(spec.name, number, spec.partitions) for number in range(spec.partitions)]

    def put(self, event_id: str, *, type_: str = "Placed", key: str = "k", partition: int = 0, at: str = "*") -> str:
        """Store an event; its entry id."""
        fields = {"id": event_id, "type": type_, "v": "1", "key": key, "data": '{"order_id":"o"}'}
        added: Any = self.client.xadd(self.streams[partition].stream, fields, id=at)
        return str(added.decode())

    def deliver(self, partition: int = 0, *, ack: bool = True) -> list[str]:
        """Give the group all there is; the ids of the entries."""
        stream = self.streams[partition].stream
        read: Any = self.client.xreadgroup(GROUP, "c", {stream: ">"})
        ids = [entry_id.decode() for _, entries in read for entry_id, _ in entries]
        if ack and ids:
            self.client.xack(stream, GROUP, *ids)
        return ids

    def mark(self, event_id: str, state: str, partition: int = 0) -> None:
        self.client.set(self.streams[partition].idem(GROUP, event_id), state, px=60_000)

    def state(self, event_id: str, partition: int = 0) -> str:
        raw: Any = self.client.get(self.streams[partition].idem(GROUP, event_id))
        return (raw or b"").decode()

    def again(self, partition: int = 0) -> list[str]:
        """The ids of the events that wait to run again, in their order."""
        entries: Any = self.client.xrange(self.streams[partition].again(GROUP))
        return [fields[b"id"].decode() for _, fields in entries]

    def everything(self) -> dict[bytes, Any]:
        """Every key with its value: equal before and after means that nothing was written."""
        names: list[bytes] = self.client.keys()
        return {key: self.client.dump(key) for key in names}

    async def replay(self, start: str = BEGIN, *, group: str = GROUP, anew: bool = False, **asked: Any) -> Replay:
        """One that has been checked."""
        told = f"--from {start} {sorted(asked.items())}"
        one = Asked(topic=self.spec.name, start=start, told=told, **asked)
        replay = Replay(self.door, self.keys, one, group, window_s=WINDOW_S)
        await replay.check(anew=anew)
        return replay

    async def replayed(self, start: str = BEGIN, *, pace: Pace | None = None, **asked: Any) -> Totals:
        return await (await self.replay(start, **asked)).run(pace or Pace(), lambda n: None)


@asynccontextmanager
async def a_topic(url: str, *, partitions: int = 1, namespace: str = "", **settings: Any) -> AsyncIterator[Topic]:
    spec = TopicSpec(name="orders", registry=Registry([Placed, Paid]), partitions=partitions)
    keys = Keys(namespace)
    async with open_door(url, **settings) as door:
        with connect(url) as client:
            await declare_topic(door, keys, spec)
            await declare_group(door, keys, spec, GROUP, "handler", ["Placed", "Paid"])
            yield Topic(door, client, spec, keys)


def free_pace() -> Pace:
    """Batches of three as at a slow rate, without the waiting."""

    now = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    return Pace(30.0, clock=lambda: now, sleep=sleep)


def breaks_after(entries: int) -> Callable[[int], None]:
    """For `run`: ends it once so many entries have been looked at."""
    left = entries

    def done(n: int) -> None:
        nonlocal left
        left -= n
        if left <= 0:
            raise Broken

    return done
