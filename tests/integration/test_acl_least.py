"""The rights of a role are enough for what it does, and none of them can be taken away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from streamlib.keys import Keys
from streamlib.ops.acl import commands_of, rules
from tests.helpers.acl import server_of, set_user
from tests.helpers.acl_deeds import DEEDS
from tests.helpers.acl_shop import JOBS, Deed, Stage
from tests.helpers.servers import RedisProc

USER = "least"
EXPECTED_REFUSALS = {"acl|getuser"}
"""Asked by every app at its start, and denied to every role."""
TOPOLOGY = {"ROLE", "CLUSTER|SLOTS", "ASKING"}
RARE = {("aggregates", "PTTL")}
"""Used where two race for one idempotency key: no deed here gets there."""
_NEWEST = "valkey-9.1"
CASES = [
    (role, name)
    for role in DEEDS
    for name in commands_of([role], _NEWEST)
    if name not in TOPOLOGY and (role, name) not in RARE
]
GRACE_S = 0.5

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def stage(server_kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with RedisProc(server_kind, tmp_path_factory.mktemp("acl"), aof=True) as server, server.client() as admin:
        yield Stage(admin, server.url, server.url.replace("//", f"//{USER}:pw@"))


def grant(stage: Stage, role: str, without: str = "") -> None:
    """A server that is empty and knows no script, and the user with the rights of a role."""
    stage.admin.flushall()
    stage.admin.script_flush()
    stage.admin.execute_command("ACL", "LOG", "RESET")
    granted = rules([role], Keys(), {JOBS: 1, f"{JOBS}-commands": 1}, server=server_of(stage.admin))
    taken = [f"-{without.lower()}"] if without else []
    if without == "SET" and "+msetex" in granted:
        taken.append("-msetex")  # it is there for servers that do not have this
    set_user(stage.admin, USER, ["resetpass", ">pw", *granted, *taken])


def refused(stage: Stage) -> set[str]:
    """What the user was refused so far: commands, and keys."""
    entries = stage.admin.execute_command("ACL", "LOG")
    found = set()
    for entry in entries:
        told = entry if isinstance(entry, dict) else dict(zip(entry[::2], entry[1::2], strict=True))
        found.add(_text(told.get(b"object", told.get("object"))))
    return found - EXPECTED_REFUSALS


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@pytest.mark.parametrize(("role", "deed"), [(role, deed) for role, deeds in DEEDS.items() for deed in deeds])
async def test_a_role_can_do_what_it_is_for_and_is_refused_nothing(stage: Stage, role: str, deed: Deed) -> None:
    grant(stage, role)
    await asyncio.wait_for(deed(stage), 60)
    assert refused(stage) == set()


# What is broken off in the middle leaves connections to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("role", "command"), CASES, ids=[f"{role}-{name}" for role, name in CASES])
async def test_without_a_command_the_role_fails(stage: Stage, role: str, command: str) -> None:
    """It fails where the deed raises or never comes to its end. A command that nobody misses has no place in a role."""
    if command not in commands_of([role], server_of(stage.admin)):
        pytest.skip(f"{server_of(stage.admin)} has no {command}")
    failed = False
    for deed in DEEDS[role]:
        grant(stage, role, command)
        if failed := await fails(stage, deed):
            break
    assert failed, f"{role} does all its deeds without {command}: take it out of the role"


async def fails(stage: Stage, deed: Deed) -> bool:
    """Whether the deed raises, or does not come to its end once something was refused."""
    task = asyncio.ensure_future(deed(stage))
    try:
        while not refused(stage):
            if (await asyncio.wait({task}, timeout=0.05))[0]:
                break
        await asyncio.wait({task}, timeout=GRACE_S)
        return not task.done() or task.exception() is not None
    finally:
        task.cancel()
        with contextlib.suppress(BaseException):
            await task
