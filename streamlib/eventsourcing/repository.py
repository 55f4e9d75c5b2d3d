"""Repositories: load aggregates from their events, save what they have recorded, and tell how they came about."""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
from collections.abc import Callable
from contextlib import aclosing, suppress
from datetime import datetime
from typing import Any, Generic, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from streamlib.errors import (
    AggregateNotFound,
    ConcurrencyConflict,
    DeclarationError,
    DecodeError,
    NotConfirmed,
    PublishError,
    StreamlibError,
)
from streamlib.event import Event
from streamlib.eventsourcing.aggregate import Aggregate, Commit, apply_stored, label_of
from streamlib.eventsourcing.scope import Answered, current_scope
from streamlib.eventsourcing.snapshots import Snapshots
from streamlib.eventsourcing.turns import Turns
from streamlib.message import Position, entry_time_ms, new_event_ids
from streamlib.redisio.aggregate_reader import AnsweredBefore, Page
from streamlib.redisio.answers import StoredAnswer
from streamlib.redisio.elements import ElementReader, Stored, entry_of, stored
from streamlib.redisio.event_store import Answer, EventStore, commit_id_of
from streamlib.redisio.failures import CLIENT_ERRORS
from streamlib.topic import TopicSpec, partition_of_key

A = TypeVar("A", bound=Aggregate)

log = logging.getLogger(__name__)

RETRIES = 20
_FIRST_PAUSE_S, _PAUSE_CAP_S = 0.002, 0.25


class Recorded(Struct, frozen=True):
    """One event of an aggregate's history.

    `time` is when it happened, ms since 1970; `position` where it lies in its topic, as long as retention keeps it
    there. Events that were saved together have one `commit_id`.
    """

    version: int
    event: Event
    event_id: str
    time: int
    position: Position
    commit_id: str


class Repository(Generic[A]):
    """The aggregates of one class, whose events lie on one topic. `App.repository` makes it; use it while the app is
    open."""

    def __init__(
        self, cls: type[A], topic: TopicSpec, *, store: Callable[[], EventStore], snapshot_every: int | None = None
    ) -> None:
        """Raises DeclarationError."""
        _check_class(cls, topic)
        if snapshot_every is not None and (isinstance(snapshot_every, bool) or snapshot_every < 1):
            raise DeclarationError(f"repository of {cls.__name__}: snapshot_every={snapshot_every!r}, not 1 or more")
        if topic.key is not None:
            cls._keyed_by(topic.key)
        self.cls = cls
        self.topic = topic
        self._store = store
        self._every = snapshot_every
        self._snapshots = Snapshots(cls) if snapshot_every else None
        self._elements = ElementReader(topic, cls.__name__)
        self._turns = Turns()

    # -- reading ------------------------------------------------------------------------------------------------

    async def load(self, id: str) -> A:
        """The aggregate as its events have made it.

        Raises AggregateNotFound, UnappliedEvent and DecodeError (UnknownType, SchemaError) with the event that cannot
        be applied, WrongKeyType, RedisUnavailable.
        """
        aggregate = await self.load_or_new(id)
        if not aggregate.version and not aggregate._recorded:
            raise AggregateNotFound(
                f"{label_of(aggregate)} does not exist: topic {self.topic.name!r} has no event of it"
            )
        return aggregate

    async def load_or_new(self, id: str) -> A:
        """The same, or a new one, of version 0, where there is none."""
        scope = current_scope()
        staged = scope.staged_of(self, id) if scope else None
        if staged is not None:
            return staged  # type: ignore[no-any-return]
        return await self._fold(id, answer_key=scope.answer_key if scope else "")

    async def exists(self, id: str) -> bool:
        """Whether any event was ever saved under this id. Raises WrongKeyType, RedisUnavailable."""
        if current_scope() is not None:  # whoever decides by this must not decide against its own repeat
            aggregate = await self.load_or_new(id)
            return bool(aggregate.version or aggregate._recorded)
        return await self._store().length(self.topic, id) > 0

    async def history(self, id: str, *, after: int = 0, upto: int | None = None) -> list[Recorded]:
        """What has happened to an aggregate, in order: the versions above `after`, to `upto` if that is given.

        Empty for one that does not exist. Raises what `load` raises.
        """
        return [self._recorded(id, one) async for one in self._store().read(self.topic, id, after, upto)]

    async def at_version(self, id: str, version: int) -> A:
        """The aggregate as it was with its first `version` events. Raises AggregateNotFound, what `load` raises."""
        aggregate = await self._fold(id, upto=version) if version > 0 else self.cls(id)
        if version != aggregate.version or not version:
            has = await self._store().length(self.topic, id)
            raise AggregateNotFound(f"{label_of(aggregate)} has no version {version}; it has {has} versions")
        return aggregate

    async def at_time(self, id: str, when: datetime | int) -> A:
        """The aggregate as it was at a time: a datetime with a zone, or ms since 1970.

        It has the events up to the first one that happened later. Raises AggregateNotFound when that is the very first,
        ValueError for a datetime without a zone, what `load` raises.
        """
        limit_ms = _ms(when)
        aggregate = self.cls(id)
        async for one in self._store().read(self.topic, id):
            if _time_of(one) > limit_ms:
                break
            self._apply(aggregate, one)
        if not aggregate.version:
            raise AggregateNotFound(f"{label_of(aggregate)} has no event up to {when}")
        return aggregate

    # -- writing ------------------------------------------------------------------------------------------------

    async def save(self, aggregate: A) -> Position:
        """Store and publish what the aggregate has recorded, in one script, and return where the last event lies.

        Inside a command's handler the save takes place when the handler returns, together with its answer; the position
        has no entry id yet.

        Raises ConcurrencyConflict when another has saved it since it was loaded, TopicFull, PayloadTooLarge,
        PublishError (also when nothing was recorded), WrongKeyType: nothing is written then, and the aggregate stays as
        it is. After NotConfirmed or RedisUnavailable save the same object again: what was stored is not stored twice.
        """
        if not isinstance(aggregate, self.cls):
            raise PublishError(f"{aggregate!r} is no {self.cls.__name__}, which this repository keeps")
        if not aggregate._recorded:
            at = aggregate.version
            raise PublishError(f"{label_of(aggregate)} has recorded nothing since version {at}; nothing to save")
        scope = current_scope()
        if scope is None:
            return await self._save(aggregate, None)
        scope.stage(self, aggregate)
        return self._place(aggregate.id)

    async def edit(self, id: str, change: Callable[[A], Any], *, retries: int = RETRIES) -> Position:
        """Load an aggregate, change it, save it; again from the start when another was quicker, `retries` times.

        `change`, plain or async, runs once for each try, on the aggregate as it is then. Where it records nothing,
        nothing is saved. In one process, edits of one aggregate that have lost once take turns. Returns where the
        aggregate's last event lies. Raises ConcurrencyConflict after the last try, and what `load`, `change` and `save`
        raise; after RedisUnavailable the change may have been saved, and a further edit would make it again.
        """
        try:
            return await self._edit_once(id, change)
        except ConcurrencyConflict:
            if not retries:
                raise
        pause_s = _FIRST_PAUSE_S
        async with self._turns.of(id):  # who has lost once does not run against those of this process, too
            for tries_left in reversed(range(retries)):
                await asyncio.sleep(pause_s * random.random())
                pause_s = min(pause_s * 2, _PAUSE_CAP_S)
                try:
                    return await self._edit_once(id, change)
                except ConcurrencyConflict:
                    if not tries_left:
                        raise
        raise ValueError(f"edit(retries={retries}): 0 or more")

    async def _edit_once(self, id: str, change: Callable[[A], Any]) -> Position:
        aggregate = await self.load(id)
        done = change(aggregate)
        if inspect.isawaitable(done):
            await done
        if not aggregate._recorded:
            return replace(self._place(id), entry_id=aggregate._kept.entry_id)
        return await self.save(aggregate)

    async def commit(self, aggregate: A, answer: StoredAnswer, key: str, ttl_ms: int) -> Position:
        """For a command's scope: save the aggregate and the answer together; see scope.Commits."""
        version = aggregate.version + len(aggregate._recorded)
        kept = replace(answer, position=self._place(aggregate.id), aggregate_id=aggregate.id, version=version)
        try:
            return await self._save(aggregate, Answer(key, kept.encode(), ttl_ms) if key else None)
        except AnsweredBefore as before:
            raise Answered(await self._answer(before)) from None

    async def _save(self, aggregate: A, answer: Answer | None) -> Position:
        kept = aggregate._kept
        while kept.commit is not None and len(kept.commit.messages) < len(aggregate._recorded):
            # Of unknown outcome, or another task's and under way; and more was recorded since.
            await self._send(aggregate, kept.commit, None)
        if kept.commit is None and not aggregate._recorded:  # another task has saved it all meanwhile
            return replace(self._place(aggregate.id), entry_id=kept.entry_id)
        if kept.commit is None:
            kept.commit = self._commit_of(aggregate)
        return await self._send(aggregate, kept.commit, answer)

    def _commit_of(self, aggregate: A) -> Commit:
        recorded = aggregate._recorded
        messages = self.topic.messages_of_key(aggregate.id, recorded, new_event_ids(len(recorded)))
        return Commit(commit_id_of(messages[0]), messages)

    async def _send(self, aggregate: A, commit: Commit, answer: Answer | None) -> Position:
        """Append a commit; afterwards the aggregate knows that it is stored, or keeps it while that is unknown."""
        kept, number = aggregate._kept, len(commit.messages)
        try:
            appended = await self._store().append(
                self.topic, aggregate.id, aggregate.version, commit.messages, commit_id=commit.id, answer=answer
            )
        except StreamlibError as error:
            refused = isinstance(error, ConcurrencyConflict | PublishError) and not isinstance(error, NotConfirmed)
            if refused and kept.commit is commit:  # whatever else it is, an earlier try may have been stored
                kept.commit = None
            raise
        if kept.commit is not commit:  # another task that saves this object has seen to it
            return appended.positions[-1]
        del aggregate._recorded[:number]
        aggregate.__dict__["version"] = appended.version
        kept.commit, kept.entry_id = None, appended.positions[-1].entry_id
        if self._every and not aggregate._recorded and aggregate.version - kept.snapshot_version >= self._every:
            await self._keep_snapshot(aggregate, commit.id)
        return appended.positions[-1]

    async def _keep_snapshot(self, aggregate: A, commit_id: str) -> None:
        """Snapshots are a cache: where they cannot be kept, the events are there."""
        snapshot = self._snapshots.encode(aggregate, commit_id) if self._snapshots else None
        if snapshot is None:
            return
        try:
            await self._store().keep_snapshot(self.topic, aggregate.id, snapshot)
        except CLIENT_ERRORS as error:
            log.warning("the snapshot of %s was not stored: %s", label_of(aggregate), error)
        else:
            aggregate._kept.snapshot_version = aggregate.version

    # -- folding ------------------------------------------------------------------------------------------------

    async def _fold(self, id: str, *, upto: int | None = None, answer_key: str = "") -> A:
        store, aggregate = self._store(), self.cls(id)
        stamp = self._snapshots.stamp if self._snapshots else ""
        try:
            page = await store.page(self.topic, id, 0, upto, answer_key=answer_key, stamp=stamp)
        except AnsweredBefore as before:
            await store.confirm(self.topic, id, answer_key)  # the append itself may have raised NotConfirmed
            raise Answered(await self._answer(before)) from None
        if page.after and not (self._snapshots and self._snapshots.restore(aggregate, page)):
            page = await store.page(self.topic, id, 0, upto)
        async with aclosing(store.pages(self.topic, id, page, upto)) as pages:
            async for page in pages:
                self._apply_page(aggregate, page)
        return aggregate

    def _apply_page(self, aggregate: A, page: Page) -> None:
        """Put the stored events of a page into the aggregate; every error tells which one it was."""
        if not page.events:
            return
        partition = partition_of_key(aggregate.id, self.topic.partitions)
        try:
            apply_stored(aggregate, self._elements.events(aggregate.id, partition, page.after, page.events))
        except Exception as error:
            element = page.events[aggregate.version - page.after]
            with suppress(DecodeError):  # the error itself, of an element that cannot be taken apart
                _note(error, aggregate, stored(self.topic, partition, aggregate.version + 1, element))
            raise
        aggregate._kept.entry_id = entry_of(page.events[-1])

    def _apply(self, aggregate: A, one: Stored) -> None:
        """The same for one event that is taken apart already."""
        try:
            apply_stored(aggregate, [self._elements.event(aggregate.id, one)])
        except Exception as error:
            _note(error, aggregate, one)
            raise
        aggregate._kept.entry_id = one.position.entry_id

    def _recorded(self, id: str, one: Stored) -> Recorded:
        event, message = self._elements.event(id, one), one.message
        return Recorded(one.version, event, message.id, _time_of(one), one.position, one.commit_id)

    async def _answer(self, before: AnsweredBefore) -> StoredAnswer:
        """An answer that was kept with events, with the place of the last of them."""
        answer = StoredAnswer.decode(before.value)
        async for one in self._store().read(self.topic, answer.aggregate_id, answer.version - 1, answer.version):
            return replace(answer, position=one.position)
        return answer

    def _place(self, id: str) -> Position:
        return Position(self.topic.name, partition_of_key(id, self.topic.partitions), "")


def _check_class(cls: Any, topic: TopicSpec) -> None:
    if not (isinstance(cls, type) and issubclass(cls, Aggregate) and cls is not Aggregate):
        raise DeclarationError(f"a repository keeps aggregates; {cls!r} is no subclass of streamlib.Aggregate")
    if not cls._appliers:
        raise DeclarationError(f"{cls.__name__} applies no event; mark its methods with @applies(...)")
    strange = sorted(event.__name__ for event in cls._appliers if event not in topic.registry.classes)
    if strange:
        raise DeclarationError(
            f"{cls.__name__} applies {', '.join(strange)}, which topic {topic.name!r} does not declare; it has "
            f"{sorted(topic.registry.type_names)}"
        )


def _note(error: Exception, aggregate: Aggregate, one: Stored) -> None:
    error.add_note(f"{label_of(aggregate)}, version {one.version}: event {one.message.id}")


def _time_of(one: Stored) -> int:
    time_ms = one.message.time_ms
    return entry_time_ms(one.position.entry_id) if time_ms is None else time_ms


def _ms(when: datetime | int) -> int:
    if isinstance(when, int):
        return when
    if when.tzinfo is None:
        raise ValueError(
            f"at_time({when!r}): a datetime without a zone is no point in time; write datetime.now(tz=UTC)"
        )
    return int(when.timestamp() * 1000)
