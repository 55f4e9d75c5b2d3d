"""Which generations a view has: the live one, one kept for a rollback, one being built, one being deleted."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from streamlib.keys import Keys
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.indexes import FIRST, group_of
from streamlib.redisio.registry import declare_group
from streamlib.redisio.scripts import Executes, Script
from streamlib.topic import TopicSpec

_change = Script("change_view")
_KEPT, _BUILDING, _DROPPING = ":kept", ":building", ":dropping"
_FIELDS = ("", _KEPT, _BUILDING, _DROPPING)


class Standing(Struct, frozen=True):
    """The generations of one view, 0 for none. `fingerprint` is of the declaration that `building` was begun with.

    Readers see `live`; workers feed `live` and `kept`. `declared` is False where no worker has registered the view.
    """

    live: int = FIRST
    kept: int = 0
    building: int = 0
    dropping: int = 0
    fingerprint: str = ""
    declared: bool = True

    @property
    def fed(self) -> tuple[int, ...]:
        """What workers feed, the live one first."""
        return (self.live, self.kept) if self.kept else (self.live,)

    @property
    def folded(self) -> frozenset[int]:
        """What anybody may fold into."""
        return frozenset({*self.fed, self.building})

    @property
    def roles(self) -> dict[int, str]:
        """Generation -> "live", "kept", "building" or "dropping"."""
        named = {self.dropping: "dropping", self.building: "building", self.kept: "kept", self.live: "live"}
        return {generation: named[generation] for generation in sorted(named) if generation}

    @property
    def next(self) -> int:
        """The number of a generation that is not there yet."""
        return max(self.live, self.kept, self.building, self.dropping) + 1


class ViewName(Struct, frozen=True):
    """A view of a topic, as the register of views knows it."""

    topic: str
    view: str

    def field(self, role: str = "") -> str:
        return f"{self.topic}:{self.view}{role}"


async def live_generation(redis: Executes, keys: Keys, topic: str, view: str, otherwise: int = FIRST) -> int:
    """The generation that readers see; `otherwise` where the register does not know the view."""
    return int(await redis.execute("HGET", keys.views(), ViewName(topic, view).field()) or otherwise)


async def standing(redis: Executes, keys: Keys, topic: str, view: str) -> Standing:
    """Every generation of the view. Raises what the client raises."""
    name = ViewName(topic, view)
    found = await redis.execute("HMGET", keys.views(), *map(name.field, _FIELDS))
    live, kept, building, dropping = ((value or b"").decode() for value in found)
    number, _, fingerprint = building.partition(":")
    return Standing(
        live=int(live or FIRST),
        kept=int(kept or 0),
        building=int(number or 0),
        dropping=int(dropping or 0),
        fingerprint=fingerprint,
        declared=bool(live),
    )


async def declare_view(redis: Executes, keys: Keys, topic: str, view: str, generation: int = FIRST) -> None:
    """Register the view; a generation that was chosen before stays. Safe to send twice."""
    await redis.execute("HSETNX", keys.views(), ViewName(topic, view).field(), generation)


async def declare_generations(redis: RedisDoor, keys: Keys, topic: TopicSpec, view: str, types: Iterable[str]) -> None:
    """Register the groups of all generations that workers feed, and create them. Raises as `declare_group` does."""
    now = await redis.persist(lambda: standing(redis, keys, topic.name, view), give_up_s=redis.settings.retry_s)
    names = list(types)
    for generation in now.fed:
        await declare_group(redis, keys, topic, group_of(view, generation), "projection", names)


async def begin(redis: Executes, keys: Keys, name: ViewName, live: int, generation: int, fingerprint: str) -> bool:
    """Note that a generation is being built beside the live one of a declared view; False when there is another, or one
    to go back to or to delete, or when another has gone live: it may have had the same number. Safe to send twice."""
    return await _move(
        redis,
        keys,
        name,
        {
            "": (str(live), str(live)),
            _KEPT: ("", ""),
            _DROPPING: ("", ""),
            _BUILDING: ("", f"{generation}:{fingerprint}"),
        },
    )


async def switch(redis: Executes, keys: Keys, name: ViewName, now: Standing) -> bool:
    """Let readers see what was built, and keep what they saw; False when the view stands otherwise meanwhile."""
    return await _move(
        redis,
        keys,
        name,
        {
            "": (str(now.live), str(now.building)),
            _KEPT: ("", str(now.live)),
            _BUILDING: (f"{now.building}:{now.fingerprint}", ""),
        },
    )


async def swap(redis: Executes, keys: Keys, name: ViewName, now: Standing) -> bool:
    """Let readers see what was kept, and keep what they saw; False when the view stands otherwise meanwhile."""
    return await _move(redis, keys, name, {"": (str(now.live), str(now.kept)), _KEPT: (str(now.kept), str(now.live))})


async def give_up(redis: Executes, keys: Keys, name: ViewName, now: Standing, generation: int) -> bool:
    """Nobody feeds the kept generation, or the one being built, any more; False when the view stands otherwise."""
    if generation == now.kept:
        left = {_KEPT: (str(generation), "")}
    else:
        left = {_BUILDING: (f"{generation}:{now.fingerprint}", "")}
    return await _move(redis, keys, name, left | {_DROPPING: ("", str(generation))})


async def given_up(redis: Executes, keys: Keys, name: ViewName, generation: int) -> None:
    """Its keys are gone. Safe to send twice."""
    await _move(redis, keys, name, {_DROPPING: (str(generation), "")})


async def forget_view(redis: Executes, keys: Keys, name: ViewName) -> None:
    """Take the view out of the register, all its generations. Safe to send twice."""
    await redis.execute("HDEL", keys.views(), *map(name.field, _FIELDS))


async def _move(redis: Executes, keys: Keys, name: ViewName, changes: dict[str, tuple[str, str]]) -> bool:
    args = [part for role, values in changes.items() for part in (name.field(role), *values)]
    return bool(await _change.run(redis, [keys.views()], args) == 1)
