"""Commands through a stream: the app's topic of commands, the group that runs them, and the answers to wait for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from streamlib.errors import DeclarationError
from streamlib.event import Command, Registry
from streamlib.eventsourcing.commands import GROUP, Answer, CommandSpec
from streamlib.message import Position
from streamlib.topic import TopicSpec
from streamlib.versions import Upcasters
from streamlib.worker.context import Context
from streamlib.worker.handlers import GroupSpec, HandlerSpec

Handle = Callable[[Any, Context], Awaitable[None]]

_TELLING_S = 60.0
"""For the command's bus, which ends its handler at the timeout, to keep what became of it."""


class Ticket:
    """A command that was sent: `id` is its idempotency key or was made for it, `position` where it lies."""

    def __init__(self, id: str, position: Position, wait: Callable[[float], Awaitable[Answer]]) -> None:
        self.id = id
        self.position = position
        self._wait = wait

    async def wait_for(self, timeout: float) -> Answer:
        """The answer, as soon as a worker has run the command; `timeout` is in seconds.

        Raises CommandFailed when it failed for good, IdempotencyConflict when its idempotency key had been given to
        another command, TimeoutError, RedisUnavailable. An answer is kept for idempotency.window_s: ask again with
        `app.wait_for(ticket.id, ...)`, from any process.
        """
        return await self._wait(timeout)


def topic_of(app: str, specs: dict[type[Command], CommandSpec], upcasters: Upcasters) -> TopicSpec:
    """The topic of an app's commands."""
    return TopicSpec(name=f"{app}-{GROUP}", registry=Registry(specs, upcasters))


def group_of(topic: TopicSpec, specs: dict[type[Command], CommandSpec], handle: Handle) -> GroupSpec:
    """The group whose workers run the commands."""
    group = GroupSpec(topic, GROUP)
    for spec in specs.values():
        group = group.with_handler(_handler(spec, handle))
    return group


def with_command(specs: dict[type[Command], CommandSpec], spec: CommandSpec) -> dict[type[Command], CommandSpec]:
    """These and one more. Raises DeclarationError for a command that has a handler."""
    if (known := specs.get(spec.command)) is not None:
        raise DeclarationError(
            f"command {spec.command.__name__} is handled by {known.name} and by {spec.name}; a command has one handler"
        )
    return {**specs, spec.command: spec}


def _handler(spec: CommandSpec, handle: Handle) -> HandlerSpec:
    return HandlerSpec(
        name=spec.name,
        function=handle,
        events=(spec.command,),
        is_batch=False,
        is_async=True,
        takes_context=True,
        retry=spec.retry,
        timeout_s=spec.timeout_s + _TELLING_S,
    )
