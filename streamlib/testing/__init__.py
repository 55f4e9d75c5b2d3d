"""Tests of your own app in one process: fakeredis for Redis, and the worker that runs in production.

Names are imported when they are first used: pytest loads the plugin wherever streamlib is installed, also where
fakeredis (the extra `test`) is not. `__init__.pyi` tells type checkers the same names.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "streamlib.testing.fake_redis": ("FakeServer",),
    "streamlib.testing.harness": ("AppFactory", "Dead", "Halted", "Handled", "Harness", "Parked", "Retried", "run_app"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'streamlib.testing' has no attribute {name!r}")
    try:
        value = getattr(import_module(_HOME_OF[name]), name)
    except ModuleNotFoundError as error:
        if error.name in ("fakeredis", "lupa"):
            raise ImportError("streamlib.testing needs fakeredis; install streamlib[test]") from error
        raise
    globals()[name] = value
    return value
