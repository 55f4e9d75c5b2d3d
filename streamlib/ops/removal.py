"""Removes a group: what it owes is archived first, its entry in the registry goes last. May be done again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from msgspec import Struct

from streamlib.errors import Refused
from streamlib.keys import Keys
from streamlib.ops.archive import ArchiveFile, archived
from streamlib.ops.inspect import inspect
from streamlib.ops.places import Place, places
from streamlib.ops.workers import workers_of
from streamlib.redisio import group_keys, pauses, registry
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.generations import ViewName, forget_view, standing
from streamlib.redisio.indexes import GENERATION, group_of
from streamlib.redisio.members import Member


class Holdings(Struct, frozen=True, kw_only=True):
    """What a group has, and who runs it. `undelivered` are events of the topic that it has not got, None if unknown."""

    topic: str
    group: str
    kind: str
    undelivered: int | None
    pending: int
    retrying: int
    dead: int
    workers: list[Member]

    @property
    def to_archive(self) -> int:
        """Events that would be lost with the group; those that it has not got stay in the topic."""
        return self.pending + self.retrying + self.dead


async def holdings(redis: RedisDoor, keys: Keys, topic: str, group: str, lease_ms: int) -> Holdings:
    """What removing the group would mean. Raises NotFound, and Refused for one generation of a view."""
    kind = (await places(redis, keys, topic, group))[0].kind
    if kind == "projection":
        await view_of(redis, keys, topic, group)
    [info] = await inspect(redis, keys, topic)
    found = next(one for one in info.groups if one.group == group)
    return Holdings(
        topic=topic,
        group=group,
        kind=kind,
        undelivered=found.lag,
        pending=found.pending,
        retrying=found.retrying,
        dead=found.dead,
        workers=await workers_of(redis, keys, topic, group, lease_ms),
    )


async def archive(redis: RedisDoor, keys: Keys, topic: str, group: str, path: Path) -> int:
    """Pause the group and write what it owes and its dead letters to a new file; how many lines are safe on the disk.

    Without any no file is left. Raises NotFound, Refused when the file exists, StreamlibError when it cannot be
    written, and what the client raises; nothing was deleted then, but the group may be paused.
    """
    there = await places(redis, keys, topic, group)
    with ArchiveFile(path) as file:
        await pauses.pause(redis, keys, topic, group)
        for place in there:
            async for line in archived(redis, place):
                file.write(line)
    return file.lines


async def remove(
    redis: RedisDoor, keys: Keys, topic: str, group: str, done: Callable[[int], None] = lambda _: None
) -> int:
    """Delete everything that the group has, then the group; how many idempotency keys and rows there were.

    `done(1)` after each partition. May be done again after it broke off. Raises NotFound and what the client raises.
    """
    there = await places(redis, keys, topic, group)
    view = await view_of(redis, keys, topic, group) if there[0].kind == "projection" else None
    groups = [group] if view is None else view.groups
    for place in there:
        for one in groups:
            await redis.persist(partial(group_keys.destroy, redis, place.keys, one), give_up_s=redis.settings.retry_s)
        done(1)
    kinds = [f"{kind}:{one}" for one in groups for kind in ("idem", "done")]
    kinds += [f"view:{view.name.view}"] if view is not None else []
    deleted = await _delete_many(redis, there, kinds)
    if view is not None:
        await redis.persist(partial(forget_view, redis, keys, view.name), give_up_s=redis.settings.retry_s)
    for one in groups:
        await redis.persist(partial(registry.forget_group, redis, keys, topic, one), give_up_s=redis.settings.retry_s)
    return deleted


class OwnView(Struct, frozen=True):
    """The view that a group of a projection belongs to, and the groups of all its generations, that group last."""

    name: ViewName
    groups: list[str]


async def view_of(redis: RedisDoor, keys: Keys, topic: str, group: str) -> OwnView:
    """A view goes as a whole. Raises Refused for the group of a generation that is not the live one."""
    for view in dict.fromkeys((group, GENERATION.sub("", group))):
        now = await redis.persist(partial(standing, redis, keys, topic, view), give_up_s=redis.settings.retry_s)
        groups = {group_of(view, generation): role for generation, role in now.roles.items()}
        if now.declared and group in groups:
            if groups[group] != "live":
                raise Refused(
                    f"{group} is a generation of view {view!r} ({groups[group]}): delete it with `streamlib rebuild "
                    f"APP {view} --drop` or `--abandon`, or the whole view with `streamlib groups rm {topic} "
                    f"{group_of(view, now.live)}`"
                )
            return OwnView(ViewName(topic, view), [*(one for one in groups if one != group), group])
    return OwnView(ViewName(topic, group), [group])


async def _delete_many(redis: RedisDoor, there: list[Place], kinds: list[str]) -> int:
    deleted = 0
    streams = [place.keys for place in there]
    async for names in group_keys.many_keys(redis, streams, kinds, one_node=redis.one_node):
        deleted += await group_keys.unlink(redis, names)
    return deleted
