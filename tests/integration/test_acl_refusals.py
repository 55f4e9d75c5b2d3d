"""What a user with the rights of a role is refused: everything that is not the role's."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from streamlib.keys import Keys
from streamlib.ops.acl import ROLES, rules
from tests.helpers.acl import server_of, set_user
from tests.helpers.servers import RedisProc, connect

DENIED = redis.exceptions.NoPermissionError
NEVER = [
    ("FLUSHALL",), ("FLUSHDB",), ("KEYS", "*"), ("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "GET", "*"),
    ("DEBUG", "SLEEP", "0"), ("SHUTDOWN",), ("REPLICAOF", "NO", "ONE"), ("ACL", "LIST"), ("ACL", "GETUSER", "default"),
    ("FUNCTION", "LOAD", "x"), ("SCRIPT", "FLUSH"), ("SAVE",), ("MONITOR",), ("CLIENT", "KILL", "ID", "1"),
    ("MIGRATE", "h", "1", "orders", "0", "1"), ("RENAME", "orders", "others"), ("SELECT", "1"), ("PUBLISH", "c", "m"),
    ("SORT", "orders"), ("DUMP", "orders"),
]  # fmt: skip


@pytest.fixture(params=ROLES)
def role(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def user(server: RedisProc, client: redis.Redis, role: str) -> Any:
    """A connection of a user with this role for topic orders."""
    set_user(client, role, ["resetpass", ">pw", *rules([role], Keys(), {"orders": None}, server=server_of(client))])
    with connect(server.url.replace("//", f"//{role}:pw@")) as connected:
        yield connected.execute_command
    client.execute_command("ACL", "DELUSER", role)  # type: ignore[no-untyped-call]


def test_no_role_may_run_what_endangers_the_server_or_others(user: Any) -> None:
    for command in NEVER:
        with pytest.raises(DENIED):
            user(*command)


@pytest.mark.parametrize("other", ["payments", "payments.0", "ordersx", "orders.x", "{payments}:idem:g:1"])
def test_no_role_reaches_another_topic(user: Any, role: str, other: str) -> None:
    granted = ROLES[role].commands.split()
    tries = {
        "XADD": ("XADD", other, "*", "f", "v"),
        "XINFO|STREAM": ("XINFO", "STREAM", other),
        "HGET": ("HGET", other, "f"),
        "SET": ("SET", other, "v"),
        "EVAL": ("EVAL", "return 1", 1, other),
        "EVAL_RO": ("EVAL_RO", "return 1", 1, other),
        "UNLINK": ("UNLINK", other),
        "XRANGE": ("XRANGE", other, "-", "+"),
    }
    tried = [command for name, command in tries.items() if name in granted]
    assert tried
    for command in tried:
        with pytest.raises(DENIED):
            user(*command)


def test_a_script_may_not_do_what_its_user_may_not(user: Any, role: str) -> None:
    run = "EVAL" if "EVAL" in ROLES[role].commands.split() else "EVAL_RO"
    for inside in ("'FLUSHALL'", "'CONFIG', 'SET', 'maxmemory', '1'", "'GET', 'elsewhere'"):
        with pytest.raises(redis.exceptions.ResponseError, match=r"can't|permission|[Ww]rite commands|not allowed"):
            user(run, f"return redis.call({inside})", 0)


@pytest.mark.parametrize("role", ["reader", "observer"], indirect=True)
def test_who_only_reads_can_run_no_script_that_writes_and_change_no_view(user: Any) -> None:
    for command in (("EVAL", "return 1", 0), ("EVALSHA", "0" * 40, 0), ("XADD", "orders", "*", "f", "v")):
        with pytest.raises(DENIED):
            user(*command)
    with pytest.raises(DENIED):
        user("HSET", "{orders}:view:board:1:row:1", "f", "v")
    with pytest.raises(redis.exceptions.ResponseError):
        user("EVAL_RO", "return redis.call('HSET', KEYS[1], 'f', 'v')", 1, "{orders}:view:board:1:row:1")


@pytest.mark.parametrize("role", ["producer"], indirect=True)
def test_a_producer_cannot_read_what_was_published(user: Any) -> None:
    for command in (("XRANGE", "orders", "-", "+"), ("XREAD", "STREAMS", "orders", "0"), ("GET", "{orders}:snap:1")):
        with pytest.raises(DENIED):
            user(*command)
