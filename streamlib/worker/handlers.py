"""What handlers declare: read off their annotations once, when the app is imported."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from msgspec import Struct

from streamlib.errors import DeclarationError
from streamlib.event import Event, event_type
from streamlib.keys import check_name
from streamlib.redisio.limits import Limits
from streamlib.retry import Breaker, Retry
from streamlib.topic import TopicSpec

Function = Callable[..., Any]
Ordering = Literal["none", "key"]
OnDead = Literal["continue", "block"]
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class HandlerSpec(Struct, frozen=True, kw_only=True, eq=False):
    """One handler of a group. `concurrency` None means worker.concurrency; `timeout_s` bounds one run."""

    name: str
    function: Function
    events: tuple[type[Event], ...]
    is_batch: bool
    is_async: bool
    takes_context: bool
    retry: Retry = Retry()
    timeout_s: float = 900.0
    concurrency: int | None = None
    rerun: Literal["ok", "never"] = "ok"
    limits: Limits = Limits()
    ordering: Ordering = "none"
    on_dead: OnDead = "continue"
    breaker: Breaker | None = None

    def __post_init__(self) -> None:
        if self.timeout_s <= 0:
            raise DeclarationError(f"handler {self.name}: timeout={self.timeout_s}, not above 0 seconds")
        if self.concurrency is not None and not 1 <= self.concurrency <= 10_000:
            raise DeclarationError(f"handler {self.name}: concurrency={self.concurrency}, not 1 to 10000")
        if self.rerun not in ("ok", "never"):
            raise DeclarationError(f"handler {self.name}: rerun={self.rerun!r}; choose 'ok' or 'never'")
        if self.ordering not in ("none", "key"):
            raise DeclarationError(f"handler {self.name}: ordering={self.ordering!r}; choose 'none' or 'key'")
        if self.on_dead not in ("continue", "block"):
            raise DeclarationError(f"handler {self.name}: on_dead={self.on_dead!r}; choose 'continue' or 'block'")
        if self.on_dead == "block" and self.ordering == "none":
            raise DeclarationError(
                f"handler {self.name}: on_dead='block' stops a key; without ordering='key' no key waits for anything"
            )
        if self.ordering == "key" and self.is_batch:
            raise DeclarationError(
                f"handler {self.name}: ordering='key' runs the events of a key one after another, a batch handler gets "
                "many at once; take single events, or ordering='none'"
            )


class GroupSpec(Struct, frozen=True, eq=False):
    """A consumer group of one topic and its handlers."""

    topic: TopicSpec
    group: str
    handlers: tuple[HandlerSpec, ...] = ()

    def __post_init__(self) -> None:
        check_name("group", self.group)

    @property
    def limits(self) -> Limits:
        """What all workers of the group together may do; every handler says the same."""
        return self.handlers[0].limits if self.handlers else Limits()

    @property
    def ordered(self) -> bool:
        """Whether events of one key run one after another, on a partition that one worker owns."""
        return bool(self.handlers) and self.handlers[0].ordering == "key"

    @property
    def kind(self) -> Literal["handler", "ordered"]:
        """What the registry knows the group as."""
        return "ordered" if self.ordered else "handler"

    @property
    def on_dead(self) -> OnDead:
        """Whether a key stands still at an event that would go to the dead letters."""
        return self.handlers[0].on_dead if self.handlers else "continue"

    @property
    def breaker(self) -> Breaker | None:
        """When no more events are started because all fail; every handler says the same."""
        return self.handlers[0].breaker if self.handlers else None

    @property
    def type_names(self) -> frozenset[str]:
        """What the group says that it handles: types and versions, each as `streamlib.event.stored_name` has it."""
        names = self.topic.registry.stored_names
        return frozenset(name for handler in self.handlers for cls in handler.events for name in names(cls))

    def handles_type(self, name: str) -> bool:
        """Whether a handler takes some version of this type."""
        return any(event_type(cls) == name for handler in self.handlers for cls in handler.events)

    def by_class(self) -> dict[type[Event], HandlerSpec]:
        return {cls: handler for handler in self.handlers for cls in handler.events}

    def with_handler(self, handler: HandlerSpec) -> GroupSpec:
        """This group and one more handler; raises DeclarationError when a class is handled twice."""
        taken = self.by_class()
        for cls in handler.events:
            if cls in taken:
                raise DeclarationError(
                    f"group {self.group!r} of topic {self.topic.name!r}: {cls.__name__} is handled by "
                    f"{taken[cls].name} and by {handler.name}; give one of them another group"
                )
            if cls not in self.topic.registry.classes:
                raise DeclarationError(
                    f"handler {handler.name}: topic {self.topic.name!r} does not declare {cls.__name__}"
                )
        self._check_alike(handler)
        return GroupSpec(self.topic, self.group, (*self.handlers, handler))

    def _check_alike(self, handler: HandlerSpec) -> None:
        """What belongs to the group is said alike by each of its handlers."""
        if handler.ordering == "key" and self.topic.key is None:
            raise DeclarationError(
                f"handler {handler.name}: ordering='key', but topic {self.topic.name!r} is declared without key="
            )
        for name in ("ordering", "on_dead", "breaker") if self.handlers else ():
            mine, theirs = getattr(handler, name), getattr(self.handlers[0], name)
            if theirs != mine:
                raise DeclarationError(
                    f"group {self.group!r} of topic {self.topic.name!r}: handler {handler.name} declares "
                    f"{name}={mine!r} and {self.handlers[0].name} {name}={theirs!r}; it belongs to the group: declare "
                    "the same for both, or give one of them another group"
                )
        if self.handlers and handler.limits != self.limits:
            raise DeclarationError(
                f"group {self.group!r} of topic {self.topic.name!r}: handler {handler.name} declares another rate= or "
                f"group_concurrency= than {self.handlers[0].name}; they belong to the group: declare the "
                "same for both, or give one of them another group"
            )


def read_handler(function: Function, **options: Any) -> HandlerSpec:
    """The spec of a handler function: `(event: E | F [, ctx])` or `(events: list[E] [, ctx])`, returning None."""
    if not inspect.isroutine(function):
        raise DeclarationError(f"handler {function!r}: decorate a function, plain or async")
    name = f"{function.__module__}.{function.__qualname__}"
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    if not 1 <= len(parameters) <= 2 or any(p.kind not in _POSITIONAL for p in parameters):
        raise DeclarationError(f"handler {name}: must take (event) or (event, ctx) by position, not {signature}")
    try:
        hints = get_type_hints(function)
    except (NameError, AttributeError) as error:
        raise DeclarationError(
            f"handler {name}: the annotation {error.name!r} is not found in module {function.__module__}; "
            "define event classes at module level"
        ) from error
    first = parameters[0].name
    if first not in hints:
        raise DeclarationError(
            f"handler {name}: annotate {first!r} with the event class it handles, e.g. {first}: OrderCreated"
        )
    if hints.get("return", type(None)) is not type(None):
        raise DeclarationError(
            f"handler {name}: must return None; raise Reject or RetryLater instead of returning something"
        )
    is_batch, events = _event_classes(name, hints[first])
    return HandlerSpec(
        name=function.__qualname__,
        function=function,
        events=events,
        is_batch=is_batch,
        is_async=inspect.iscoroutinefunction(function),
        takes_context=len(parameters) == 2,
        **options,
    )


def _event_classes(name: str, annotation: Any) -> tuple[bool, tuple[type[Event], ...]]:
    is_batch = get_origin(annotation) is list
    inner = get_args(annotation)[0] if is_batch else annotation
    members = get_args(inner) if get_origin(inner) in (Union, types.UnionType) else (inner,)
    for member in members:
        if not (isinstance(member, type) and issubclass(member, Event)):
            raise DeclarationError(f"handler {name}: {annotation!r} is no event class, union of them or list of them")
    return is_batch, tuple(members)
