"""Machines assert outside of test modules: what they compared is shown all the same."""

import pytest

MACHINES = ("delivery_machine", "delivery_model", "topic_machine", "view_machine", "view_model")
pytest.register_assert_rewrite(*(f"tests.properties.{name}" for name in MACHINES))
