"""A small app in the test's own process: one handler and one view, and which events ran."""

from __future__ import annotations

from collections import Counter
from typing import Any

from streamlib import App, Event, ReadModel
from streamlib.errors import NotConfirmed, PublishError, RedisUnavailable
from streamlib.message import Position
from streamlib.settings import RedisSettings
from tests.helpers.delivering import settings


class Placed(Event):
    n: int


class Row(ReadModel):
    n: int
    times: int = 0


class Shop:
    """An app with one handler and one view; which events ran."""

    def __init__(self, url: str, durability: str = "primary", partitions: int = 1, timeout_s: float = 1.0) -> None:
        redis = RedisSettings(url=url, timeout_s=timeout_s, retry_s=0.5)
        self.app = App("shop", settings=settings(url, sections={"redis": redis}))
        self.orders = self.app.topic("orders", Placed, key="n", partitions=partitions, durability=durability)
        self.view = self.app.projection("view", self.orders, Row, key="n")
        self.view.on(Placed)(_fold)
        self.runs: Counter[str] = Counter()

        @self.app.handler(self.orders, group="g")
        async def handle(event: Placed, ctx: Any) -> None:
            self.runs[ctx.event_id] += 1

    async def publish(self, *numbers: int) -> list[Position | Exception]:
        """One after another; each position, or why there is none."""
        found: list[Position | Exception] = []
        for n in numbers:
            try:
                found.append(await self.orders.publish(Placed(n=n), id=f"e-{n}"))
            except (PublishError, NotConfirmed, RedisUnavailable) as error:
                found.append(error)
        return found


def _fold(row: Row | None, event: Placed) -> Row:
    return Row(n=event.n, times=(row.times if row else 0) + 1)
