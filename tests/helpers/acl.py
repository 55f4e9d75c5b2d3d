"""Users with the rights that `streamlib acl` prints, made from its very line."""

import os
from collections.abc import Sequence
from typing import Any

import redis

from streamlib.keys import Keys
from streamlib.ops.acl import rules

ACL_ENV = "STREAMLIB_TEST_ACL"
"""Roles, with commas between: the ordinary `redis_url` is then that of a user with their rights and no others."""
LOGIN = "least:rights@"
"""Stands in such an address. The tests' own clients go without it, and have all rights."""


def roles_under_test() -> list[str]:
    return [role for role in os.environ.get(ACL_ENV, "").split(",") if role]


def least_rights(client: redis.Redis, url: str, roles: Sequence[str]) -> str:
    """Make a user with the rights of these roles, for topics of any name; the address with its login."""
    user, _, password = LOGIN.rstrip("@").partition(":")
    set_user(client, user, [*rules(roles, Keys(), {}, server=server_of(client)), f">{password}"])
    return url.replace("//", f"//{LOGIN}")


def set_user(client: redis.Redis, user: str, granted: Sequence[str]) -> None:
    ask: Any = client.execute_command
    ask("ACL", "SETUSER", user, *granted)


def server_of(client: redis.Redis) -> str:
    """The server's kind and version, as `streamlib acl --server` takes them."""
    info: Any = client.info("server")
    kind, version = ("valkey", info["valkey_version"]) if "valkey_version" in info else ("redis", info["redis_version"])
    return f"{kind}-{'.'.join(version.split('.')[:2])}"
