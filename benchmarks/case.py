"""What a case is: how the database is made ready, what runs in a process of its own, how its result is checked."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import redis
from msgspec import Struct
from msgspec.structs import replace

Figures = dict[str, float]
"""What one run measured, by name; names end in their unit."""


class Size(Struct, frozen=True):
    """How much a run handles.

    The clock runs over `events`, between `warm` before and `warm` after them, so that what is in flight counts the same
    at both ends. In the cases of flat cost `backlog` events lie ahead, or a `pile` of other things lies about.
    """

    events: int = 20_000
    warm: int = 2_000
    backlog: int = 200_000
    pile: int = 200_000

    @property
    def total(self) -> int:
        return self.events + 2 * self.warm

    def part(self, share: int) -> "Size":
        """The `share`th part of the events."""
        return replace(self, events=max(self.events // share, 1), warm=max(self.warm // share, 1))


class Run(Struct):
    """What a process that ran a case tells: its figures, and how many events it handled or published."""

    figures: Figures
    handled: int
    notes: dict[str, Any] = {}


class Case(Struct, frozen=True):
    """One thing that is measured.

    `fill` prepares an empty database, `run` measures, `check` returns what is wrong with the result (nothing, if it is
    right). Figures are set in relation to those of the case `base`, round by round. `checkout` is where the
    streamlib lies that is measured, when it is not the one beside which `benchmarks` lies; `needs` is a module
    that has to be installed. Peers have instead of `run` a `module` that is run, by another `python` if one is given,
    with one `share`th of the events.
    """

    name: str
    about: str
    run: Callable[[str, Size], Awaitable[Run]] | None
    check: Callable[[redis.Redis, Size, Run], Sequence[str]]
    fill: Callable[[redis.Redis, Size], None]
    base: str = ""
    checkout: str = ""
    needs: str = ""
    module: str = ""
    python: str = ""
    share: int = 1


def nothing(client: redis.Redis, size: Size) -> None:
    """The case starts with an empty database."""
