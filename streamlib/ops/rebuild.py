"""Rebuilds a view beside the live one: a new generation is folded from history, compared, and made the live one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

from msgspec import Struct

from streamlib.errors import Refused
from streamlib.message import entry_order
from streamlib.ops.comparing import Difference, compare
from streamlib.ops.dropping import drop
from streamlib.ops.fingerprint import fingerprint
from streamlib.ops.histories import AggregateHistory, FileHistory
from streamlib.ops.views import View
from streamlib.redisio import generations, registry
from streamlib.redisio.generations import Standing
from streamlib.redisio.view_state import Extent
from streamlib.worker.history import is_half
from streamlib.worker.projector import LOOK_S
from streamlib.worker.rebuilding import Builder

T = TypeVar("T")

_LOOK_S = 0.1
_HAND_OVER_S = 3 * LOOK_S
_CATCH_UP_S = 10.0


class Outlook(Struct, frozen=True, kw_only=True):
    """What a rebuild would do now: which generation it builds, of how many events, and whether one was begun before
    that it goes on with, or deletes and starts over."""

    generation: int
    live: int
    goes_on: bool
    starts_over: bool
    events: int


class Result(Struct, frozen=True, kw_only=True):
    """What a rebuild did. `live` is the generation that readers see now, `kept` the one before (0: none)."""

    generation: int
    live: int
    kept: int
    switched: bool
    events: int
    dead: int
    seconds: float
    difference: Difference


Consent = Callable[[Difference], Awaitable[bool]]
"""Whether to switch, given how the two differ; False leaves what was built as it is. May raise Refused."""

Source = AggregateHistory | FileHistory
"""Where the past of a trimmed topic comes from."""

Advance = Callable[[int, int], None]
"""Hears how many events are folded, of how many."""


class Rebuild:
    """One rebuild of one view. `look` writes nothing."""

    def __init__(self, view: View, *, restart: bool = False, history: Source | None = None) -> None:
        self._view = view
        self._restart = restart
        self._history = history
        self._fingerprint = fingerprint(view.projection, history.told if history is not None else "stream")

    async def look(self) -> Outlook:
        """What `run` would do. Raises NotFound, Refused where it cannot be done, and what the client raises."""
        view = self._view
        now = await view.standing()
        if now.kept:
            raise Refused(
                f"generation {now.kept} of {view.label} is kept from the last switch: delete it first (--drop), or go "
                "back to it (--rollback)"
            )
        if now.dropping:
            raise Refused(f"generation {now.dropping} of {view.label} is half deleted: finish that first (--drop)")
        if not now.building:
            await self._check_group(view.group(now.next))
        await self._check_past()
        extents = await view.extents()
        goes_on = bool(now.building) and now.fingerprint == self._fingerprint and not self._restart
        if goes_on:
            goes_on = not any(head.halted or is_half(head.checkpoint) for head in await view.heads(now.building))
        return Outlook(
            generation=now.building or now.next,
            live=now.live,
            goes_on=goes_on,
            starts_over=bool(now.building) and not goes_on,
            events=sum(one.length for one in extents),
        )

    async def run(self, consent: Consent, advance: Advance) -> Result:
        """Build, catch up, compare, ask, switch. What was built stays when it breaks off; the next run goes on with it.

        Raises Refused, StreamlibError where folding stands still, and what the client raises.
        """
        began, view = time.monotonic(), self._view
        outlook = await self.look()
        await registry.declare_topic(view.redis, view.keys, view.projection.topic)
        if outlook.starts_over:
            await self._start_over(outlook)
        await self._begin(outlook)
        builder = self._builder(outlook.generation)
        await builder.take_turn()
        try:
            now = await self._prepare(outlook.generation)
            async with builder.folding():
                await self._catch_up(builder, outlook.generation, advance)
                difference = await self._watched(builder, self._compare(now))
                switched = await self._watched(builder, consent(difference))
                if switched:
                    now = await self._switch(builder, now)
                return await self._result(outlook.generation, now, difference, began, switched=switched)
        finally:
            await builder.give_turn()

    async def _check_group(self, group: str) -> None:
        """Raise Refused where a group of that name is somebody else's."""
        view, topic = self._view, self._view.projection.topic.name
        if group in await view.ask(partial(registry.groups_of, view.redis, view.keys, topic)):
            raise Refused(
                f"topic {topic!r} has a group {group!r}, which a new generation of {view.label} would be called; "
                f"rename it, or remove it: streamlib groups rm {topic} {group}"
            )

    async def _check_past(self) -> None:
        """Raise Refused where events are missing that the view was made from."""
        if self._history is not None:
            await self._history.check()
        else:
            check_whole(self._view, await self._view.extents())

    def _builder(self, generation: int) -> Builder:
        view = self._view
        return Builder(view.projection, generation, view.redis, view.keys, view.settings, self._history)

    async def _start_over(self, outlook: Outlook) -> None:
        """Delete what was begun by other code, unless somebody still builds it."""
        builder = self._builder(outlook.generation)
        await builder.take_turn()
        now = await self._view.standing()
        await drop(self._view, now, outlook.generation)

    async def _begin(self, outlook: Outlook) -> None:
        """Register the view and what is built of it. That this is ours and stands, `_prepare` sees."""
        view, live, generation = self._view, outlook.live, outlook.generation
        await view.ask(partial(generations.declare_view, view.redis, view.keys, view.name.topic, view.name.view))
        await view.ask(
            partial(generations.begin, view.redis, view.keys, view.name, live, generation, self._fingerprint)
        )

    async def _prepare(self, generation: int) -> Standing:
        """Register the group: from here on retention keeps everything for the new generation."""
        view = self._view
        topic, types = view.projection.topic, view.projection.type_names
        now = await view.standing()
        if now.building != generation or now.fingerprint != self._fingerprint:
            raise Refused(f"{view.label} was changed by somebody else meanwhile; look at it again")
        await registry.declare_group(view.redis, view.keys, topic, view.group(generation), "projection", types)
        await self._check_past()
        return now

    async def _catch_up(self, builder: Builder, generation: int, advance: Advance) -> None:
        """Fold until the end, as it was when it was looked at last, is not far."""
        while True:
            extents = await self._view.extents()
            began, total = time.monotonic(), sum(one.added for one in extents)
            while not builder.reached([one.last for one in extents]):
                builder.check()
                advance(min(await self._view.read(generation), total), total)
                await asyncio.sleep(_LOOK_S)
            advance(total, total)
            if time.monotonic() - began < _CATCH_UP_S:
                return

    async def _compare(self, now: Standing) -> Difference:
        view = self._view
        return await compare(view.redis, view.parts(now.live), view.parts(now.building))

    async def _switch(self, builder: Builder, now: Standing) -> Standing:
        """Make it the live one, once it contains all that the topic, and so the live one, contains at this moment."""
        view = self._view
        ends = [one.last for one in await view.extents()]
        while not builder.reached(ends):
            builder.check()
            await asyncio.sleep(_LOOK_S / 20)
        if not await view.ask(partial(generations.switch, view.redis, view.keys, view.name, now)):
            raise Refused(f"{view.label} was changed by somebody else meanwhile: it was not switched; look at it again")
        until = time.monotonic() + _HAND_OVER_S  # workers hear of it within a second; until then it is fed from here
        while await view.fed(now.live) and not await view.fed(now.building) and time.monotonic() < until:
            builder.check()
            await asyncio.sleep(_LOOK_S)
        return Standing(live=now.building, kept=now.live)

    async def _watched(self, builder: Builder, work: Awaitable[T]) -> T:
        """The result of `work`; folding goes on meanwhile, and where it stands still that is raised."""
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=_LOOK_S)
                builder.check()
        finally:
            task.cancel()
        return task.result()

    async def _result(
        self, generation: int, now: Standing, difference: Difference, began: float, *, switched: bool
    ) -> Result:
        view, group = self._view, self._view.group(generation)
        lengths = [view.ask(partial(view.redis.execute, "XLEN", one.stream.dead(group))) for one in view.parts(0)]
        return Result(
            generation=generation,
            live=now.live,
            kept=now.kept,
            switched=switched,
            events=await view.read(generation),
            dead=sum(await asyncio.gather(*lengths)),
            seconds=round(time.monotonic() - began, 1),
            difference=difference,
        )


def check_whole(view: View, extents: Sequence[Extent]) -> None:
    """Raise Refused where a stream has lost entries: rows made of the rest would be wrong."""
    for number, one in enumerate(extents):
        if one.added > one.length:
            raise Refused(
                f"{view.label} cannot be rebuilt from topic {view.projection.topic.name!r}: of the {one.added} entries "
                f"that were added to partition {number}, {one.added - one.length} are trimmed or deleted. Rebuild it "
                "from the aggregates' own history (--from-aggregates) or from an export (--from FILE)"
            )


async def roll_back(view: View) -> Standing:
    """Let readers see the kept generation again, and keep the other one.

    Raises Refused where none is kept, or where the kept one does not contain what readers have seen.
    """
    now = await view.standing()
    if not now.kept:
        raise Refused(f"no generation of {view.label} is kept: there is nothing to go back to")
    live = [entry_order(head.checkpoint) for head in await view.heads(now.live)]
    until = time.monotonic() + _CATCH_UP_S
    while True:
        kept = await view.heads(now.kept)
        if all(entry_order(head.checkpoint) >= end for head, end in zip(kept, live, strict=True)):
            break
        halted = next((f"partition {number}: {head.halted}" for number, head in enumerate(kept) if head.halted), "")
        if halted or time.monotonic() > until:
            fed = "" if await view.fed(now.kept) else "; no worker feeds it"
            raise Refused(
                f"generation {now.kept} of {view.label} is behind what readers see, and does not catch up"
                f"{fed}{f' ({halted})' if halted else ''}"
            )
        await asyncio.sleep(_LOOK_S)
    if not await view.ask(partial(generations.swap, view.redis, view.keys, view.name, now)):
        raise Refused(f"{view.label} was changed by somebody else meanwhile; look at it again")
    return Standing(live=now.kept, kept=now.live)
