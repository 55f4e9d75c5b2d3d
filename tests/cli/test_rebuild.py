"""`streamlib rebuild`: a view anew from its topic, and what it refuses."""

from __future__ import annotations

import os
import pty
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.cli.conftest import Cli, Result, command_line, environment
from tests.helpers.processes import end_process
from tests.helpers.waiting import wait_until
from tests.helpers.workers import WorkerProc

Move = Callable[..., None]
Verb = Callable[..., Result]
VIEWS = "streamlib:views"


@pytest.fixture
def rebuild(cli: Cli, bank: Path, redis_url: str) -> Verb:
    return lambda *args: cli("rebuild", "bank:app", *args, "--redis", redis_url)


@pytest.fixture
def built(cli: Cli, move: Move, redis_url: str) -> None:
    """Three accounts, projected by a worker that has ended."""
    move(a=1, b=2, c=3)
    move(a=10)
    assert cli("run", "bank:app", "--group", "balances", "--burst", "--no-http", "--redis", redis_url).code == 0


def row(client: redis.Redis, account: str, generation: int) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for partition in (0, 1):
        stored: Any = client.hgetall(f"{{moves.{partition}}}:view:balances:{generation}:row:{account}")
        found |= stored
    return found


def of_generation(client: redis.Redis, generation: int) -> list[bytes]:
    group = "balances" if generation == 1 else f"balances.g{generation}"
    patterns = [f"*:view:balances:{generation}*", f"*:idem:{group}:*", f"*:owner:{group}", f"*group:moves:{group}"]
    return sorted(key for pattern in patterns for key in client.scan_iter(pattern, count=1_000))


@pytest.mark.usefixtures("built")
def test_a_view_is_built_anew_switched_rolled_back_and_the_old_one_deleted(rebuild: Verb, client: redis.Redis) -> None:
    dry = rebuild("balances", "--dry-run", "--json").json
    assert (dry["generation"], dry["goes_on"], dry["events"]) == (2, False, 4)
    assert of_generation(client, 2) == [], "a dry run writes nothing"
    done = rebuild("balances", "--json").json
    assert (done["generation"], done["live"], done["kept"], done["switched"], done["events"]) == (2, 2, 1, True, 4)
    assert (done["equal"], done["rows"], done["rows_before"]) == (True, 3, 3)
    assert done["checksum"] == done["checksum_before"]
    assert client.hgetall(VIEWS) == {b"moves:balances": b"2", b"moves:balances:kept": b"1"}
    assert row(client, "a", 2) == {b"account": b"a", b"total": b"11"}
    listed = rebuild("--list", "--json").json
    told = [(one["generation"], one["role"], one["rows"], one["behind"]) for one in listed]
    assert told == [(1, "kept", 3, 0), (2, "live", 3, 0)]
    kept = rebuild("balances")
    assert (kept.code, "--drop" in kept.err) == (5, True)
    assert rebuild("balances", "--rollback").code == 5, "nobody is there to ask"
    assert rebuild("balances", "--rollback", "--yes", "--json").json["live"] == 1
    assert rebuild("balances", "--rollback", "--yes", "--json").json["live"] == 2
    assert rebuild("balances", "--drop", "--yes", "--json").json["keys_deleted"] >= 3
    assert of_generation(client, 1) == []
    assert client.hgetall(VIEWS) == {b"moves:balances": b"2"}
    assert rebuild("balances", "--drop", "--yes").code == 4
    assert rebuild("balances", "--rollback", "--yes").code == 5


@pytest.mark.usefixtures("built")
def test_workers_start_after_the_first_generation_is_gone_and_do_not_bring_it_back(
    rebuild: Verb, cli: Cli, move: Move, redis_url: str, client: redis.Redis
) -> None:
    assert rebuild("balances").code == 0
    assert rebuild("balances", "--drop", "--yes").code == 0
    move(a=100)
    assert cli("run", "bank:app", "--group", "balances", "--burst", "--no-http", "--redis", redis_url).code == 0
    assert row(client, "a", 2)[b"total"] == b"111"
    assert of_generation(client, 1) == []
    groups = [one["group"] for one in cli("groups", "ls", "moves", "--json", "--redis", redis_url).json]
    assert groups == ["audit", "balances.g2", "ledger"]


@pytest.mark.usefixtures("built")
def test_running_workers_feed_what_is_live_and_what_is_kept(
    rebuild: Verb, bank: Path, move: Move, redis_url: str, client: redis.Redis
) -> None:
    env = {"STREAMLIB_WORKER_LEASE_MS": "1500"}
    with WorkerProc("bank:app", redis_url, "--group", "balances", cwd=bank, env=env) as worker:
        worker.wait_ready()
        assert rebuild("balances").code == 0
        move(a=100, b=100)
        for generation in (1, 2):
            wait_until(lambda g=generation: row(client, "a", g)[b"total"] == b"111", what="both are fed")  # type: ignore[misc]
        assert rebuild("balances", "--rollback", "--yes").code == 0
        assert rebuild("balances", "--drop", "--yes").code == 0
        assert of_generation(client, 2) == []
        move(a=1000)
        wait_until(lambda: row(client, "a", 1)[b"total"] == b"1111", what="what is left is fed")
        assert of_generation(client, 2) == [], "the worker has left it"


@pytest.mark.usefixtures("built")
def test_rows_that_could_not_be_compared_need_a_yes_too(rebuild: Verb, move: Move, client: redis.Redis) -> None:
    """No worker feeds the live generation: the row is another one there, and nothing says that it was right."""
    move(a=5)
    asked = rebuild("balances")
    assert (asked.code, "1 changed too often to be compared" in asked.err) == (5, True), asked.err
    assert client.hget(VIEWS, "moves:balances") == b"1"
    assert rebuild("balances", "--yes", "--json").json["changing"] == 1
    assert row(client, "a", 2) == {b"account": b"a", b"total": b"16"}


@pytest.mark.usefixtures("built")
def test_rows_that_differ_are_told_and_need_a_yes(rebuild: Verb, client: redis.Redis) -> None:
    partition = 0 if client.exists("{moves.0}:view:balances:1:row:a") else 1
    client.hset(f"{{moves.{partition}}}:view:balances:1:row:a", "total", "12")
    refused = rebuild("balances")
    assert refused.code == 5
    assert "1 rows differ" in refused.err
    assert "for example a" in refused.err
    assert client.hget(VIEWS, "moves:balances") == b"1"
    strict = rebuild("balances", "--yes", "--require-equal")
    assert (strict.code, "going on" in strict.err) == (5, True)
    done = rebuild("balances", "--yes", "--json").json
    assert (done["equal"], done["differing"], done["switched"]) == (False, 1, True)
    assert row(client, "a", 2)[b"total"] == b"11"


@pytest.mark.usefixtures("built")
def test_other_code_starts_over_and_the_same_goes_on(rebuild: Verb, bank: Path, client: redis.Redis) -> None:
    first = rebuild("balances", "--no-switch", "--json")
    assert (first.json["switched"], first.json["live"]) == (False, 1)
    assert rebuild("balances", "--dry-run", "--json").json["goes_on"]
    source = bank / "bank.py"
    source.write_text(source.read_text().replace("+ event.n)", "+ 2 * event.n)"))
    assert rebuild("balances", "--dry-run", "--json").json["starts_over"]
    done = rebuild("balances", "--yes")
    assert (done.code, "starting over" in done.err) == (0, True)
    assert row(client, "a", 2)[b"total"] == b"22"
    assert row(client, "a", 1)[b"total"] == b"11", "what is kept is as it was"


@pytest.mark.usefixtures("built")
def test_one_that_was_begun_can_be_abandoned(rebuild: Verb, client: redis.Redis) -> None:
    assert rebuild("balances", "--no-switch").code == 0
    assert [one["role"] for one in rebuild("--list", "--json").json] == ["live", "building"]
    assert rebuild("balances", "--abandon", "--dry-run", "--json").json["generation"] == 2
    assert rebuild("balances", "--abandon").code == 5
    assert rebuild("balances", "--abandon", "--yes").code == 0
    assert of_generation(client, 2) == []
    assert client.hgetall(VIEWS) == {b"moves:balances": b"1"}
    assert rebuild("balances", "--abandon", "--yes").code == 4


@pytest.mark.usefixtures("built")
def test_a_second_rebuild_at_once_is_refused(rebuild: Verb, bank: Path, redis_url: str, client: redis.Redis) -> None:
    partition = 0 if client.exists("{moves.0}:view:balances:1:row:a") else 1
    client.hset(f"{{moves.{partition}}}:view:balances:1:row:a", "total", "12")
    mine, its = pty.openpty()
    asking = subprocess.Popen(
        command_line(["rebuild", "bank:app", "balances", "--redis", redis_url]), cwd=bank,
        env=environment({"STREAMLIB_WORKER_LEASE_MS": "2000"}), stdin=its, stdout=its, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert asking.stderr is not None
        wait_until(lambda: b"Really" in os.read(asking.stderr.fileno(), 65_536), what="it asks")  # type: ignore[union-attr]
        second = rebuild("balances", "--yes")
        assert second.code == 5
        assert f"is being rebuilt by rebuild-{os.uname().nodename}-{asking.pid}" in second.err
        third = rebuild("balances", "--restart", "--yes")
        assert (third.code, "is being rebuilt" in third.err) == (5, True)
        os.write(mine, b"y\n")
        assert asking.wait(30) == 0
    finally:
        end_process(asking)
        if asking.stderr is not None:
            asking.stderr.close()
        os.close(mine)
        os.close(its)
    assert row(client, "a", 2)[b"total"] == b"11"


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("how", ["trimmed", "deleted"])
def test_a_topic_that_lost_entries_is_refused(rebuild: Verb, client: redis.Redis, how: str) -> None:
    stream = max(("moves.0", "moves.1"), key=lambda name: int(client.xlen(name)))
    if how == "trimmed":
        client.xtrim(stream, maxlen=1, approximate=False)
    else:
        entries: Any = client.xrange(stream)
        client.xdel(stream, entries[0][0])
    refused = rebuild("balances")
    assert refused.code == 5
    assert "trimmed or deleted" in refused.err
    assert "--from-aggregates" in refused.err
    assert of_generation(client, 2) == []
    assert client.hgetall(VIEWS) == {b"moves:balances": b"1"}


@pytest.mark.usefixtures("built")
def test_a_group_of_somebody_else_is_left_alone(rebuild: Verb, cli: Cli, redis_url: str, client: redis.Redis) -> None:
    assert cli("groups", "create", "moves", "balances.g2", "--redis", redis_url).code == 0
    refused = rebuild("balances")
    assert (refused.code, "has a group 'balances.g2'" in refused.err) == (5, True)
    assert client.hgetall(VIEWS) == {b"moves:balances": b"1"}
    assert client.hget("streamlib:topics", "moves:balances.g2") == b"handler"


def test_what_is_not_there_is_not_found(rebuild: Verb, built: None) -> None:
    unknown = rebuild("nonsense")
    assert (unknown.code, "it has balances" in unknown.err) == (4, True)
    assert rebuild().code == 2
    assert rebuild("balances", "--drop", "--rollback").code == 2


def test_a_topic_that_is_not_there_is_not_found(rebuild: Verb, client: redis.Redis) -> None:
    missing = rebuild("balances")
    assert (missing.code, "nothing was published" in missing.err) == (4, True)
    assert client.dbsize() == 0


@pytest.mark.usefixtures("built")
def test_groups_rm_takes_a_view_as_a_whole(rebuild: Verb, cli: Cli, redis_url: str, client: redis.Redis) -> None:
    assert rebuild("balances").code == 0
    client.delete("streamlib:workers")
    refused = cli("groups", "rm", "moves", "balances", "--yes", "--redis", redis_url)
    assert (refused.code, "rebuild APP balances --drop" in refused.err) == (5, True)
    done = cli("groups", "rm", "moves", "balances.g2", "--yes", "--redis", redis_url)
    assert done.code == 0, done.err
    assert of_generation(client, 1) + of_generation(client, 2) == []
    assert not client.exists(VIEWS)
    groups = [one["group"] for one in cli("groups", "ls", "moves", "--json", "--redis", redis_url).json]
    assert groups == ["audit", "ledger"]
