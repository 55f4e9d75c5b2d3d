"""Upcasters: the steps that raise data of an older version of an event, one version at a time, to that of its class."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from streamlib.errors import DeclarationError, SchemaError

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]


class _Step(Struct, frozen=True):
    """Raises one version to the next, on the way to version `to`."""

    to: int
    function: Callable[[dict[str, Any]], Any]


class Upcasters:
    """The steps that an app declares, by stored type and the version that they raise."""

    def __init__(self) -> None:
        self._steps: dict[tuple[str, int], _Step] = {}

    def add(self, name: str, from_version: int, to: int, function: Upcaster) -> None:
        """Add the step that raises `from_version` of a type, on the way to its class of version `to`.

        Raises DeclarationError for a version that is none below `to`, for a second step from one version, and for what
        is no plain function of one argument.
        """
        if not 1 <= from_version < to:
            raise DeclarationError(
                f"upcast of {name} from_version={from_version}: the class has version {to}; a step raises a version "
                f"from 1 to {to - 1}" + (", and the class itself says version=" if to == 1 else "")
            )
        _check_function(name, from_version, function)
        known = self._steps.get((name, from_version))
        if known is not None:
            raise DeclarationError(
                f"{name} version {from_version} is raised by {_name(known.function)} and by {_name(function)}; "
                "one version has one way up: remove one of them"
            )
        self._steps[name, from_version] = _Step(to, function)

    def target(self, name: str, version: int) -> int | None:
        """The version to which events of this one are raised; None where nothing raises them."""
        step = self._steps.get((name, version))
        return None if step is None else step.to

    def raised_to(self, name: str, to: int) -> list[int]:
        """The versions that are raised to this one, in order."""
        return sorted(version for (other, version), step in self._steps.items() if (other, step.to) == (name, to))

    def check(self) -> None:
        """Raise DeclarationError, with the missing step and the way out, where a way up has a hole."""
        for (name, version), step in sorted(self._steps.items()):
            steps = self.raised_to(name, step.to)
            for between in range(version + 1, step.to):
                if between not in steps:
                    raise DeclarationError(
                        f"{name}: version {version} is raised to {version + 1}, but nothing raises version {between} "
                        f"to {between + 1}, and the class has version {step.to}; add "
                        f"@app.upcast({name}, from_version={between}) for the class of version {step.to}"
                    )

    def raise_(self, name: str, version: int, data: dict[str, Any], label: str) -> dict[str, Any]:
        """The data as the class of `target(name, version)` has them. Raises SchemaError for a step that fails."""
        for at in range(version, self._steps[name, version].to):
            function = self._steps[name, at].function
            try:
                raised = function(data)
            except Exception as error:
                raise SchemaError(
                    f"{label}: the upcaster {_name(function)} failed on data of version {at}: "
                    f"{type(error).__name__}: {error}"
                ) from error
            if not isinstance(raised, dict):
                raise SchemaError(
                    f"{label}: the upcaster {_name(function)} returned {type(raised).__name__} for data of version "
                    f"{at}, not a dict with those of version {at + 1}"
                )
            data = raised
        return data


def _check_function(name: str, from_version: int, function: Any) -> None:
    label = f"upcast of {name} from_version={from_version}"
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise DeclarationError(
            f"{label}: {_name(function)} must be a plain function (data: dict) -> dict, not async, no generator"
        )
    try:
        inspect.signature(function).bind(None)
    except (TypeError, ValueError) as error:
        raise DeclarationError(f"{label}: {_name(function)} must take the data alone: {error}") from error


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", repr(function))
