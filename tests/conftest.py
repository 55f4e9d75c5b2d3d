"""Fixtures of every test: a real server per test process, an empty database per test, servers to break."""

import gc
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from tests.helpers.acl import least_rights, roles_under_test
from tests.helpers.oracle import assert_no_stray_keys
from tests.helpers.proxy import ChaosProxy
from tests.helpers.servers import RedisProc, available_kinds

SERVER_ENV = "STREAMLIB_TEST_SERVER"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "allow_keys(*globs): keys the test itself may leave behind in Redis")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # What a shell starts in the background ignores it, and so would every process that a test interrupts.
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    gc.freeze()  # what is there by now lives as long as the process: looked through after each test it would cost much


@pytest.fixture(autouse=True)
def _leaves_nothing_open() -> Iterator[None]:
    """What a test left open fails this test. Else it fails another, whenever the collector comes around."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def server_kind() -> str:
    """The kind of server this run is about: STREAMLIB_TEST_SERVER, valkey when unset."""
    kind = os.environ.get(SERVER_ENV, "valkey")
    if kind not in available_kinds():
        pytest.exit(f"{SERVER_ENV}={kind}: not here; available: {', '.join(available_kinds())}", returncode=2)
    return kind


@pytest.fixture(scope="session")
def server(server_kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProc]:
    """One server for the whole test process. Tests that kill, freeze or configure one take `own_server`."""
    with RedisProc(server_kind, tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def redis_url(server: RedisProc, request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of the shared server, empty at the start of the test; stray keys at its end fail the test.

    With STREAMLIB_TEST_ACL it is that of a user with the rights of these roles: tests/helpers/acl.py.
    A test that writes keys of its own names them: `@pytest.mark.allow_keys("effect:*")` (globs).
    """
    with server.client() as client:
        client.flushall()
        roles = roles_under_test()
        yield least_rights(client, server.url, roles) if roles else server.url
        allowed = [str(glob) for mark in request.node.iter_markers("allow_keys") for glob in mark.args]
        assert_no_stray_keys(client, allowed)


@pytest.fixture
def client(redis_url: str, server: RedisProc) -> Iterator[redis.Redis]:
    """A blocking client of the shared server: bytes, RESP2 shapes, no resends."""
    with server.client() as connected:
        yield connected


@pytest.fixture
def own_server(server_kind: str, tmp_path: Path) -> Iterator[Callable[..., RedisProc]]:
    """`own_server(aof=..., conf={...}, kind=...)` starts a server for this test alone."""
    started: list[RedisProc] = []

    def start(*, aof: bool = False, conf: dict[str, str] | None = None, kind: str | None = None) -> RedisProc:
        directory = tmp_path / f"server-{len(started)}"
        started.append(RedisProc(kind or server_kind, directory, aof=aof, conf=conf))
        return started[-1].start()

    yield start
    for running in started:
        running.terminate()


@pytest.fixture
def proxy(redis_url: str) -> Iterator[ChaosProxy]:
    """A bad network in front of the shared server; put `with ChaosProxy(own.url)` before an own one."""
    with ChaosProxy(redis_url) as running:
        yield running
