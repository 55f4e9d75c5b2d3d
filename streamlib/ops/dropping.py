"""Deletes a generation of a view that nobody reads any more; what breaks off is gone on with when it is done again."""

from __future__ import annotations

import asyncio
import time
from functools import partial

from streamlib.errors import Refused
from streamlib.ops.views import View
from streamlib.ops.workers import live_ms
from streamlib.redisio import generations, group_keys, registry
from streamlib.redisio.generations import Standing
from streamlib.redisio.live_view import ASK_S, PATIENCE_S

READERS_S = ASK_S + PATIENCE_S + 2.0
"""Readers follow a switch within ASK_S + PATIENCE_S; a question that they have begun has two seconds to end."""
_WORKERS_S = 5.0
_LOOK_S = 0.1


async def drop(view: View, now: Standing, generation: int) -> int:
    """Delete the kept generation, the one being built, or one whose deletion broke off; how many keys there were.

    First workers and readers leave it: readers had up to READERS_S to follow a switch, so no question loses its rows.
    Raises Refused when the view stands otherwise meanwhile, and what the client raises.
    """
    if generation != now.dropping:
        told = await view.ask(partial(generations.give_up, view.redis, view.keys, view.name, now, generation))
        if not told:
            raise Refused(f"{view.label} was changed by somebody else meanwhile; look at it again")
    if generation != now.building:
        await _until_left(view, generation)
    group, parts = view.group(generation), view.parts(generation)
    streams = [one.stream for one in parts]
    for stream in streams:  # without its owner no commit is taken any more
        await view.ask(partial(group_keys.destroy, view.redis, stream, group))
    deleted = 0
    kinds = [f"idem:{group}", f"view:{view.projection.name}:{generation}"]
    async for names in group_keys.many_keys(view.redis, streams, kinds, one_node=view.redis.one_node):
        deleted += await view.ask(partial(group_keys.unlink, view.redis, names))
    for one in parts:
        deleted += await view.ask(partial(view.redis.execute, "UNLINK", one.head))
    await view.ask(partial(registry.forget_group, view.redis, view.keys, view.projection.topic.name, group))
    await view.ask(partial(generations.given_up, view.redis, view.keys, view.name, generation))
    return deleted


async def _until_left(view: View, generation: int) -> None:
    began = time.monotonic()
    longest_s = live_ms(view.settings.worker.lease_ms) / 1000 + _WORKERS_S
    pause_s = READERS_S
    while True:
        await asyncio.sleep(pause_s)
        if not await view.fed(generation) or time.monotonic() > began + longest_s:
            return
        pause_s = _LOOK_S
