"""Publishers and subscribers of the conformance cases, built from the public face alone."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

from streamlib import App, Context, Event, Settings, Topic
from streamlib.settings import RedisSettings, WorkerSettings
from tests.conformance.places import Place
from tests.helpers.marks import IDEMPOTENCY

GROUP = "readers"
TOPIC = "notes"


class Note(Event):
    """What all cases publish."""

    number: int
    author: str = ""
    text: str = ""


Handle = Callable[[Note, Context], Awaitable[None]]


def make_app(url: str, **worker: Any) -> App:
    """An app as each process would have its own: leases of a second, quick reads."""
    quick = {"lease_ms": 1_000, "block_ms": 200, "drain_s": 10, **worker}
    settings = Settings(redis=RedisSettings(url=url), idempotency=IDEMPOTENCY, worker=WorkerSettings(**quick))
    return App("conformance", settings=settings)


@asynccontextmanager
async def publishing(place: Place, topic: str = TOPIC, **options: Any) -> AsyncIterator[Topic]:
    """A topic of a producer: an app without handlers."""
    app = make_app(place.url)
    declared = app.topic(topic, Note, **{"partitions": place.partitions, **options})
    async with app:
        yield declared


class Subscriber:
    """An app with one handler and its worker: `async with` subscribes, its end is a clean stop.

    `received` lists what the handler finished: event id and event, in order. `handle` runs before that, and may
    raise. `options` go to the topic (`key`, `partitions`) and to the handler (all others).
    """

    def __init__(
        self,
        place: Place,
        handle: Handle | None = None,
        *,
        topic: str = TOPIC,
        group: str = GROUP,
        key: str | None = None,
        partitions: int | None = None,
        worker: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.app = make_app(place.url, **(worker or {}))
        self.received: list[tuple[str, Note]] = []
        self.exit_code: int | None = None
        self._stop = asyncio.Event()
        self._running: asyncio.Task[int] | None = None
        notes = self.app.topic(topic, Note, key=key, partitions=partitions or place.partitions)

        @self.app.handler(notes, group=group, **options)
        async def read(event: Note, ctx: Context) -> None:
            if handle is not None:
                await handle(event, ctx)
            self.received.append((ctx.event_id, event))

    @property
    def ids(self) -> list[str]:
        return [event_id for event_id, _ in self.received]

    @property
    def numbers(self) -> list[int]:
        return [note.number for _, note in self.received]

    async def __aenter__(self) -> Self:
        await self.app.open()
        self._running = asyncio.create_task(self.app.worker().run(self._stop))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        try:
            if self._running is not None:
                self.exit_code = await self._running
        finally:
            await self.app.close()


def received_by(*subscribers: Subscriber) -> set[str]:
    """The event ids that these subscribers finished between them."""
    return {event_id for subscriber in subscribers for event_id in subscriber.ids}
