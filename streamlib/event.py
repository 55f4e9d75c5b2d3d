"""Typed events: the base classes that users subclass, and the registry that finds a class for a stored type."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, dataclass_transform, get_type_hints

import msgspec
from msgspec import Struct, StructMeta

from streamlib.errors import DeclarationError, UnknownType
from streamlib.keys import MAX_ID_BYTES
from streamlib.versions import Upcasters

_TYPE = "__streamlib_type__"
_VERSION = "__streamlib_version__"
_ENDS_LIKE_A_VERSION = re.compile(r"@\d+\Z")


class _MessageMeta(StructMeta):
    """Makes every subclass frozen and keyword-only, and takes `version=` and `name=` as class keywords."""

    def __new__(
        mcls,
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        *,
        version: int = 1,
        type_name: str | None = None,
        **options: Any,
    ) -> Any:
        if not 1 <= version <= 1_000_000:
            raise DeclarationError(f"{name}(version={version}): a version is a whole number from 1")
        if len((type_name or name).encode()) > MAX_ID_BYTES:
            raise DeclarationError(f"{name}: the name of a type has at most {MAX_ID_BYTES} bytes")
        namespace[_TYPE] = type_name or name
        namespace[_VERSION] = version
        options = {"frozen": True, "kw_only": True, **options}
        return super().__new__(mcls, name, bases, namespace, **options)


# On the class, not on its metaclass: type checkers take the nearest, and msgspec's Struct carries one too.
@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class Event(Struct, metaclass=_MessageMeta, frozen=True, kw_only=True):
    """Something that happened. Subclasses are frozen and keyword-only msgspec Structs.

    `class Moved(Event, version=2, type_name="moved")`: the stored type is the class's name unless `type_name` is
    given; the version is 1 unless `version` is given.
    """


class Command(Event):
    """A request to do something, which may be refused; it travels as an event does, on the app's topic of commands.

    Subclasses look like those of Event. One `@app.command_handler` takes each.
    """


def event_type(cls: type[Event]) -> str:
    """The name under which events of this class are stored."""
    name: str = cls.__dict__[_TYPE]
    return name


def event_version(cls: type[Event]) -> int:
    """The schema version under which events of this class are stored."""
    version: int = cls.__dict__[_VERSION]
    return version


def stored_name(name: str, version: int) -> str:
    """One text for a type and a version: "Opened" for version 1, "Opened@2" for version 2."""
    return name if version == 1 and not _ENDS_LIKE_A_VERSION.search(name) else f"{name}@{version}"


def type_of_stored(name: str) -> str:
    """The type in what `stored_name` made."""
    return name.rpartition("@")[0] if _ENDS_LIKE_A_VERSION.search(name) else name


def check_resolvable(cls: type[Struct]) -> None:
    """Raise DeclarationError when an annotation of `cls` cannot be resolved or is no type that can be stored."""
    try:
        get_type_hints(cls)
        msgspec.json.Decoder(cls)
    except NameError as error:
        raise DeclarationError(
            f"{cls.__qualname__}: the annotation names {error.name!r}, which is not found in module "
            f"{cls.__module__}; define it there, not inside a function"
        ) from error
    except TypeError as error:
        raise DeclarationError(f"{cls.__qualname__}: {error}") from error


def _is_event_class(cls: object) -> bool:
    return isinstance(cls, type) and issubclass(cls, Event) and cls not in (Event, Command)


class Registry:
    """The event classes of one topic, by stored type and version, and the upcasters that lead to them."""

    def __init__(self, classes: Iterable[type[Event]], upcasters: Upcasters | None = None) -> None:
        self.upcasters = Upcasters() if upcasters is None else upcasters
        self._classes: dict[tuple[str, int], type[Event]] = {}
        for cls in classes:
            self._add(cls)
        self._members = frozenset(self._classes.values())

    def _add(self, cls: type[Event]) -> None:
        if not _is_event_class(cls):
            raise DeclarationError(f"{cls!r} is not a subclass of streamlib.Event")
        check_resolvable(cls)
        key = (event_type(cls), event_version(cls))
        known = self._classes.setdefault(key, cls)
        if known is not cls:
            raise DeclarationError(
                f"{cls.__module__}.{cls.__qualname__} and {known.__module__}.{known.__qualname__} are both "
                f"{key[0]} version {key[1]}; give one of them type_name= or version="
            )

    def __contains__(self, cls: type[Event]) -> bool:
        return cls in self._members

    @property
    def classes(self) -> tuple[type[Event], ...]:
        return tuple(self._classes.values())

    @property
    def type_names(self) -> frozenset[str]:
        return frozenset(name for name, _ in self._classes)

    def find(self, name: str, version: int) -> type[Event]:
        """The class for a stored type: that of this very version, else the one that its data are raised to.

        Raises UnknownType.
        """
        found = self._classes.get((name, version))
        if found is None:
            target = self.upcasters.target(name, version)
            found = None if target is None else self._classes.get((name, target))
        if found is None:
            raise UnknownType(f"no class for {name!r} version {version}; this worker knows {self._known(name)}")
        return found

    def is_newer(self, name: str, version: int) -> bool:
        """Whether this is a version of a known type above all that are known: a newer app publishes it."""
        known = self._versions(name)
        return bool(known) and version > known[-1]

    def stored_names(self, cls: type[Event]) -> frozenset[str]:
        """What is read as this class, each as `stored_name` has it: its version and those that are raised to it."""
        name, version = event_type(cls), event_version(cls)
        raised = [one for one in self.upcasters.raised_to(name, version) if (name, one) not in self._classes]
        return frozenset(stored_name(name, one) for one in (version, *raised))

    def _versions(self, name: str) -> list[int]:
        return sorted(version for other, version in self._classes if other == name)

    def _known(self, name: str) -> str:
        versions = self._versions(name)
        if not versions:
            return f"types {sorted(self.type_names)}"
        raised = [one for version in versions for one in self.upcasters.raised_to(name, version)]
        return f"versions {versions}" + (f" and raises {raised}" if raised else "")
