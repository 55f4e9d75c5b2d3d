"""Where machines run, and how long: a Redis inside the process or a real one, `STREAMLIB_TEST_EXAMPLES` times."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeVar, cast

import fakeredis
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test
from msgspec import Struct

from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.scripts import Script
from streamlib.settings import RedisSettings
from streamlib.testing.fake_redis import FakeServer
from tests.helpers.servers import connect

EXAMPLES_ENV = "STREAMLIB_TEST_EXAMPLES"

_KEPT = {Script(name).sha for name in ("publish", "commit")}

T = TypeVar("T")
M = TypeVar("M", bound=RuleBasedStateMachine)


picks = st.integers(0, 30)
"""What to choose, for `chosen`, of as many as there are at that moment."""


def chosen(many: Sequence[T], picked: Sequence[int]) -> list[T]:
    """As many of them as were picked, each once."""
    return [many[i] for i in dict.fromkeys(one % len(many) for one in picked)] if many else []


class Place(Struct, frozen=True):
    """A server that is emptied for each example: the one at `url`, or one inside the process."""

    url: str = ""

    def open(self) -> tuple[RedisDoor, redis.Redis]:
        """A door to it, and a client in bytes mode with RESP2 shapes."""
        if not self.url:
            server = FakeServer()
            return server.door(RedisSettings()), fakeredis.FakeRedis(server=server._server, protocol=2)
        client = connect(self.url)
        client.flushall()
        return RedisDoor.open(RedisSettings(url=self.url)), client


class Resending:
    """A door in front of another one. While `twice` is set the reply of each script is lost: it is sent once more, and
    who asked gets the second answer."""

    def __init__(self, door: RedisDoor) -> None:
        self.twice = False
        self.sent: list[tuple[Any, ...]] = []
        """Every batch of a publisher and every commit of a view, as it was sent: it may arrive again, much later."""
        self._door = door

    @classmethod
    def before(cls, door: RedisDoor) -> tuple[RedisDoor, Resending]:
        """The same object as what it stands for, and as what it is."""
        resending = cls(door)
        return cast("RedisDoor", resending), resending

    async def execute(self, *command: Any) -> Any:
        if command[0] == "EVALSHA" and command[1] in _KEPT:  # noted first: a server that is new does not know it yet
            self.sent.append(command)
        answer = await self._door.execute(*command)
        if self.twice and str(command[0]).startswith("EVAL"):
            answer = await self._door.execute(*command)
        return answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._door, name)


def at(machine: type[M], place: Place) -> type[M]:
    """The machine at that place, with a count of its own of what it met."""
    return type(machine.__name__, (machine,), {"place": place, "met": Counter()})


def run_machine(machine: type[RuleBasedStateMachine], *, examples: int, steps: int) -> None:
    """Run so many examples, the same each time, or as many other ones as the environment says. What fails is made
    small, and printed with a line that runs just that again; no clock decides anything."""
    wanted = os.environ.get(EXAMPLES_ENV)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=int(wanted or examples),
            # A change is judged by its own steps: what a night finds in other ones becomes a plain test.
            derandomize=wanted is None,
            stateful_step_count=steps,
            deadline=None,
            print_blob=True,
            phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )
