"""The names of `streamlib.testing`, for type checkers; `__init__.py` finds them lazily at run time."""

from streamlib.testing.fake_redis import FakeServer
from streamlib.testing.harness import AppFactory, Dead, Halted, Handled, Harness, Parked, Retried, run_app

__all__ = ["AppFactory", "Dead", "FakeServer", "Halted", "Handled", "Harness", "Parked", "Retried", "run_app"]
