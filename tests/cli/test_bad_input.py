"""What users get wrong: each has its exit code, and a message that names the thing and the way out."""

import socket
from collections.abc import Callable
from pathlib import Path

import click.testing
import pytest
import redis

from streamlib.cli import main
from streamlib.redisio import server as redis_server
from tests.cli.conftest import SHOP, Cli
from tests.helpers.servers import RedisProc

BURST = ("run", "shop:app", "--burst", "--no-http")


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("shop", "an app is named module:attribute"),
        ("shop.py:app", "name the module, not its file: shop:app"),
        ("shopp:app", "no module 'shopp'"),
        ("shopp:app", "did you mean 'shop'?"),
        ("shop:ap", "module 'shop' has no attribute 'ap'; did you mean 'app'?"),
        ("shop:app.zzz", "has no attribute 'zzz'"),
        ("shop:send", "is a function, not a streamlib.App; apps there: shop:app"),
        ("os:path", "os holds no App"),
    ],
)
def test_an_app_path_that_leads_nowhere(cli: Cli, path: str, says: str) -> None:
    for args in (["run", path, "--no-http"], ["check", path]):
        done = cli(*args, "--redis", "redis://127.0.0.1:1")
        assert done.code == 2
        assert says in done.err
        assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import no_such_thing_at_all", "ModuleNotFoundError: No module named 'no_such_thing_at_all'"),
        ("def f():\n    return 1 / 0\nf()", "ZeroDivisionError: division by zero"),
        ("def f(:", "invalid syntax"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("from streamlib import App\napp = App('a b')", "DeclarationError: app 'a b'"),
    ],
)
def test_an_error_inside_the_users_module_names_its_line(cli: Cli, shop: Path, source: str, says: str) -> None:
    (shop / "broken.py").write_text(source)
    done = cli("check", "broken:app")
    assert done.code == 2
    assert "importing 'broken' failed" in done.err
    assert says in done.err
    assert f'File "{shop}/broken.py", line ' in done.err
    assert "Traceback" not in done.err


def test_a_group_that_does_not_exist(cli: Cli, redis_url: str) -> None:
    done = cli(*BURST, "--group", "mail", "--redis", redis_url)
    assert done.code == 2
    assert "no group or projection 'mail'; it has: email" in done.err


def test_redis_absent(cli: Cli) -> None:
    for args in (BURST, ("info",), ("dlq", "ls"), ("check", "shop:app"), ("publish", "shop:app", "orders")):
        done = cli(*args, "--redis", "redis://127.0.0.1:1", env={"STREAMLIB_REDIS_RETRY_S": "0"})
        assert done.code == 3, done.err
        assert "redis://127.0.0.1:1 is not reachable" in done.err
        assert "is it running" in done.err


def test_redis_with_a_password(cli: Cli, own_server: Callable[..., RedisProc]) -> None:
    guarded = own_server()
    with guarded.client() as client:
        client.config_set("requirepass", "open-sesame")
    for args in (BURST, ("check", "shop:app"), ("info",)):
        done = cli(*args, "--redis", guarded.url)
        assert done.code == 3, done.err
        assert "refused our credentials" in done.err
        assert "check redis.url" in done.err
    right = guarded.url.replace("//", "//:open-sesame@")
    assert cli("check", "shop:app", "--redis", right).code == 0
    wrong = cli("check", "shop:app", "--redis", guarded.url.replace("//", "//:open-barley@"))
    assert wrong.code == 3
    assert "open-barley" not in wrong.err


@pytest.mark.row(37)
def test_redis_that_evicts(cli: Cli, own_server: Callable[..., RedisProc]) -> None:
    greedy = own_server(conf={"maxmemory-policy": "allkeys-lru"})
    done = cli(*BURST, "--redis", greedy.url)
    assert done.code == 1
    assert "maxmemory-policy is allkeys-lru" in done.err
    assert "set noeviction" in done.err
    checked = cli("check", "shop:app", "--redis", greedy.url, "--json")
    assert checked.code == 1
    assert [row["check"] for row in checked.json if not row["ok"]] == ["eviction"]
    assert cli(*BURST, "--redis", greedy.url, env={"STREAMLIB_REDIS_ALLOW_EVICTION": "true"}).code == 0


def test_redis_that_is_read_only(cli: Cli, own_server: Callable[..., RedisProc]) -> None:
    primary = own_server()
    replica = own_server(conf={"replicaof": f"127.0.0.1 {primary.port}"})
    for args in (BURST, ("check", "shop:app")):
        done = cli(*args, "--redis", replica.url)
        assert done.code == 1
        assert "point redis.url at the primary" in done.err + done.out


def test_redis_that_is_too_old(shop: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_server, "MIN_VALKEY", (99, 0))
    monkeypatch.setattr(redis_server, "MIN_REDIS", (99, 0))
    monkeypatch.chdir(shop)
    monkeypatch.syspath_prepend(str(shop))
    done = click.testing.CliRunner().invoke(main, ["check", "shop:app", "--redis", redis_url])
    assert done.exit_code == 1
    assert "is too old: workers do not start on it; use Redis 7.0 or Valkey 7.2 or later" in done.output
    assert "FAILED" in done.output


def test_a_partition_count_that_differs(cli: Cli, shop: Path, redis_url: str) -> None:
    assert cli(*BURST, "--redis", redis_url).code == 0
    (shop / "shop.py").write_text(SHOP.replace("{partitions}", "3"))
    done = cli(*BURST, "--redis", redis_url)
    assert done.code == 2
    assert "has 2 partitions in Redis, but partitions=3 is declared" in done.err
    checked = cli("check", "shop:app", "--redis", redis_url)
    assert checked.code == 1
    assert "declare 2" in checked.out


@pytest.mark.row(35)
@pytest.mark.allow_keys("orders.1")
def test_a_key_of_the_wrong_type(cli: Cli, redis_url: str, client: redis.Redis) -> None:
    client.set("orders.1", "mine")
    for args in (BURST, ("check", "shop:app")):
        done = cli(*args, "--redis", redis_url)
        assert done.code == 1
        assert "key 'orders.1'" in done.err + done.out
        assert "redis.namespace" in done.err + done.out
    assert client.get("orders.1") == b"mine"


def test_a_port_in_use(cli: Cli, redis_url: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = cli("run", "shop:app", "--burst", "--http", address, "--redis", redis_url)
    assert done.code == 2
    assert address in done.err
    assert "--no-http" in done.err


def test_reload_refuses_several_processes(cli: Cli, redis_url: str) -> None:
    done = cli("run", "shop:app", "--reload", "-p", "2", "--redis", redis_url)
    assert done.code == 2
    assert "--reload runs one process" in done.err


def test_check_changes_nothing(cli: Cli, redis_url: str, client: redis.Redis) -> None:
    done = cli("check", "shop:app", "--redis", redis_url, "--json")
    assert done.code == 0, done.err
    assert client.dbsize() == 0
    assert {"check", "ok", "detail"} <= done.json[0].keys()
    assert any("MiB per group for every 1,000 events per second" in row["detail"] for row in done.json)
