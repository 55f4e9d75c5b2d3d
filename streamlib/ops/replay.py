"""Replays a range of a topic for one group: what it still holds is checked first, then copied batch by batch.

A run can be killed at any point: its plan and how far it has come lie in Redis, and who asks for the same goes on.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from msgspec import Struct

from streamlib.errors import Fenced, NotFound, Refused
from streamlib.keys import Keys
from streamlib.ops.dead_letters import iso_time
from streamlib.ops.pace import AT_ONCE, Pace
from streamlib.ops.places import Place, places
from streamlib.ops.ranges import Asked, Scan, ranges_of
from streamlib.redisio import replays
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.failures import CLIENT_ERRORS, error_code
from streamlib.redisio.replays import Batch, Outcome, Plan, Progress, Totals

T = TypeVar("T")

PROJECTION, ORDERED = "projection", "ordered"
_KEEP_EVERY_S = 60.0


class Outlook(Struct, frozen=True, kw_only=True):
    """What a run would do: `totals`, and how many events would be replayed by partition and type."""

    totals: Totals
    events: dict[tuple[int, str], int]


class Replay:
    """One range, one group. Nothing is written before `run`.

    `check` comes first. `totals` are those of the whole run, also of what was done before it broke off.
    """

    def __init__(self, redis: RedisDoor, keys: Keys, asked: Asked, group: str, *, window_s: float) -> None:
        self.notes: list[str] = []
        self.goes_on = False
        """Whether the same was begun before and broke off."""
        self._redis = redis
        self._keys = keys
        self._asked = asked
        self._group = group
        self._window_ms = int(window_s * 1000)
        self._record = keys.replay(asked.topic, group)
        self._places: list[Place] = []
        self._plan: Plan | None = None
        self._progress: dict[int, Progress] = {}
        self._instead = False

    @property
    def totals(self) -> Totals:
        return sum((one.totals for one in self._progress.values()), Totals())

    async def check(self, *, anew: bool = False) -> None:
        """Find out what is meant, and whether it is still there.

        Raises NotFound for a topic or group that is none, Refused for a projection, for history that is gone, and where
        another replay of the group has not ended (unless `anew`).
        """
        self._places = await places(self._redis, self._keys, self._asked.topic, self._group)
        if self._places[0].kind == PROJECTION:
            raise Refused(
                f"{self._group} is a projection: it folds its topic in order, and an event twice would count twice; "
                f"make its rows anew: streamlib rebuild APP {self._group}"
            )
        self._instead = anew
        if self._places[0].kind == ORDERED:
            self.notes.append(
                "the group is ordered: of each key what is published meanwhile runs among the replayed events"
            )
        unfinished = await self._persist(partial(replays.begun, self._redis, self._record))
        self.goes_on = unfinished is not None and not anew and unfinished.request == self._request
        if unfinished is not None and self.goes_on:
            self._plan = unfinished
            self.notes.append(
                f"this replay was begun at {iso_time(unfinished.begun_ms)} and has not ended; it goes on where it "
                "stands, with the range of then (--anew begins it anew)"
            )
        elif unfinished is None or anew:
            self._plan = await self._new_plan(unfinished)
        else:
            raise Refused(
                f"another replay of group {self._group!r} has begun and not ended: {unfinished.request}; run that "
                "command again to end it, or begin this one with --anew, which leaves the other where it stands"
            )
        self._progress = {place.partition: await self._stands(place) for place in self._places}

    async def look(self) -> Outlook:
        """What `run` would do now, after `check`. Writes nothing."""
        done, events = Totals(), Counter[tuple[int, str]]()
        for place in self._places:
            scan = self._scan(place)
            while batch := await self._persist(partial(scan.next, AT_ONCE)):
                looking = partial(replays.look, self._redis, place.keys, self._group, batch)
                outcomes = await self._persist(looking)
                by = Counter(outcome.name.lower() for outcome in outcomes)
                done += batch.left_out + Totals(**by)
                events.update(
                    (place.partition, one.message.type)
                    for one, outcome in zip(batch.events, outcomes, strict=True)
                    if outcome is Outcome.REPLAYED
                )
        return Outlook(totals=done, events=dict(sorted(events.items())))

    async def run(self, pace: Pace, done: Callable[[int], None]) -> Totals:
        """Copy what may be replayed, after `check`; `done(n)` hears of every n entries.

        Raises Fenced when another run takes the place of this one, and RedisUnavailable; it can be gone on with then.
        """
        await self._begin()
        done(self.totals.entries)
        scans = {place: self._scan(place) for place in self._places}
        keep_at = time.monotonic() + _KEEP_EVERY_S
        while scans:  # a batch of each partition in turn: all their workers have something to do
            for place, scan in list(scans.items()):
                await pace.wait()
                behind = scan.position
                batch = await self._persist(partial(scan.next, pace.at_once))
                if batch is None:
                    del scans[place]
                    continue
                before = self._progress[place.partition].totals
                current, progress = await self._send(place, behind, batch)
                self._progress[place.partition] = progress
                if not current:  # the same command runs somewhere else, too: together they are one run
                    scan.go_to(progress.position)
                done(progress.totals.entries - before.entries)
                pace.spend(min(progress.totals.replayed - before.replayed, len(batch.events)))
                if time.monotonic() > keep_at:
                    await self._keep()
                    keep_at = time.monotonic() + _KEEP_EVERY_S
        await self._end()
        return self.totals

    async def _send(self, place: Place, behind: str, batch: Batch) -> tuple[bool, Progress]:
        sending = partial(
            replays.step, self._redis, place.keys, self._group, self._number, behind, batch, window_ms=self._window_ms
        )
        try:
            return await self._persist(sending)
        except Fenced:
            # A plan of ours that stands came late, after a later run had ended: nobody could go on with it.
            await self._persist(partial(replays.end, self._redis, self._record, self._number))
            raise

    # -- the run ------------------------------------------------------------------------------------------------------

    @property
    def _request(self) -> str:
        return f"{self._asked.told} --group {self._group}"

    @property
    def _checked(self) -> Plan:
        if self._plan is None:
            raise RuntimeError("check() comes first")
        return self._plan

    @property
    def _number(self) -> int:
        return self._checked.number

    async def _new_plan(self, unfinished: Plan | None) -> Plan:
        """Runs are numbered by the server's clock, and past those whose traces are still there."""
        streams = [place.keys.stream for place in self._places]
        found, notes = await self._persist(partial(ranges_of, self._redis, self._asked, streams, self._group))
        self.notes += notes
        seconds, micros = await self._persist(partial(self._redis.execute, "TIME"))
        number = int(seconds) * 1_000_000 + int(micros)
        traces = [unfinished.number] if unfinished is not None else []
        for place in self._places:
            reading = partial(replays.progress_of, self._redis, place.keys, self._group)
            traces.append((await self._persist(reading))[0])
        number = max(number, *(trace + 1 for trace in traces))
        return Plan(number=number, request=self._request, begun_ms=number // 1000, ranges=found)

    async def _stands(self, place: Place) -> Progress:
        reading = partial(replays.progress_of, self._redis, place.keys, self._group)
        number, progress = await self._persist(reading)
        return progress if number == self._number else Progress()

    async def _begin(self) -> None:
        """Raises Refused when another run has begun since `check`."""
        if self.goes_on:
            await self._keep()
            return
        beginning = partial(replays.begin, self._redis, self._record, self._checked, instead=self._instead)
        stands = await self._persist(beginning)
        if stands.number != self._number:
            raise Refused(f"another replay of group {self._group!r} has just begun: {stands.request}")

    async def _keep(self) -> None:
        """The plan, and how far it is on each partition: no step comes any more to those that are done."""
        for key in (self._record, *(place.keys.replay(self._group) for place in self._places)):
            await self._persist(partial(replays.keep, self._redis, key))

    async def _end(self) -> None:
        """The plan goes first: who asks for the same from now on begins anew."""
        await self._persist(partial(replays.end, self._redis, self._record, self._number))
        for place in self._places:
            key = place.keys.replay(self._group)
            await self._persist(partial(replays.end, self._redis, key, self._number, in_ms=replays.ENDED_MS))

    def _scan(self, place: Place) -> Scan:
        scan = Scan(self._redis, place.keys.stream, self._asked, self._checked.ranges[place.partition])
        scan.go_to(self._progress[place.partition].position)
        return scan

    async def _persist(self, operation: Callable[[], Awaitable[T]]) -> T:
        try:
            return await self._redis.persist(operation, give_up_s=self._redis.settings.retry_s)
        except CLIENT_ERRORS as error:
            if error_code(error) == "NOGROUP":
                raise NotFound(
                    f"topic {self._asked.topic!r} has lost its group {self._group!r} ({error}); a worker that runs it "
                    "makes it again; then run this command again"
                ) from error
            raise
