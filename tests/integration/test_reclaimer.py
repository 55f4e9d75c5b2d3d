"""The walk over pending lists finds what the dead have left, also behind a long list of what the living hold."""

from collections import deque

import pytest
import redis

from streamlib.codec import NativeCodec
from streamlib.keys import Keys
from streamlib.metrics.worker import WorkerMetrics
from streamlib.redisio.reader import Reader, Received
from streamlib.settings import WorkerSettings
from streamlib.worker.reclaimer import Reclaimer
from tests.helpers.delivering import GROUP, STREAM
from tests.helpers.publishing import open_door

LIVING, DEAD = 3_000, 5
SETTINGS = WorkerSettings(lease_ms=60_000)
KEYS = Keys().stream(STREAM, 0, 1)


class Inbox:
    """What the reclaimer needs of a consumer: room, and somewhere to put what it found."""

    room_to_reclaim = 100

    def __init__(self) -> None:
        self.offered: deque[Received] = deque()

    def offer(self, received: list[Received]) -> None:
        self.offered.extend(received)


def left_behind(client: redis.Redis) -> set[str]:
    """Thousands of entries that a living worker holds, and behind them a few whose worker is gone; these."""
    for stream in (KEYS.stream, KEYS.again(GROUP)):
        client.xgroup_create(stream, GROUP, "0", mkstream=True)
    pipe = client.pipeline(transaction=False)
    for n in range(LIVING + DEAD):
        pipe.xadd(KEYS.stream, {"id": str(n), "type": "T", "v": "1", "key": "", "data": "{}"})
    ids = pipe.execute()
    client.xreadgroup(GROUP, "living", {KEYS.stream: ">"}, count=LIVING)
    client.xreadgroup(GROUP, "dead", {KEYS.stream: ">"}, count=DEAD)
    client.xclaim(KEYS.stream, GROUP, "dead", 0, ids[LIVING:], idle=10 * SETTINGS.lease_ms, justid=True)
    return {one.decode() for one in ids[LIVING:]}


@pytest.mark.row(59)
async def test_the_dead_are_found_behind_many_living(redis_url: str, client: redis.Redis) -> None:
    dead = left_behind(client)
    inbox = Inbox()
    async with open_door(redis_url) as door:
        reader = Reader({0: KEYS}, GROUP, "mine", NativeCodec())
        metrics = WorkerMetrics().group(STREAM, GROUP)
        reclaimer = Reclaimer(door, reader, inbox, [KEYS], SETTINGS, metrics)  # type: ignore[arg-type]
        for _ in range(LIVING // 100):
            await reclaimer.run_once(0)
    assert {one.delivery.entry_id for one in inbox.offered} == dead
    assert len(inbox.offered) == DEAD, "each once"
    living = client.xpending_range(KEYS.stream, GROUP, "-", "+", LIVING, "living")
    assert len(living) == LIVING, "what the living hold is left to them"
