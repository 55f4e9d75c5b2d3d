"""Servers of a kind that several modules here start."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.servers import RedisProc
from tests.helpers.tls import TLS_SERVERS, Tls


@pytest.fixture(params=TLS_SERVERS)
def tls(own_server: Callable[..., RedisProc], request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Tls]:
    """Servers that speak TLS, behind a front and, where one was built with it, by themselves."""
    running = Tls(own_server, request.param, tmp_path)
    yield running
    running.close()
