"""Every conformance case runs in every place; each place is started once per test process, when it is first needed."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conformance.places import KINDS, Place, open_place


@pytest.fixture(scope="session")
def places(server_kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Place]]:
    with ExitStack() as stack:
        started: dict[str, Place] = {}

        def place_of(kind: str) -> Place:
            if kind not in started:
                started[kind] = stack.enter_context(open_place(kind, server_kind, tmp_path_factory.mktemp(kind)))
            return started[kind]

        yield place_of


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, places: Callable[[str], Place]) -> Iterator[Place]:
    """Empty at the start of the test; stray keys at its end fail the test."""
    found = places(request.param)
    found.flush()
    yield found
    found.assert_no_stray_keys()


@pytest.fixture(params=KINDS)
def own_place(request: pytest.FixtureRequest, server_kind: str, tmp_path: Path) -> Iterator[Place]:
    """For a case that breaks servers: they are its own, and keep their data on disk."""
    with open_place(request.param, server_kind, tmp_path, aof=True) as found:
        yield found
