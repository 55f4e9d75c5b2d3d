"""`streamlib bench`: figures of somebody's Redis, checked, and nothing left behind however it ends."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.cli.conftest import Cli, command_line, environment
from tests.conformance.places import KINDS, open_place
from tests.helpers.processes import end_process
from tests.helpers.servers import RedisProc
from tests.helpers.waiting import wait_until

FIGURES = ("events_per_second", "client_us", "server_us", "commands_per_1000", "p50_ms", "p99_ms")
MEASURED = {
    "round_trip": {"p50_ms", "p99_ms"},
    "publish_many": {"events_per_second", "client_us", "server_us", "commands_per_1000"},
    "raw_loop": set(FIGURES),
    "worker": set(FIGURES),
}
SMALL = ("--events", "2000", "--rounds", "1")
SECRET = "s3cret-of-the-url"

WRONG = """
import sys
from streamlib.bench import consumers

worker = consumers.worker

async def forgets_marks(app, stream, handle, stop):
    await worker(app, stream, handle, stop)
    entries = await app.redis.execute("XRANGE", stream.stream, "-", "+", "COUNT", 3)
    await app.redis.execute("UNLINK", *stream.idems(consumers.GROUP, [fields[1].decode() for _, fields in entries]))

consumers.CONSUMERS["worker"] = forgets_marks
from streamlib.cli import main
main(sys.argv[1:])
"""
"""The command, with a worker that loses three done marks."""


@pytest.fixture
def theirs(client: redis.Redis) -> Iterator[Callable[[], dict[bytes, Any]]]:
    """Somebody's keys; calling it gives all keys that are there."""

    def dumped() -> dict[bytes, Any]:
        return {name: client.dump(name) for name in client.scan_iter()}

    client.xadd("orders", {"not": "ours"})
    before = dumped()
    yield dumped
    assert dumped() == before
    client.delete("orders")


@contextmanager
def started(url: str, directory: Path, *args: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """The command at work, and the file of what it says; it is ended if it still runs."""
    log = directory / "bench.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command_line(("bench", "--redis", url, *args)), cwd=directory, env=environment(),
            stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
        )  # fmt: skip
    try:
        yield process, log
    finally:
        end_process(process)


def with_password(url: str) -> str:
    return url.replace("redis://", f"redis://app:{SECRET}@")


def allow(client: redis.Redis, *rights: str) -> None:
    words = ("ACL", "SETUSER", "app", "on", f">{SECRET}", "~*", "&*", "+@all", *rights)
    client.execute_command(*words)  # type: ignore[no-untyped-call]


@pytest.mark.usefixtures("theirs")
def test_a_table_with_ratios_and_what_is_done_to_the_server(cli: Cli, redis_url: str) -> None:
    done = cli("bench", "--redis", redis_url, *SMALL)
    assert done.code == 0, done.err
    rows = {line.split()[0]: line.split() for line in done.out.splitlines() if line.strip()}
    assert set(MEASURED) < set(rows)
    assert "worker / raw_loop" in done.out
    assert "every result was checked, and right" in done.out
    assert "2,000 events" in done.out
    assert "loads that server as hard as it can" in done.err
    assert re.search(r"creates a stream of 2,700 events and as many keys at a time, about [\d.]+ MiB", done.err)


@pytest.mark.usefixtures("theirs")
def test_json_has_a_row_for_each_case(cli: Cli, redis_url: str) -> None:
    done = cli("bench", "--redis", redis_url, "--json", *SMALL)
    assert done.code == 0, done.err
    rows = {row["case"]: row for row in done.json}
    assert {case: {name for name in FIGURES if row[name] is not None} for case, row in rows.items()} == MEASURED
    for case, row in rows.items():
        assert set(row["least_most"]) == MEASURED[case]
        assert all(row["least_most"][name][0] <= row[name] <= row["least_most"][name][1] for name in MEASURED[case])
        assert (row["problems"], row["events"], row["rounds"]) == ([], 2_000, 1)
    assert rows["worker"]["base"] == "raw_loop"
    assert set(rows["worker"]["ratios"]) == set(FIGURES)
    assert rows["raw_loop"]["ratios"] == {}
    assert rows["worker"]["server"].startswith(("valkey ", "redis "))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "standalone"])
def test_it_works_behind_sentinels_and_on_a_cluster(
    cli: Cli, server_kind: str, tmp_path_factory: pytest.TempPathFactory, kind: str
) -> None:
    with open_place(kind, server_kind, tmp_path_factory.mktemp(kind)) as place:
        done = cli("bench", "--redis", place.url, "--json", *SMALL)
        assert done.code == 0, done.err
        rows = {row["case"]: row for row in done.json}
        assert {case: {name for name in FIGURES if row[name] is not None} for case, row in rows.items()} == MEASURED
        with place.client() as client:
            assert list(client.scan_iter("*")) == []


@pytest.mark.usefixtures("theirs")
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_ended_by_a_signal_it_leaves_nothing(
    redis_url: str, client: redis.Redis, tmp_path: Path, sign: signal.Signals
) -> None:
    with started(redis_url, tmp_path) as (process, log):
        wait_until(lambda: client.keys("{streamlib-bench-*:idem:*"), 60, what="events are being handled")
        process.send_signal(sign)
        assert process.wait(60) == 128 + sign
    told = log.read_text()
    assert f"ended by {sign.name}" in told
    assert "Traceback" not in told


@pytest.mark.usefixtures("theirs")
def test_broken_off_it_leaves_nothing(redis_url: str, client: redis.Redis, tmp_path: Path) -> None:
    with started(redis_url, tmp_path) as (process, log):
        wait_until(lambda: "round 1" in log.read_text(), 60, what="the first round begins")
        wait_until(lambda: client.keys("{streamlib-bench-*:idem:*"), 60, what="events are being handled")
        client.client_kill_filter(_type="normal", skipme=True)
        client.client_pause(2_500)  # longer than a reply may take
        assert process.wait(90) == 3
    told = log.read_text()
    assert "not reachable" in told
    assert "Traceback" not in told


def test_killed_it_leaves_nothing_that_lasts(redis_url: str, client: redis.Redis, tmp_path: Path) -> None:
    with started(redis_url, tmp_path) as (process, log):
        wait_until(lambda: "round 1" in log.read_text(), 60, what="the first round begins")
        wait_until(lambda: client.keys("{streamlib-bench-*:idem:*"), 60, what="events are being handled")
        process.kill()
        process.wait()
    names = list(client.scan_iter())
    assert len(names) > 100
    lasting = [name for name in names if client.ttl(name) < 0]
    assert [name for name in lasting if not name.endswith(b":workers")] == []


@pytest.mark.usefixtures("theirs")
def test_a_wrong_result_is_a_failure_and_no_figure(tmp_path: Path, redis_url: str) -> None:
    words = [sys.executable, "-c", WRONG, "bench", "--redis", redis_url, "--json", *SMALL]
    done = subprocess.run(
        words, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "worker: wrong result, nothing that was measured counts: without a done mark: 3, expected 0" in done.stderr
    rows = {row["case"]: row for row in json.loads(done.stdout)}
    assert rows["worker"]["problems"] == ["without a done mark: 3, expected 0"]
    assert all(row[name] is None for row in rows.values() for name in FIGURES)


# --- servers that are not fit


def test_a_missing_right_is_named_before_anything_is_made(cli: Cli, own_server: Callable[..., RedisProc]) -> None:
    server = own_server()
    with server.client() as client:
        allow(client, "-xack", "-hset")
        done = cli("bench", "--redis", with_password(server.url), *SMALL)
        assert done.code == 3
        assert re.search(r"denies its user XACK, HSET \(.*\); a worker needs that\. Grant it", done.err)
        assert "~*streamlib-bench-*" in done.err
        assert SECRET not in done.err + done.out
        allow(client, "-unlink")
        done = cli("bench", "--redis", with_password(server.url), *SMALL)
        assert done.code == 3
        assert "denies its user UNLINK" in done.err
        assert client.dbsize() == 0


def test_the_keys_that_it_names_are_all_that_it_needs(cli: Cli, own_server: Callable[..., RedisProc]) -> None:
    server = own_server()
    with server.client() as client:
        allow(client, "resetkeys", "~shop:*")
        done = cli("bench", "--redis", with_password(server.url), *SMALL)
        assert done.code == 3
        assert "denies its user UNLINK" in done.err
        allow(client, "resetkeys", "~*streamlib-bench-*", "-@dangerous")
        done = cli("bench", "--redis", with_password(server.url), "--json", *SMALL)
        assert done.code == 0, done.err
        assert "INFO is denied: what the server spends is not known" in done.err
        rows = {row["case"]: row for row in done.json}
        assert rows["worker"]["events_per_second"] > 0
        assert rows["worker"]["server_us"] is None
        assert SECRET not in done.err + done.out
        assert client.dbsize() == 0


@pytest.mark.parametrize(
    ("conf", "code", "told"),
    [
        ({"maxmemory": "8mb"}, 5, "take fewer --events, or raise maxmemory"),
        ({"maxmemory-policy": "allkeys-lru"}, 1, "set noeviction"),
    ],
    ids=["no room", "evicts"],
)
def test_a_server_that_would_suffer_is_refused(
    cli: Cli, own_server: Callable[..., RedisProc], conf: dict[str, str], code: int, told: str
) -> None:
    server = own_server(conf=conf)
    done = cli("bench", "--redis", server.url)
    assert (done.code, told in done.err) == (code, True), done.err
    with server.client() as client:
        assert client.dbsize() == 0


def test_no_redis_is_said_at_once_and_without_its_password(cli: Cli) -> None:
    done = cli("bench", "--redis", f"redis://app:{SECRET}@127.0.0.1:1/0")
    assert done.code == 3
    assert "127.0.0.1:1" in done.err
    assert SECRET not in done.err
    assert "Traceback" not in done.err
