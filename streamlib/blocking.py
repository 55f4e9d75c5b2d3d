"""An app for programs without an event loop: the async app runs on a loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

from streamlib.errors import PublishError, StreamlibError
from streamlib.event import Event
from streamlib.message import Position

T = TypeVar("T")
A = TypeVar("A", bound="Opens")


class Opens(Protocol):
    """An app: what can be opened and closed."""

    async def open(self) -> None: ...

    async def close(self) -> None: ...


class Publishes(Protocol):
    """A topic: what can be published to."""

    @property
    def publish(self) -> Callable[..., Coroutine[Any, Any, Position]]: ...

    async def publish_many(self, events: Sequence[Event]) -> list[Position | PublishError]: ...


class BlockingApp(Generic[A]):
    """Publish and query from plain functions, from any thread, between `with` and its end.

    Calls block until the answer is there and raise what the async calls raise. Do not use it inside a coroutine.
    """

    def __init__(self, app: A) -> None:
        self.app = app
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="streamlib-blocking", daemon=True)
        self._lock = threading.Lock()
        self._open = False

    def __enter__(self) -> BlockingApp[A]:
        if self._thread.ident is not None:
            raise StreamlibError("this blocking app has been used; write `with app.blocking() as ...` again")
        self._thread.start()
        self._open = True
        try:
            self.call(self.app.open())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:  # what was called before is on the loop by now, what is called from now on is refused
            self._open = False
        try:
            asyncio.run_coroutine_threadsafe(self.app.close(), self._loop).result()
        finally:
            self._end()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run any coroutine of the app, e.g. `shop.call(order_view.get("o-1"))`, and wait for it."""
        with self._lock:
            if not self._open or threading.current_thread() is self._thread:
                coroutine.close()
                raise StreamlibError("use the blocking app between `with app.blocking() as ...` and its end")
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except CancelledError as error:
            raise StreamlibError("the blocking app was closed while this call was under way") from error

    def publish(self, topic: Publishes, event: Event, **options: Any) -> Position:
        """Store an event and return where it lies; options (`id`, `delay`, ...) and errors as for the topic's own."""
        return self.call(topic.publish(event, **options))

    def publish_many(self, topic: Publishes, events: Sequence[Event]) -> list[Position | PublishError]:
        """Store events: for each, in order, its position or its error."""
        return self.call(topic.publish_many(events))

    def _end(self) -> None:
        self._open = False
        asyncio.run_coroutine_threadsafe(_end_all(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _end_all() -> None:
    """End what is still under way on this loop, so that nobody waits for it for ever, and the loop's threads."""
    loop = asyncio.get_running_loop()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await loop.shutdown_asyncgens()
    await loop.shutdown_default_executor()
