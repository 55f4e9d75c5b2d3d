"""A projection as declared: which events change which rows, and the questions its view answers."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, Literal, TypeVar

from streamlib.errors import DeclarationError
from streamlib.event import Event, event_type
from streamlib.keys import Keys, check_name
from streamlib.message import Position, entry_order
from streamlib.read_model import DEFAULT_LIMIT, Index, Page
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.indexes import GENERATION, Indexes
from streamlib.redisio.read_model import ViewReader
from streamlib.redisio.rows import Row, RowCodec
from streamlib.topic import TopicSpec

OnError = Literal["dead-letter", "halt"]
Fold = TypeVar("Fold", bound=Callable[..., Any])

_POLL_MAX_S = 0.05


class Projection(Generic[Row]):
    """A read model kept from the events of one topic. Made by `App.projection`.

    Folds are plain functions `(row or None, event) -> row or None`; None deletes the row. They run again on
    other machines and after crashes, so they look at nothing but their arguments. An event whose fold raises,
    or whose row cannot be stored, goes to the dead letters; with `on_error="halt"` the partition stops there.
    """

    def __init__(
        self,
        name: str,
        topic: TopicSpec,
        row: type[Row],
        *,
        key: str,
        indexes: Sequence[Index] = (),
        on_error: OnError = "dead-letter",
        keys: Callable[[], Keys],
        redis: Callable[[], RedisDoor],
    ) -> None:
        self.name = check_name("projection", name)
        if GENERATION.search(name):
            raise DeclarationError(f"projection {name!r}: a name must not end in .g<digits>, generations are called so")
        self.topic = topic
        self.key = key
        self.on_error = on_error
        self.codec = RowCodec(row)
        self.indexes = Indexes(self.codec, indexes)
        self.folds: dict[type[Event], Callable[[Any, Any], Any]] = {}
        self._reader = ViewReader(redis, keys, topic.name, topic.partitions, name, self.codec, self.indexes)
        if on_error not in ("dead-letter", "halt"):
            raise DeclarationError(f"projection {name!r}: on_error={on_error!r}; choose 'dead-letter' or 'halt'")
        if topic.partitions > 1 and topic.key != key:
            raise DeclarationError(
                f"projection {name!r} is keyed by {key!r}, but topic {topic.name!r} has {topic.partitions} "
                f"partitions by {topic.key!r}: the events of one row would lie on several; project "
                f"app.rekey({topic.name}, key={key!r}, to=...), key both alike, or use one partition"
            )

    def on(self, *event_classes: type[Event]) -> Callable[[Fold], Fold]:
        """Declare the fold of these event classes. Raises DeclarationError."""
        if not event_classes:
            raise DeclarationError(f"projection {self.name!r}: @on() needs the event classes it folds")
        for cls in event_classes:
            self._check_class(cls)

        def register(fold: Fold) -> Fold:
            _check_fold(self.name, fold)
            for cls in event_classes:
                if cls in self.folds:
                    raise DeclarationError(f"projection {self.name!r} folds {cls.__name__} twice")
                self.folds[cls] = fold
            return fold

        return register

    @property
    def type_names(self) -> frozenset[str]:
        """What is folded: stored types and versions, each as `streamlib.event.stored_name` has it."""
        return frozenset(name for cls in self.folds for name in self.topic.registry.stored_names(cls))

    def folds_type(self, name: str) -> bool:
        """Whether some version of this type is folded."""
        return any(event_type(cls) == name for cls in self.folds)

    async def get(self, row_id: Any) -> Row | None:
        """The row of this id, None if there is none."""
        return (await self._reader.many([str(row_id)]))[0]

    async def get_many(self, row_ids: Iterable[Any]) -> list[Row | None]:
        """The rows of these ids in the same order, None where there is none."""
        return await self._reader.many([str(row_id) for row_id in row_ids])

    async def rows(self, *, limit: int = DEFAULT_LIMIT, after: str | None = None) -> Page[Row]:
        """All rows, a page of at most `limit` at a time, ordered by row id.

        `after` is the `cursor` of the page before; the cursor of the last page is None. This holds for every question
        that takes them: its pages, put together, have each row that did not change meanwhile exactly once, in order.
        A row that changed may come twice, each time as it was then, or not at all where it moved back.
        """
        return await self._reader.rows(limit, after)

    async def find(self, *, limit: int = DEFAULT_LIMIT, after: str | None = None, **exact: Any) -> Page[Row]:
        """Rows whose fields have these values (each needs an Exact index), ordered by row id. Pages: see `rows`."""
        return await self._reader.find(exact, limit, after)

    async def between(
        self, field: str, low: Any, high: Any, *, limit: int = DEFAULT_LIMIT, after: str | None = None
    ) -> Page[Row]:
        """Rows with low <= field <= high (None: open end), by value, then row id. Needs an Ordered index.
        Pages: see `rows`."""
        return await self._reader.between(field, low, high, limit, after)

    async def prefix(self, field: str, text: str, *, limit: int = DEFAULT_LIMIT, after: str | None = None) -> Page[Row]:
        """Rows whose field starts with `text`, whatever its case, in its order. Needs a Prefix index.
        Pages: see `rows`."""
        return await self._reader.prefix(field, text, limit, after)

    async def count(self, **exact: Any) -> int:
        """How many rows have these values (each needs an Exact index); without any, how many there are."""
        return await self._reader.count(**exact)

    async def wait_for(self, position: Position, timeout: float) -> None:
        """Wait until the view contains the event at `position`: read your own write. `timeout` is in seconds.

        Raises TimeoutError, and ValueError for a position of another topic or of a delayed event.
        """
        if position.topic != self.topic.name or not 0 <= position.partition < self.topic.partitions:
            raise ValueError(f"projection {self.name!r} reads topic {self.topic.name!r}, not {position}")
        if not position.entry_id:
            raise ValueError(
                f"projection {self.name!r}: {position} is of a delayed event, which has no place in the stream yet; "
                "wait for what it changes instead"
            )
        deadline, pause_s = time.monotonic() + timeout, 0.002
        while True:
            reached = await self._reader.checkpoint(position.partition)
            if entry_order(reached) >= entry_order(position.entry_id):
                return
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError(
                    f"view {self.name!r} has reached {reached} of partition {position.partition}, not "
                    f"{position.entry_id}, after {timeout:g} s; is a worker of this projection running?"
                )
            await asyncio.sleep(min(pause_s, left_s))
            pause_s = min(pause_s * 2, _POLL_MAX_S)

    def _check_class(self, cls: type[Event]) -> None:
        if cls not in self.topic.registry.classes:
            raise DeclarationError(
                f"projection {self.name!r}: topic {self.topic.name!r} does not declare {cls!r}; "
                f"it has {sorted(self.topic.registry.type_names)}"
            )
        if self.key not in cls.__struct_fields__:
            raise DeclarationError(
                f"projection {self.name!r} is keyed by {self.key!r}, but {cls.__name__} has no such field"
            )


def _check_fold(name: str, fold: Callable[..., Any]) -> None:
    call = type(fold).__call__  # of objects that are called like functions
    if any(
        is_async(one)
        for one in (fold, call)
        for is_async in (inspect.iscoroutinefunction, inspect.isasyncgenfunction, inspect.isgeneratorfunction)
    ):
        raise DeclarationError(
            f"projection {name!r}: a fold is a plain function (row, event) -> row, not async, no generator; "
            "what has to wait or reach outside belongs in a handler"
        )
    try:
        inspect.signature(fold).bind(None, None)
    except TypeError as error:
        raise DeclarationError(f"projection {name!r}: a fold takes (row, event): {error}") from error
