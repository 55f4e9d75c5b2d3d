"""`streamlib acl`: one line that an administrator can paste, for what was asked and nothing else."""

import hashlib
from typing import Any

import pytest
import redis

from streamlib.ops.acl import ROLES
from tests.cli.conftest import Cli
from tests.helpers.acl import server_of
from tests.helpers.servers import connect


@pytest.fixture
def granted(client: redis.Redis, cli: Cli) -> Any:
    """`granted(line)` pastes the line; what the server then tells of the user."""

    def paste(line: str) -> dict[str, Any]:
        ask: Any = client.execute_command
        words = line.split()
        assert ask(*words) in (b"OK", True)
        told = ask("ACL", "GETUSER", words[2])
        return {name.decode(): value for name, value in told.items()} if isinstance(told, dict) else _pairs(told)

    return paste


def _pairs(told: list[Any]) -> dict[str, Any]:
    return {name.decode(): value for name, value in zip(told[::2], told[1::2], strict=True)}


@pytest.mark.parametrize("role", ROLES)
def test_the_line_of_every_role_is_taken_by_every_server(cli: Cli, granted: Any, role: str) -> None:
    done = cli("acl", "--role", role)
    assert done.code == 0, done.err
    assert done.out.startswith(f"ACL SETUSER streamlib-{role} on ")
    assert done.out.count("\n") == 1
    told = granted(done.out)
    assert b"nopass" not in told["flags"]
    assert told["passwords"] == []
    assert b"-@all" in told["commands"]


def test_the_line_for_this_server_is_taken_too(cli: Cli, granted: Any, client: redis.Redis) -> None:
    granted(cli("acl", "--role", "worker", "--server", server_of(client)).out)


def test_commands_that_not_every_server_has_are_in_the_line_of_one_that_has_them(cli: Cli) -> None:
    old, new = cli("acl", "--role", "worker"), cli("acl", "--role", "worker", "--server", "valkey-9.1")
    assert not {"+msetex", "+waitaof"} & {*old.out.split()}
    assert "without MSETEX, WAITAOF" in old.err
    assert {"+msetex", "+waitaof"} <= {*new.out.split()}
    assert "MSETEX" not in new.err
    wrong = cli("acl", "--role", "worker", "--server", "9.1")
    assert wrong.code == 2
    assert "valkey-9.1" in wrong.err


def test_keys_are_those_of_the_topics_that_are_named_and_of_the_namespace(cli: Cli) -> None:
    words = cli("acl", "--role", "producer", "--topic", "orders", "--namespace", "eu").out.split()
    keys = {word for word in words if word.startswith(("~", "%"))}
    assert {"~eu:orders", "~eu:orders.[0-9]*", "~{eu:orders}:dedup:*", "~streamlib:eu:topics"} <= keys
    assert all("orders" in key or key.endswith((":topics", ":views")) for key in keys)


def test_the_topics_of_an_app_have_the_partitions_that_it_declares(cli: Cli) -> None:
    words = cli("acl", "--role", "producer", "--app", "shop:app").out.split()
    assert "~orders.[0-9]*" in words
    assert "~orders" not in words


def test_a_password_is_given_as_its_hash_and_survives_a_new_line(cli: Cli, granted: Any, redis_url: str) -> None:
    digest = hashlib.sha256(b"secret").hexdigest()
    done = cli("acl", "--role", "observer", "--user", "eyes", "--password-hash", digest)
    assert f" #{digest} " in done.out
    granted(done.out)
    granted(cli("acl", "--role", "observer", "--user", "eyes").out)
    with connect(redis_url.replace("//", "//eyes:secret@")) as eyes:
        assert eyes.ping()
    assert cli("acl", "--role", "observer", "--password-hash", "secret").code == 2


def test_a_database_may_be_chosen_where_the_address_names_one(cli: Cli) -> None:
    assert "+select" not in cli("acl", "--role", "worker").out.split()
    assert "+select" in cli("acl", "--role", "worker", "--redis", "redis://h/3").out.split()


def test_names_that_could_be_rules_are_refused(cli: Cli) -> None:
    for wrong in (["--topic", "a ~*"], ["--topic", "a*"], ["--user", "a b"], ["--user", ">a b"]):
        done = cli("acl", "--role", "reader", *wrong)
        assert done.code == 2, wrong
        assert done.out == ""


def test_several_roles_make_one_user(cli: Cli) -> None:
    done = cli("acl", "--role", "worker", "--role", "projector", "--json")
    assert done.json["user"] == "streamlib-worker-projector"
    assert {"+xreadgroup", "+xgroup|setid", "~{*}:view:*:*"} <= {*done.json["rules"]}
    assert done.json["line"].split()[3:] == done.json["rules"]
