"""Looks until nothing is left for the groups of a process: the end of `run --burst`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from streamlib.errors import StreamlibError
from streamlib.keys import Keys
from streamlib.ops.inspect import TopicInfo, inspect
from streamlib.redisio.connection import RedisDoor
from streamlib.worker.pausing import Pauses
from streamlib.worker.projector import Projector
from streamlib.worker.unit import GroupUnit

_LOOKS = 2
_EVERY_S = 0.2


class Burst:
    """Looks at the backlog in Redis. What stands still until a person acts is no reason to go on, but one to say so."""

    def __init__(
        self,
        door: RedisDoor,
        keys: Keys,
        units: Sequence[GroupUnit],
        projectors: Mapping[str, Projector],
        pauses: Pauses,
    ) -> None:
        self._door = door
        self._keys = keys
        self._units = units
        self._projectors = projectors
        self._pauses = pauses

    async def run(self) -> None:
        """Until the backlog was empty several times in a row.

        Raises StreamlibError when work is left that stands still: at a projection, a halted key or a paused group.
        """
        empty = 0
        while empty < _LOOKS:
            await asyncio.sleep(_EVERY_S)
            empty = empty + 1 if await self._backlog() == 0 else 0
        for name, projector in self._projectors.items():
            for partition, problem in projector.problems.items():
                raise StreamlibError(f"projection {name!r} stands still at partition {partition}: {problem}")
        for unit in self._units:
            for partition, key in unit.intake.halted:
                topic, group = unit.spec.topic.name, unit.spec.group
                raise StreamlibError(
                    f"group {group!r} of topic {topic!r}: key {key!r} of partition {partition} is halted, "
                    f"{unit.intake.halted_events} events wait for such keys; see: streamlib keys ls {topic} {group}"
                )
        for topic, group, left in await self._left_by_pauses():
            raise StreamlibError(
                f"group {group!r} of topic {topic!r} is paused with {left} events left; "
                f"go on with: streamlib groups resume {topic} {group}"
            )

    async def _backlog(self) -> int:
        working = [unit for unit in self._units if not unit.intake.stands_still]
        wanted = {(unit.spec.topic.name, unit.spec.group) for unit in working}
        wanted |= {(one.projection.topic.name, group) for one in self._projectors.values() for group in one.groups}
        wanted = {place for place in wanted if not self._pauses.paused(*place)}
        infos = [info for topic in {name for name, _ in wanted} for info in await self._look(topic)]
        backlog = sum(group.backlog for info in infos for group in info.groups if (info.topic, group.group) in wanted)
        return backlog - sum(unit.intake.halted_events for unit in working)

    async def _left_by_pauses(self) -> list[tuple[str, str, int]]:
        return [
            (info.topic, group.group, group.backlog)
            for topic in sorted({topic for topic, _ in self._pauses.all_paused})
            for info in await self._look(topic)
            for group in info.groups
            if self._pauses.paused(info.topic, group.group) and group.backlog
        ]

    async def _look(self, topic: str) -> list[TopicInfo]:
        return await self._door.persist(lambda: inspect(self._door, self._keys, topic), give_up_s=None)
