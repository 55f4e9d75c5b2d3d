"""`streamlib doctor`: exit codes, the JSON document, and what a terminal and a log may see of it."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.cli.conftest import Cli, Result
from tests.helpers.servers import HOST, RedisProc, free_port
from tests.helpers.waiting import wait_until

Servers = Callable[..., RedisProc]
QUICK = {"STREAMLIB_WORKER_LEASE_MS": "200"}


def codes(document: dict[str, Any], severity: str) -> set[str]:
    return {one["code"] for one in document["findings"] if one["severity"] == severity}


def not_well(told: Result) -> Result | None:
    return told if told.code == 1 else None


def test_a_server_that_keeps_events_ends_with_0(cli: Cli, own_server: Servers) -> None:
    told = cli("doctor", "--json", "--redis", own_server(aof=True).url)
    assert told.code == 0, told.out
    assert codes(told.json, "danger") == set()
    assert (told.json["servers"], told.json["groups"], told.json["keys"]) == (1, 0, 0)


def test_a_server_that_may_lose_events_ends_with_1(cli: Cli, own_server: Servers) -> None:
    server = own_server(conf={"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"})
    told = cli("doctor", "--json", "--redis", server.url)
    assert (told.code, codes(told.json, "danger")) == (1, {"eviction", "aof_off"})
    for one in told.json["findings"]:
        assert list(one) == ["code", "severity", "where", "what", "why", "advice"]
        assert all(one.values())
    shown = cli("doctor", "--redis", server.url)
    assert shown.code == 1
    assert f"DANGER: {HOST}:{server.port}: maxmemory-policy is allkeys-lru" in shown.out
    assert "    do:  set noeviction" in shown.out
    assert "1 servers, 0 groups, 0 keys: 2 DANGER" in shown.err


def test_events_without_workers_until_they_are_handled(cli: Cli, own_server: Servers) -> None:
    url = own_server(aof=True).url
    lines = json.dumps({"type": "OrderCreated", "data": {"order_id": "o-1"}})
    assert cli("publish", "shop:app", "orders", "--redis", url, stdin=lines).code == 0
    what = "they wait for longer than a lease"
    told = wait_until(lambda: not_well(cli("doctor", "--json", "--redis", url, env=QUICK)), what=what)
    assert told is not None
    assert codes(told.json, "danger") == {"dead_group"}
    assert cli("run", "shop:app", "--burst", "--no-http", "--redis", url).code == 0
    assert cli("doctor", "--redis", url, env=QUICK).code == 0


def test_what_it_may_not_see_is_told(cli: Cli, own_server: Servers) -> None:
    server = own_server()
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "app", "on", ">c4n4ry", "~*", "-@all", "+ping")
    url = server.url.replace("redis://", "redis://app:c4n4ry@")
    told, shown = cli("doctor", "--json", "--redis", url), cli("doctor", "-v", "--redis", url)
    assert (told.code, shown.code) == (0, 0)
    assert {one["severity"] for one in told.json["findings"]} == {"not_looked_at"}
    assert "not looked at" in shown.out
    assert "c4n4ry" not in told.out + told.err + shown.out + shown.err


def test_nothing_it_prints_steers_a_terminal(cli: Cli, own_server: Servers) -> None:
    server = own_server(aof=True)
    lines = json.dumps({"type": "OrderCreated", "data": {"order_id": "o-1"}})
    assert cli("publish", "shop:app", "orders", "--redis", server.url, stdin=lines).code == 0
    with server.client() as client:
        client.xgroup_create("orders.0", "\x1b[31mred\x07\n")
        client.set("{old}:idem:\x1b[31mred:1", "d")
    told, shown = cli("doctor", "--json", "--redis", server.url), cli("doctor", "--redis", server.url)
    assert {"unregistered_group", "keys_without_owner"} <= codes(told.json, "warning")
    for text in (told.out, shown.out, shown.err):
        assert "\x1b" not in text
        assert "\x07" not in text
    assert "red" in shown.out


@pytest.mark.parametrize(("url", "code"), [("redis://{host}:{port}", 3), ("redis://a,b", 2)])
def test_where_there_is_no_redis(cli: Cli, url: str, code: int) -> None:
    told = cli("doctor", "--json", "--redis", url.format(host=HOST, port=free_port()))
    assert (told.code, told.out) == (code, "")
    assert told.err.startswith("error: ")
