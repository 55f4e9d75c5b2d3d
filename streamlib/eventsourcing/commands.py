"""What command handlers declare, what they are given, and what their callers get back."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

import msgspec
from msgspec import Struct

from streamlib.errors import DeclarationError
from streamlib.event import Command, check_resolvable, event_type
from streamlib.keys import StreamKeys
from streamlib.message import Message, Position
from streamlib.redisio.delivery import Delivery
from streamlib.retry import Retry
from streamlib.topic import TopicSpec
from streamlib.worker.context import Context

GROUP = "commands"


class Answer(Struct, frozen=True):
    """What a command's handler returned, and where the last event that it recorded lies (None: it recorded none)."""

    value: Any
    position: Position | None = None


class CommandSpec(Struct, frozen=True, kw_only=True, eq=False):
    """One command and its handler; `returns` is the type of the answer's value."""

    name: str
    function: Callable[..., Any]
    command: type[Command]
    returns: Any
    takes_context: bool
    retry: Retry
    timeout_s: float

    def answer_from(self, value: bytes | msgspec.Raw) -> Any:
        """The value of an answer as its handler's annotation has it."""
        return msgspec.json.decode(value, type=self.returns)


def dispatched(topic: TopicSpec, command_id: str, command: Command, state: Mapping[str, Any]) -> Context:
    """The context of a command that runs where it was dispatched: it has no entry."""
    message = Message(id=command_id, type=event_type(type(command)), time_ms=time.time_ns() // 1_000_000)
    keys = StreamKeys(topic.name)
    here = Delivery(
        keys=keys, partition=0, again=False, entry_id="", origin_id="", event_id=command_id, fields=[], how="new"
    )
    return Context(topic, GROUP, here, message, state)


def read_command_handler(function: Callable[..., Any], *, retry: Retry, timeout_s: float) -> CommandSpec:
    """The spec of `async def (command: C [, ctx]) -> value`. Raises DeclarationError."""
    name = getattr(function, "__qualname__", repr(function))
    if not inspect.iscoroutinefunction(function):
        raise DeclarationError(f"command handler {name}: must be `async def`, it loads and saves")
    if timeout_s <= 0:
        raise DeclarationError(f"command handler {name}: timeout={timeout_s}, not above 0 seconds")
    try:
        hints = get_type_hints(function)
    except NameError as error:
        raise DeclarationError(
            f"command handler {name}: the annotation {error.name!r} is not found in module {function.__module__}; "
            "define commands at module level"
        ) from error
    parameters = list(inspect.signature(function).parameters.values())
    positional = all(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
    if not 1 <= len(parameters) <= 2 or not positional:
        raise DeclarationError(f"command handler {name}: must take (command) or (command, ctx) by position")
    command = hints.get(parameters[0].name)
    if not (isinstance(command, type) and issubclass(command, Command) and command is not Command):
        raise DeclarationError(
            f"command handler {name}: annotate {parameters[0].name!r} with the one command that it handles, "
            f"a subclass of streamlib.Command, not {command!r}"
        )
    check_resolvable(command)
    returns = hints.get("return", Any)
    try:
        msgspec.json.schema(returns)  # unlike a Decoder it takes no type that would need code to be read
    except TypeError as error:
        raise DeclarationError(f"command handler {name}: its answer cannot be stored: {error}") from error
    return CommandSpec(
        name=name,
        function=function,
        command=command,
        returns=returns,
        takes_context=len(parameters) == 2,
        retry=retry,
        timeout_s=timeout_s,
    )
