"""Runs commands: once per idempotency key, the events of their aggregate and their answer in one script."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import msgspec

from streamlib.errors import (
    CommandFailed,
    ConcurrencyConflict,
    DeclarationError,
    IdempotencyConflict,
    PayloadTooLarge,
    Reject,
    StreamlibError,
)
from streamlib.event import Command, event_type
from streamlib.eventsourcing.commands import GROUP, Answer, CommandSpec, dispatched
from streamlib.eventsourcing.scope import Answered, CommandScope, is_within_command, running
from streamlib.keys import Keys
from streamlib.message import new_event_id
from streamlib.redisio.answers import StoredAnswer, digest_of, is_repeat, recall, remember
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.dead_letter import Failure
from streamlib.redisio.failures import CLIENT_ERRORS, translate
from streamlib.topic import TopicSpec
from streamlib.worker.context import Context

T = TypeVar("T")

TRIES = 16
"""Runs of one command whose aggregate is changed by others at the same time."""
_FIRST_PAUSE_S, _PAUSE_CAP_S = 0.002, 0.1
_POLL_MAX_S = 0.05


class CommandBus:
    """Runs the commands of one app.

    `window_ms` is how long an answer is kept for its idempotency key, `answer_bytes` how large it may be.
    """

    def __init__(
        self,
        topic: TopicSpec,
        specs: dict[type[Command], CommandSpec],
        redis: RedisDoor,
        keys: Keys,
        *,
        window_ms: int,
        answer_bytes: int,
    ) -> None:
        self.topic = topic
        self._specs = specs
        self._redis = redis
        self._keys = keys.stream(topic.name, 0, topic.partitions)
        self._window_ms = window_ms
        self._answer_bytes = answer_bytes

    def handler_of(self, command: Command) -> CommandSpec:
        """Raises DeclarationError for a command that nobody handles."""
        try:
            return self._specs[type(command)]
        except KeyError:
            known = ", ".join(sorted(cls.__name__ for cls in self._specs)) or "none"
            raise DeclarationError(
                f"command {type(command).__name__} has no handler here; declare one with @app.command_handler "
                f"(there are handlers of: {known})"
            ) from None

    async def dispatch(self, command: Command, key: str, state: Mapping[str, Any]) -> Answer:
        """Run the command here. Raises what `run` raises, StreamlibError within another command."""
        self.handler_of(command)
        if is_within_command():
            raise StreamlibError(
                f"{event_type(type(command))} is dispatched by the handler of another command: it would be saved "
                "though that one fails, and again when that one runs again; dispatch it when that one has returned, or "
                "app.send it from an event handler of what that one recorded"
            )
        return await self.run(command, dispatched(self.topic, key or new_event_id(), command, state), key)

    async def run(self, command: Command, ctx: Context, key: str) -> Answer:
        """Run the command within its handler's timeout, or give the answer that `key` has had before ("" keeps none).

        Raises what the handler raises (nothing is written then), ConcurrencyConflict when others changed its
        aggregate at each of TRIES runs, IdempotencyConflict for a key of another command, TimeoutError.
        """
        spec = self.handler_of(command)
        timeout = asyncio.timeout(spec.timeout_s)
        try:
            async with timeout:
                return await self._tried(spec, command, ctx, key)
        except TimeoutError as error:
            if not timeout.expired():
                raise
            raise TimeoutError(
                f"command {ctx.message.type}: {spec.name} ran for more than its timeout of {spec.timeout_s:g} s; "
                "run it again under the same idempotency key to learn whether it was saved"
            ) from error

    async def _tried(self, spec: CommandSpec, command: Command, ctx: Context, key: str) -> Answer:
        digest = digest_of(command) if key else ""
        if key and (kept := await self._recall(key)) is not None and not kept.error:
            return _answer(spec, key, digest, kept)
        pause_s = _FIRST_PAUSE_S
        for tries_left in reversed(range(TRIES)):
            try:
                return _answer(spec, key, digest, await self._once(spec, command, ctx, key, digest))
            except ConcurrencyConflict:
                if not tries_left:
                    raise
            await asyncio.sleep(pause_s * random.random())
            pause_s = min(pause_s * 2, _PAUSE_CAP_S)
        raise AssertionError("the last try returns or raises")

    async def _once(self, spec: CommandSpec, command: Command, ctx: Context, key: str, digest: str) -> StoredAnswer:
        scope = CommandScope(key)
        try:
            with running(scope):
                value = await spec.function(*((command, ctx) if spec.takes_context else (command,)))
            if scope.answered is None:
                answer = StoredAnswer(
                    digest=digest, command=ctx.message.type, value=self._checked(spec, value, ctx, key)
                )
                answer = await scope.commit(answer, self._window_ms)
            else:
                answer = scope.answered  # and the handler has caught what told it so
        except Answered as answered:
            answer = answered.answer
        except (Exception, BaseExceptionGroup):
            if scope.answered is None:
                raise
            answer = scope.answered
        # Kept here too: a handler that takes another way the second time need not come by the same aggregate.
        return await self._remember(key, answer) if key else answer

    def _checked(self, spec: CommandSpec, value: Any, ctx: Context, key: str) -> msgspec.Raw:
        """The handler's value as JSON, before anything is written. Raises StreamlibError, PayloadTooLarge."""
        if ctx.emitted:
            raise StreamlibError(
                f"command handler {spec.name} has used ctx.publish, which nothing would settle: record the event "
                "on an aggregate, or publish it from a handler of what the aggregate recorded; nothing was saved"
            )
        raw = _encoded(spec, value)
        size = len(bytes(raw))
        if key and size > self._answer_bytes:
            raise PayloadTooLarge(
                f"command handler {spec.name}: its answer has {size} bytes, and limits.payload_bytes = "
                f"{self._answer_bytes}: return what leads to it; nothing was saved"
            )
        return raw

    async def handle(self, command: Command, ctx: Context) -> None:
        """Run a command that came through the stream; what became of it is kept for whoever waits."""
        spec = self.handler_of(command)
        try:
            await self.run(command, ctx, ctx.event_id)
        except Exception as error:
            if isinstance(error, Reject) or ctx.attempt >= spec.retry.max_attempts:
                told = Failure.of("max_attempts", error).error.encode(errors="replace").decode()
                failed = StoredAnswer(digest=digest_of(command), command=ctx.message.type, error=told)
                await self._remember(ctx.event_id, failed)
            raise

    async def wait_for(self, command_id: str, timeout_s: float, sent: Command | None = None) -> Answer:
        """The answer of the command sent under this id.

        Raises CommandFailed, TimeoutError, RedisUnavailable, IdempotencyConflict when it is to another than `sent`.
        """
        deadline, pause_s = time.monotonic() + timeout_s, 0.002
        while (kept := await self._recall(command_id)) is None:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError(
                    f"command {command_id} has no answer after {timeout_s:g} s; is a worker of group {GROUP!r} of "
                    f"topic {self.topic.name!r} running? Ask again under the same id"
                )
            await asyncio.sleep(min(pause_s, left_s))
            pause_s = min(pause_s * 2, _POLL_MAX_S)
        if sent is not None:
            _check_repeat(event_type(type(sent)), command_id, digest_of(sent), kept)
        if kept.error:
            raise CommandFailed(f"{kept.command} {command_id}: {kept.error}")
        spec = next((spec for spec in self._specs.values() if event_type(spec.command) == kept.command), None)
        value = msgspec.json.decode(kept.value) if spec is None else spec.answer_from(kept.value)
        return Answer(value, kept.position)

    async def _recall(self, key: str) -> StoredAnswer | None:
        return await self._persist(lambda: recall(self._redis, self._keys.answer(key)))

    async def _remember(self, key: str, answer: StoredAnswer) -> StoredAnswer:
        return await self._persist(lambda: remember(self._redis, self._keys.answer(key), answer, self._window_ms))

    async def _persist(self, operation: Callable[[], Awaitable[T]]) -> T:
        try:
            return await self._redis.persist(operation, give_up_s=self._redis.settings.retry_s)
        except CLIENT_ERRORS as error:
            raise translate(error, self._redis.settings.url) from error


def _answer(spec: CommandSpec, key: str, digest: str, kept: StoredAnswer) -> Answer:
    if key:
        _check_repeat(event_type(spec.command), key, digest, kept)
    return Answer(spec.answer_from(kept.value), kept.position)


def _check_repeat(command: str, key: str, digest: str, kept: StoredAnswer) -> None:
    """Raises IdempotencyConflict."""
    if not is_repeat(kept, command, digest):
        raise IdempotencyConflict(
            f"idempotency key {key!r} has answered a {kept.command} of another content; a key belongs to one request: "
            f"give this {command} its own"
        )


def _encoded(spec: CommandSpec, value: Any) -> msgspec.Raw:
    """The value as JSON, before anything is written. Raises StreamlibError."""
    try:
        raw = msgspec.json.encode(value)
        spec.answer_from(raw)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise StreamlibError(
            f"command handler {spec.name} returned {type(value).__name__}, which its annotation or JSON does not take: "
            f"{error}; nothing was saved"
        ) from error
    return msgspec.Raw(raw)
