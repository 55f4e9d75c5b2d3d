"""The pytest plugin: the fixture `streamlib_app` runs an app of yours on a Redis inside the test process."""

from __future__ import annotations

import pytest

from streamlib import testing


@pytest.fixture
def streamlib_server() -> testing.FakeServer:
    """The Redis of this test, empty at its start; all apps of the test share it."""
    return testing.FakeServer()


@pytest.fixture
def streamlib_app(streamlib_server: testing.FakeServer) -> testing.AppFactory:
    """`async with streamlib_app(app) as harness:` opens your app on the test's own Redis."""
    return lambda app: testing.run_app(app, streamlib_server)
