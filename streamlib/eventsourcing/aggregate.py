"""Aggregates: plain classes whose state is folded from the events that they have recorded."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, TypeVar, get_origin

from msgspec import Struct

from streamlib.errors import DeclarationError, PublishError, StreamlibError, UnappliedEvent
from streamlib.event import Event, event_type
from streamlib.message import Message

F = TypeVar("F", bound=Callable[..., None])

_APPLIES = "__streamlib_applies__"
_OWN = frozenset({"id", "version", "record"})


def applies(*events: type[Event]) -> Callable[[F], F]:
    """Declare that a method `(self, event) -> None` puts these events into the aggregate's state.

    It runs when the event is recorded, and again whenever the aggregate is loaded: it decides nothing, refuses nothing
    and has no other effects. Raises DeclarationError.
    """
    for event in events:
        given: Any = event
        if not (isinstance(given, type) and issubclass(given, Event) and given is not Event):
            raise DeclarationError(f"@applies({event!r}): it takes subclasses of streamlib.Event, at least one")
    if not events:
        raise DeclarationError("@applies(): name the events that the method applies")

    def declare(function: F) -> F:
        known = getattr(function, _APPLIES, ())
        setattr(function, _APPLIES, (*known, *events))
        return function

    return declare


class Commit(Struct, frozen=True):
    """A save that is under way, or whose outcome is unknown: sent again, it is the same."""

    id: str
    messages: list[Message]


class Kept(Struct):
    """What a repository knows of an aggregate beside its state."""

    commit: Commit | None = None
    snapshot_version: int = 0
    entry_id: str = ""
    """Where its last stored event lies."""


class Aggregate:
    """What one id stands for, as its events have made it. Subclasses annotate fields, each with a default.

    Methods decide, refuse by raising, and `record` what has happened; those marked `@applies(...)` change the fields.
    `Account("acc-124")` is a new one. `version` is the number of events that are stored: 0 before the first save.
    `class Account(Aggregate, version=2)`: raise the version when fields or what `@applies` methods do has changed, so
    that older snapshots are no longer used.
    """

    id: str
    version: int
    _fields: ClassVar[dict[str, Any]] = {}
    """The default of each field."""
    _plain: ClassVar[frozenset[str]] = frozenset()
    """Fields that nothing else than the aggregate's dict keeps."""
    _fresh: ClassVar[tuple[str, ...]] = ()
    """Fields whose defaults can be changed: each aggregate has a copy of its own."""
    _appliers: ClassVar[dict[type[Event], str]] = {}
    _class_version: ClassVar[int] = 1
    _key_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields of its events that hold the id: the key of each topic for which there is a repository."""
    _recorded: list[Event]
    _applying: bool
    _kept: Kept

    def __init_subclass__(cls, *, version: int = 1, **options: Any) -> None:
        super().__init_subclass__(**options)
        given: object = version
        if isinstance(given, bool) or not isinstance(given, int) or given < 1:
            raise DeclarationError(f"{cls.__name__}(version={version!r}): a version is a whole number from 1")
        cls._class_version = version
        cls._fields = {**cls._fields, **_own_fields(cls)}
        cls._plain = frozenset(name for name in cls._fields if not hasattr(type(getattr(cls, name)), "__set__"))
        cls._fresh = tuple(name for name, default in cls._fields.items() if copy.deepcopy(default) is not default)
        cls._appliers = _appliers(cls)
        cls._key_fields = frozenset()

    def __init__(self, id: str) -> None:
        state = self.__dict__
        state["id"], state["version"], state["_recorded"], state["_applying"] = id, 0, [], False
        state["_kept"] = Kept()
        for name in self._fresh:
            state[name] = copy.deepcopy(self._fields[name])

    def __setattr__(self, name: str, value: Any) -> None:
        """Only declared fields can be set: what is no field would be missing in a snapshot."""
        if name in self._plain:  # nearly always, and quicker than to ask for it
            self.__dict__[name] = value
            return
        if name in _OWN or not hasattr(type(self), name):
            why = "is set by streamlib" if name in _OWN else "is no field; declare it in the class body with a default"
            raise AttributeError(f"{type(self).__name__}.{name} {why}")
        object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        fields = "".join(f", {name}={getattr(self, name)!r}" for name in self._fields)
        return f"{type(self).__name__}({self.id!r}, version={self.version}{fields})"

    def record(self, event: Event) -> None:
        """Apply an event now, and store it with the next save.

        Raises UnappliedEvent where no method applies it, PublishError for an event about another id, StreamlibError
        inside an `@applies` method.
        """
        if self._applying:
            raise StreamlibError(
                f"{label_of(self)} records {event_type(type(event))} while it applies an event: that would happen "
                "again at every load; record in the method that decides"
            )
        self._check_key(event)
        apply(self, event)
        self._recorded.append(event)

    def _check_key(self, event: Event) -> None:
        for field in self._key_fields:
            found = getattr(event, field, None)
            if found == self.id or str(found) == self.id:
                return
        if self._key_fields:
            told = ", ".join(f"{field} {getattr(event, field, None)!r}" for field in sorted(self._key_fields))
            raise PublishError(
                f"{label_of(self)} records {event_type(type(event))} with {told}: an aggregate records only events "
                "about itself"
            )

    @classmethod
    def _keyed_by(cls, field: str) -> None:
        cls._key_fields |= {field}


def apply(aggregate: Aggregate, event: Event) -> None:
    """Let the aggregate's method for this event change its fields. Raises UnappliedEvent, what the method raises."""
    applier, state = _applier(aggregate, type(event)), aggregate.__dict__
    state["_applying"] = True
    try:
        applier(event)
    finally:
        state["_applying"] = False


def apply_stored(aggregate: Aggregate, events: Iterable[Event]) -> None:
    """Apply events as they were stored: each makes the aggregate one version older. Raises what `apply` raises, and
    what the iteration does; `version` tells how many were applied."""
    state = aggregate.__dict__
    appliers: dict[type[Event], Callable[[Event], None]] = {}
    state["_applying"] = True
    try:
        for event in events:
            applier = appliers.get(type(event))
            if applier is None:
                applier = appliers[type(event)] = _applier(aggregate, type(event))
            applier(event)
            state["version"] += 1
    finally:
        state["_applying"] = False


def _applier(aggregate: Aggregate, event: type[Event]) -> Callable[[Event], None]:
    """The aggregate's method for events of this class. Raises UnappliedEvent."""
    name = aggregate._appliers.get(event)
    if name is None:
        known = event.__name__
        raise UnappliedEvent(
            f"{label_of(aggregate)} does not know {known}: no method of its class is marked @applies({known})"
        )
    method: Callable[[Event], None] = getattr(aggregate, name)
    return method


def label_of(aggregate: Aggregate) -> str:
    """The aggregate as errors name it."""
    return f"{type(aggregate).__name__} {aggregate.id!r}"


def _own_fields(cls: type[Aggregate]) -> dict[str, Any]:
    """The fields that the class itself annotates, with their defaults. Raises DeclarationError."""
    fields: dict[str, Any] = {}
    for name, annotation in inspect.get_annotations(cls).items():
        if _is_class_var(annotation):
            continue
        if name in _OWN or name.startswith("__"):
            raise DeclarationError(f"{cls.__name__}.{name}: the name is taken; every aggregate has an id and a version")
        if name not in cls.__dict__:
            raise DeclarationError(
                f"{cls.__name__}.{name} has no default; every field of an aggregate has one, the value before its "
                f"first event: `{name}: ... = ...`"
            )
        fields[name] = cls.__dict__[name]
    return fields


def _is_class_var(annotation: Any) -> bool:
    if isinstance(annotation, str):
        return annotation.removeprefix("typing.").startswith("ClassVar")
    return annotation is ClassVar or get_origin(annotation) is ClassVar


def _appliers(cls: type[Aggregate]) -> dict[type[Event], str]:
    """The name of the method that applies each event; that of a subclass wins. Raises DeclarationError."""
    found: dict[type[Event], str] = {}
    for base in reversed(cls.__mro__):
        own: dict[type[Event], str] = {}
        for name, function in vars(base).items():
            for event in getattr(function, _APPLIES, ()):
                if own.setdefault(event, name) != name:
                    raise DeclarationError(
                        f"{cls.__name__}: {event.__name__} is applied by {own[event]} and by {name}; one method "
                        "applies an event"
                    )
        found |= own
    return found
