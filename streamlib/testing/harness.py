"""Runs an app on a Redis inside the process: publish, let the real worker drain, and look what became of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from streamlib.app import App
from streamlib.codec import Codec, Fields
from streamlib.errors import DecodeError, NotFound, PublishError
from streamlib.event import Event
from streamlib.keys import StreamKeys
from streamlib.message import Position
from streamlib.ops.inspect import GroupInfo, inspect
from streamlib.producer import Topic
from streamlib.read_model import ReadModel
from streamlib.redisio.again import unpack
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.dead_letter import parse_dead_letter
from streamlib.redisio.generations import live_generation
from streamlib.redisio.later import promote_later
from streamlib.redisio.marks import are_done
from streamlib.redisio.retries import promote
from streamlib.settings import Settings
from streamlib.testing.fake_redis import FakeServer
from streamlib.testing.recording import Failed, recorded
from streamlib.testing.standing import Standing, standing
from streamlib.topic import TopicSpec
from streamlib.worker.handlers import GroupSpec
from streamlib.worker.projection import Projection

R = TypeVar("R", bound=ReadModel)

_LOOKS = 2
_EVERY_S = 0.005


class Handled(Struct, frozen=True):
    """An event that a group (or a projection) finished."""

    topic: str
    group: str
    event_id: str
    type: str


class Retried(Struct, frozen=True):
    """A run that failed and after which the event ran again, or will."""

    topic: str
    group: str
    event_id: str
    type: str
    attempt: int
    error: str


class Dead(Struct, frozen=True):
    """An event among the dead letters of a group. `type` is "" where the entry could not be read."""

    topic: str
    group: str
    event_id: str
    type: str
    reason: str
    error: str
    attempts: int


class Parked(Struct, frozen=True):
    """An event whose type nobody knows, waiting for a worker that does (`unknown="park"`)."""

    topic: str
    group: str
    event_id: str


class Halted(Struct, frozen=True):
    """A key of an ordered group that stands still at this event until an operator resumes or skips it."""

    topic: str
    group: str
    key: str
    event_id: str
    error: str


class Harness:
    """An open app. After each `drain`, `handled`, `retried`, `dead`, `parked`, `halted` tell of everything so far."""

    def __init__(self, app: App, failures: Sequence[Failed]) -> None:
        self.app = app
        self.handled: list[Handled] = []
        self.retried: list[Retried] = []
        self.dead: list[Dead] = []
        self.parked: list[Parked] = []
        self.halted: list[Halted] = []
        self._failures = failures

    async def publish(self, topic: Topic, event: Event, **options: Any) -> Position:
        """`topic.publish(event, ...)`."""
        return await topic.publish(event, **options)

    async def publish_many(self, topic: Topic, events: Sequence[Event]) -> list[Position | PublishError]:
        """`topic.publish_many(events)`."""
        return await topic.publish_many(events)

    async def drain(self, timeout: float = 10.0) -> None:
        """Run a worker until its groups have nothing left, then stop it.

        Retries do not wait for their delay. Parked events and halted keys stay where they are, and so do delayed
        events that are not due (see `release_delayed`). Each drain is a worker of its own, so the app's lifespan
        begins and ends with it. Raises AssertionError after `timeout` seconds, naming what is left, and whatever
        ends the worker.
        """
        worker, stop = self.app.worker(), asyncio.Event()
        running = asyncio.create_task(worker.run(stop))
        try:
            left = await self._until_empty(running, time.monotonic() + timeout)
        finally:
            stop.set()
            await asyncio.wait({running})
        running.result()
        await self._look()
        if left:
            raise AssertionError(f"not drained within {timeout:g} s: {'; '.join(left)}")

    async def release_delayed(self) -> int:
        """Let every delayed event (`publish(..., delay=)`) enter its stream now; how many did."""
        released = 0
        for topic in self.app.topics.values():
            for stream in self._streams(topic.spec):
                waiting: list[bytes] = await self._door.execute("ZRANGE", stream.later(), 0, -1)
                for event_id in waiting:
                    await self._door.execute("ZADD", stream.later(), "XX", 0, event_id)
                    released += (await promote_later(self._door, stream)).count
        return released

    async def rows(self, view: Projection[R]) -> list[R]:
        """All rows of a view, ordered by row id."""
        door, keys = self._door, self.app.keys
        generation = await live_generation(door, keys, view.topic.name, view.name)
        ids: set[str] = set()
        for stream in self._streams(view.topic):
            prefix = stream.row(view.name, generation, "")
            found: list[bytes] = await door.execute("KEYS", f"{_literal(prefix)}*")
            ids |= {key.decode().removeprefix(prefix) for key in found}
        rows = await view.get_many(sorted(ids))
        return [row for row in rows if row is not None]

    # -- waiting ------------------------------------------------------------------------------------------------

    async def _until_empty(self, running: asyncio.Task[int], deadline: float) -> list[str]:
        """What is left at the deadline, one text per group; nothing after several empty looks in a row."""
        empty, left = 0, list[str]()
        while empty < _LOOKS and not running.done():
            if time.monotonic() > deadline:
                return left
            await asyncio.sleep(_EVERY_S)
            left = await self._left()
            empty = 0 if left else empty + 1
        return []

    async def _left(self) -> list[str]:
        parked = {
            (topic, group): await self._bring_forward(topic, group)
            + sum([one.waiting for stream in self._streams(spec.topic) for one in await self._standing(stream, spec)])
            for (topic, group), spec in self.app.groups.items()
        }
        wanted = {*self.app.groups, *((view.topic.name, name) for name, view in self.app.projections.items())}
        left: list[str] = []
        for topic in {name for name, _ in wanted}:
            for info in await inspect(self._door, self.app.keys, topic):
                left += [
                    _open_work(info.topic, group)
                    for group in info.groups
                    if (topic, group.group) in wanted and group.backlog > parked.get((topic, group.group), 0)
                ]
        return left

    async def _bring_forward(self, topic: str, group: str) -> int:
        """Let every retry of a group run now; the number of parked events, which stay."""
        parked = 0
        for stream in self._streams(self.app.groups[topic, group].topic):
            due: list[str] = []
            for event_id, why in await self._scheduled(stream, group):
                if why == "parked":
                    parked += 1
                else:
                    due += ("0", event_id)
            if due:
                await self._door.execute("ZADD", stream.retry(group), "XX", *due)
                await promote(self._door, stream, group)
        return parked

    async def _scheduled(self, stream: StreamKeys, group: str) -> list[tuple[str, str]]:
        """Event id and cause ("retry", "parked") of everything that is to come again later."""
        ids: list[bytes] = await self._door.execute("ZRANGE", stream.retry(group), 0, -1)
        if not ids:
            return []
        bodies = await self._door.execute("HMGET", stream.retry_body(group), *ids)
        return [
            (event_id.decode(), unpack("-", [b"id", event_id, b"body", body]).why)
            for event_id, body in zip(ids, bodies, strict=True)
            if body is not None
        ]

    # -- looking ------------------------------------------------------------------------------------------------

    @property
    def _door(self) -> RedisDoor:
        return self.app.redis

    def _streams(self, topic: TopicSpec) -> list[StreamKeys]:
        return [self.app.keys.stream(topic.name, n, topic.partitions) for n in range(topic.partitions)]

    def _groups(self) -> Iterator[tuple[TopicSpec, str]]:
        yield from ((spec.topic, spec.group) for spec in self.app.groups.values())
        yield from ((view.topic, view.name) for view in self.app.projections.values())

    async def _look(self) -> None:
        self.handled, self.dead, self.parked, self.halted = [], [], [], []
        for topic, group in self._groups():
            for stream in self._streams(topic):
                self.handled += await self._handled(topic, group, stream)
                self.dead += await self._dead(topic, group, stream)
                self.parked += [
                    Parked(topic.name, group, event_id)
                    for event_id, why in await self._scheduled(stream, group)
                    if why == "parked"
                ]
        last_runs = {(letter.group, letter.event_id, letter.attempts) for letter in self.dead}
        for spec in self.app.groups.values():
            for stream in self._streams(spec.topic):
                last_runs |= await self._look_at_keys(spec, stream)
        self.retried = [
            Retried(f.topic, f.group, f.event_id, f.type, f.attempt, f.error)
            for f in self._failures
            if (f.group, f.event_id, f.attempt) not in last_runs
        ]

    async def _look_at_keys(self, spec: GroupSpec, stream: StreamKeys) -> set[tuple[str, str, int]]:
        """Note what stands still in an ordered group; the runs at which keys halted."""
        last_runs = set()
        for one in await self._standing(stream, spec):
            place, state = (spec.topic.name, spec.group), one.state
            if state.halted:
                self.halted.append(Halted(*place, state.key, one.event_id, state.error))
                last_runs.add((spec.group, one.event_id, state.attempts))
            else:
                self.parked.append(Parked(*place, one.event_id))
        return last_runs

    async def _standing(self, stream: StreamKeys, spec: GroupSpec) -> list[Standing]:
        return await standing(self._door, stream, spec.group, spec.topic.codec) if spec.ordered else []

    async def _handled(self, topic: TopicSpec, group: str, stream: StreamKeys) -> list[Handled]:
        entries = await self._door.execute("XRANGE", stream.stream, "-", "+")
        types = dict(_name_and_type(topic.codec, *entry) for entry in entries)
        if not types:
            return []
        states = await self._door.execute("MGET", *stream.idems(group, types))
        members = await are_done(self._door, stream, group, list(types))
        return [
            Handled(topic.name, group, event_id, types[event_id])
            for event_id, state, is_member in zip(types, states, members, strict=True)
            if state == b"d" or (state is None and is_member)
        ]

    async def _dead(self, topic: TopicSpec, group: str, stream: StreamKeys) -> list[Dead]:
        found: list[Dead] = []
        for entry_id, fields in await self._door.execute("XRANGE", stream.dead(group), "-", "+"):
            letter = parse_dead_letter(fields)
            if letter is None:
                raise NotFound(f"entry {entry_id.decode()} of {stream.dead(group)} is no dead letter")
            event_id, name = _name_and_type(topic.codec, letter.entry_id.encode(), letter.fields)
            found.append(Dead(topic.name, group, event_id, name, letter.reason, letter.error, letter.attempts))
        return found


AppFactory = Callable[[App], AbstractAsyncContextManager[Harness]]
"""What the fixture `streamlib_app` gives."""


@asynccontextmanager
async def run_app(app: App, server: FakeServer | None = None) -> AsyncIterator[Harness]:
    """Open `app` on a Redis inside this process, its own one or `server`, and close it at the end.

    The app runs with its own settings, but for short leases and times to wait.
    """
    before, failures = app.settings, list[Failed]()
    declared = dict(app.groups)
    app.configure(_quick(before))
    app.groups.update({place: recorded(spec, failures) for place, spec in declared.items()})
    try:
        await app.open((server or FakeServer()).door(app.settings.redis))
        try:
            yield Harness(app, failures)
        finally:
            await app.close()
    finally:
        app.groups.update(declared)
        app.configure(before)


def _quick(settings: Settings) -> Settings:
    # A debugger that stops in a handler must not look like a hung process.
    worker = msgspec.structs.replace(
        settings.worker, lease_ms=2_000, reclaim_ms=100, block_ms=20, drain_s=5, stall_s=86_400
    )
    return msgspec.structs.replace(settings, worker=worker)


def _name_and_type(codec: Codec, entry_id: bytes, fields: Fields) -> tuple[str, str]:
    """Event id and type; entry id and "" for an entry that cannot be read."""
    try:
        message = codec.read(entry_id.decode(), fields)
    except DecodeError:
        return entry_id.decode(), ""
    return message.id, message.type


def _open_work(topic: str, group: GroupInfo) -> str:
    lag = "more" if group.lag is None else group.lag
    return f"{topic}/{group.group} has {lag} unread, {group.pending} pending, {group.retrying} to come again"


def _literal(text: str) -> str:
    """The text as a glob that matches nothing else."""
    return "".join(f"\\{char}" if char in "*?[]^\\" else char for char in text)
