"""A range of a topic in a file: it is there when it is whole, also when two runs write to one name."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from streamlib.errors import Refused
from streamlib.ops.pace import Pace
from streamlib.ops.range_file import RangeFile
from streamlib.ops.ranges import BEGIN, Asked
from streamlib.redisio.replays import Totals
from tests.helpers.replaying import Topic, a_topic
from tests.helpers.waiting import eventually


class Held:
    """A run that writes one event and waits then, until it is let go."""

    def __init__(self, topic: Topic, path: Path) -> None:
        self.waits = False
        self._go = asyncio.Event()
        self._now = 0.0
        self._task = asyncio.create_task(self._run(topic, path))

    async def end(self) -> Totals:
        self._go.set()
        return await self._task

    async def _run(self, topic: Topic, path: Path) -> Totals:
        file = RangeFile(topic.door, topic.keys, Asked(topic="orders", start=BEGIN), None, path)
        await file.check()
        return await file.run(Pace(10.0, clock=lambda: self._now, sleep=self._sleep), lambda n: None)

    async def _sleep(self, seconds: float) -> None:
        self.waits = True
        await self._go.wait()
        self._now += seconds


async def test_of_two_runs_into_one_file_the_first_to_end_leaves_it_whole(redis_url: str, tmp_path: Path) -> None:
    path = tmp_path / "range.jsonl"
    async with a_topic(redis_url) as t:
        for n in range(9):
            t.put(f"e-{n}")
        first = Held(t, path)
        await eventually(lambda: first.waits)
        second = Held(t, path)
        await eventually(lambda: second.waits)
        assert (await first.end()).replayed == 9
        assert len(path.read_text().splitlines()) == 9
        with pytest.raises(Refused, match=r"range\.jsonl exists"):
            await second.end()
        assert len(path.read_text().splitlines()) == 9
    assert list(tmp_path.iterdir()) == [path]
