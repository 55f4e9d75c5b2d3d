"""What one run of a command has read and wants to change: at most one aggregate, saved when its handler returns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from msgspec import Struct
from msgspec.structs import replace

from streamlib.errors import StreamlibError
from streamlib.message import Position
from streamlib.redisio.answers import StoredAnswer


class Answered(BaseException):
    """Raised by a repository: this command was answered before. No Exception, for handlers must not catch it.

    Where one does, or a TaskGroup wraps it, the command's scope knows the answer all the same.
    """

    def __init__(self, answer: StoredAnswer) -> None:
        super().__init__("the command was answered before")
        self.answer = answer
        scope = _scope.get()
        if scope is not None:
            scope.answered = answer


class Commits(Protocol):
    """A repository, as a command's scope needs it."""

    async def commit(self, aggregate: Any, answer: StoredAnswer, key: str, ttl_ms: int) -> Position:
        """Append what the aggregate has recorded together with the answer, kept under the idempotency `key` ("" keeps
        none) for `ttl_ms`. Raises Answered, ConcurrencyConflict."""
        ...


class Staged(Struct, frozen=True, eq=False):
    """An aggregate that a handler has saved, and the repository that will append its events."""

    repository: Commits
    aggregate: Any


class CommandScope:
    """One run of a command's handler. `answer_key` is the command's idempotency key, "" without one.

    Inside, a repository looks for the answer beside the aggregate whenever it reads one, and keeps what is saved until
    the handler has returned: the events and the answer are then one script.
    """

    def __init__(self, answer_key: str) -> None:
        self.answer_key = answer_key
        self.staged: Staged | None = None
        self.answered: StoredAnswer | None = None
        self.ended = False

    def stage(self, repository: Commits, aggregate: Any) -> None:
        """Save this aggregate when the handler returns. Raises StreamlibError for a second one."""
        if self.staged is not None and self.staged.aggregate is not aggregate:
            raise StreamlibError(
                f"a command changes one aggregate; this one has saved {_named(self.staged.aggregate)} and saves "
                f"{_named(aggregate)} too: let an event handler send a command for the other"
            )
        self.staged = Staged(repository, aggregate)

    async def commit(self, answer: StoredAnswer, ttl_ms: int) -> StoredAnswer:
        """Save what was staged, if anything; the answer with the position of the last event."""
        if self.staged is None:
            return answer
        position = await self.staged.repository.commit(self.staged.aggregate, answer, self.answer_key, ttl_ms)
        return replace(answer, position=position)

    def staged_of(self, repository: Commits, aggregate_id: str) -> Any | None:
        """The aggregate of this id as this run has saved it."""
        staged = self.staged
        if staged is None or staged.repository is not repository or staged.aggregate.id != aggregate_id:
            return None
        return staged.aggregate


_scope: ContextVar[CommandScope | None] = ContextVar("command_scope", default=None)


def current_scope() -> CommandScope | None:
    """The command that runs here, None outside of commands.

    Raises StreamlibError in a task that outlives the command which started it: nobody would carry out what it saves.
    """
    scope = _scope.get()
    if scope is not None and scope.ended:
        raise StreamlibError(
            "the command that started this task has ended, and with it what the task could load and save: await the "
            "task in the command's handler, or start it in @app.lifespan"
        )
    return scope


def is_within_command() -> bool:
    """Whether a command's handler runs here."""
    scope = _scope.get()
    return scope is not None and not scope.ended


@contextmanager
def running(scope: CommandScope) -> Iterator[None]:
    """Code inside runs in this scope, the tasks that it starts too."""
    token = _scope.set(scope)
    try:
        yield
    finally:
        scope.ended = True
        _scope.reset(token)


def _named(aggregate: Any) -> str:
    return f"{type(aggregate).__name__} {aggregate.id!r}"
