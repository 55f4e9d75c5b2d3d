"""A cancelled task ends, wherever in a command the cancellation meets it."""

from __future__ import annotations

import asyncio

import pytest

from streamlib.redisio.connection import RedisDoor
from streamlib.settings import RedisSettings


@pytest.mark.row(13)
async def test_no_cancellation_is_lost_in_a_command(redis_url: str) -> None:
    door = RedisDoor.open(RedisSettings(url=redis_url))

    async def ask_for_ever() -> None:
        while True:
            await door.execute("PING")

    lost = 0
    for turn in range(300):
        task = asyncio.create_task(ask_for_ever())
        for _ in range(turn % 7):
            await asyncio.sleep(0)
        task.cancel()
        _, running = await asyncio.wait({task}, timeout=0.5)
        while running:
            lost += 1
            task.cancel()
            _, running = await asyncio.wait({task}, timeout=0.5)
    await door.close()
    assert lost == 0
