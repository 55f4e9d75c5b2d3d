"""`streamlib groups rm`: what a group owes is in a file before it goes; who works is in the way; nothing stays."""

import base64
import json
import os
import pty
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis

from tests.cli.conftest import Cli, Result, command_line, environment
from tests.helpers.waiting import wait_until
from tests.helpers.workers import WorkerProc

Move = Callable[..., None]
Verb = Callable[..., Result]


@pytest.fixture
def rm(cli: Cli, redis_url: str) -> Verb:
    return lambda *args: cli("groups", "rm", *args, "--redis", redis_url)


@pytest.fixture
def indebted(cli: Cli, bank: Path, move: Move, redis_url: str) -> Path:
    """The bank's directory; audit has one event pending, one scheduled, one dead, two done and two not delivered."""
    move(a=13, b=14, c=15, d=1, e=2)
    with WorkerProc("bank:app", redis_url, "--group", "audit", cwd=bank) as worker:
        worker.wait_ready()
        wait_until(lambda: counts(cli, redis_url) == (1, 1, 1, 0))
        worker.kill9()
    move(f=3, g=4)
    return bank


def counts(cli: Cli, redis_url: str, group: str = "audit") -> tuple[int, int, int, int] | None:
    found = [one for one in cli("groups", "ls", "--json", "--redis", redis_url).json if one["group"] == group]
    return next(((one["pending"], one["retrying"], one["dead"], one["lag"]) for one in found), None)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def left(client: redis.Redis, group: str) -> list[str]:
    """What names the group in Redis, registry and consumer groups included."""
    keys = [key.decode() for key in client.scan_iter("*") if f":{group}" in key.decode()]
    registry: list[Any] = [client.hkeys(key) for key in ("streamlib:topics", "streamlib:views")]
    fields = [field.decode() for names in registry for field in names]
    streams: list[Any] = [client.xinfo_groups(stream) for stream in ("moves.0", "moves.1")]
    named = [row["name"].decode() for rows in streams for row in rows]
    return keys + [field for field in fields if field == f"moves:{group}"] + [name for name in named if name == group]


@pytest.mark.row(61)
def test_what_is_owed_is_archived_and_nothing_stays(
    rm: Verb, cli: Cli, indebted: Path, redis_url: str, client: redis.Redis
) -> None:
    forget_workers(client)
    dry = rm("moves", "audit", "--dry-run", "--json").json
    assert (dry["would_archive"], dry["pending"], dry["retrying"], dry["dead"], dry["undelivered"]) == (3, 1, 1, 1, 2)
    refused = rm("moves", "audit")
    assert refused.code == 5
    assert "1 pending and 1 retrying events and 1 dead letters" in refused.err
    assert "2 events that it has not got yet" in refused.err
    assert counts(cli, redis_url) == (1, 1, 1, 2), "neither has changed anything"
    assert list(indebted.glob("*.jsonl")) == []
    assert left(client, "audit")
    done = rm("moves", "audit", "--yes", "--json")
    assert done.code == 0, done.err
    (file,) = indebted.glob("moves.audit.*.jsonl")
    assert (done.json["archived"], done.json["archive"]) == (3, file.name)
    assert left(client, "audit") == []
    assert left(client, "ledger"), "the other groups are as they were"
    owed = {one["event"]["data"]["account"]: one for one in lines(file)}
    assert {account: one["state"] for account, one in owed.items()} == {"a": "retry", "b": "dead", "c": "pending"}
    assert {(one["topic"], one["group"]) for one in owed.values()} == {("moves", "audit")}
    assert owed["a"]["attempts"] == 1
    assert owed["a"]["due_ms"] > 0
    assert (owed["b"]["reason"], owed["b"]["error"]) == ("rejected", "Reject: never")
    assert rm("moves", "audit", "--yes").code == 4


def test_the_archive_can_be_published_again(rm: Verb, cli: Cli, indebted: Path, redis_url: str) -> None:
    assert rm("moves", "audit", "--yes", "--force", "--archive", "owed.jsonl").code == 0
    events = "\n".join(json.dumps(one["event"]) for one in lines(indebted / "owed.jsonl"))
    done = cli("publish", "bank:app", "moves", "--json", "--redis", redis_url, stdin=events)
    assert (done.code, done.json["published"]) == (0, 3), done.err


def test_live_workers_are_in_the_way_and_named(
    rm: Verb, cli: Cli, bank: Path, move: Move, redis_url: str, client: redis.Redis
) -> None:
    move(a=1)
    with WorkerProc("bank:app", redis_url, cwd=bank) as worker:
        worker.wait_ready()
        wait_until(lambda: counts(cli, redis_url) == (0, 0, 0, 0))
        refused = rm("moves", "audit", "--yes")
        assert refused.code == 5
        assert f"pid {worker.pid}" in refused.err
        assert "--force" in refused.err
        assert rm("moves", "audit", "--dry-run", "--json").json["workers"]
        assert counts(cli, redis_url) == (0, 0, 0, 0)
        worker.stop()
        forced = rm("moves", "audit", "--yes", "--force", "--json")
        assert (forced.code, forced.json["archived"], forced.json["archive"]) == (0, 0, None)
        assert "whoever runs on makes the group again" in forced.err
        assert left(client, "audit") == []
        worker.kill9()
    assert list(bank.glob("*.jsonl")) == [], "nothing was owed: there is no file"


def test_a_file_that_exists_or_cannot_be_written_stops_it(
    rm: Verb, cli: Cli, indebted: Path, redis_url: str, client: redis.Redis
) -> None:
    forget_workers(client)
    (indebted / "old.jsonl").write_text("precious\n")
    exists = rm("moves", "audit", "--yes", "--archive", "old.jsonl")
    assert (exists.code, "old.jsonl exists" in exists.err) == (5, True)
    assert (indebted / "old.jsonl").read_text() == "precious\n"
    nowhere = rm("moves", "audit", "--yes", "--archive", "no/such/directory/file.jsonl")
    assert (nowhere.code, "nothing was deleted" in nowhere.err) == (1, True)
    command = command_line(["groups", "rm", "moves", "audit", "--yes", "--archive", "full.jsonl", "--redis", redis_url])
    full = subprocess.run(
        ["bash", "-c", f"ulimit -f 0; exec {shlex.join(command)}"], cwd=indebted, env=environment(),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert full.returncode == 1, full.stderr
    assert "cannot write the archive full.jsonl" in full.stderr
    assert not (indebted / "full.jsonl").exists(), "half an archive would be taken for a whole one"
    assert counts(cli, redis_url) == (1, 1, 1, 2)


def test_it_can_be_run_again_after_it_broke_off(rm: Verb, indebted: Path, client: redis.Redis) -> None:
    forget_workers(client)
    client.xgroup_destroy("moves.0", "audit")
    client.unlink("{moves.0}:again:audit", "{moves.0}:retry:audit", "{moves.0}:retrybody:audit", "{moves.0}:dead:audit")
    done = rm("moves", "audit", "--yes", "--json")
    assert done.code == 0, done.err
    assert left(client, "audit") == []
    assert {one["partition"] for one in lines_of(indebted)} <= {1}


def lines_of(directory: Path) -> list[dict[str, Any]]:
    return [one for file in directory.glob("moves.audit.*.jsonl") for one in lines(file)]


def test_a_projection_goes_with_its_rows(
    rm: Verb, cli: Cli, bank: Path, move: Move, redis_url: str, client: redis.Redis
) -> None:
    move(a=1, b=2, c=3)
    assert cli("run", "bank:app", "--burst", "--no-http", "--redis", redis_url).code == 0
    assert list(client.scan_iter("*:view:balances:*"))
    assert client.hexists("streamlib:views", "moves:balances")
    refused = rm("moves", "balances")
    assert (refused.code, "with all rows of the view" in refused.err) == (5, True)
    done = rm("moves", "balances", "--yes", "--json").json
    assert done["keys_deleted"] >= 3
    assert left(client, "balances") == []
    assert cli("run", "bank:app", "--burst", "--no-http", "--redis", redis_url).code == 0
    assert list(client.scan_iter("*:view:balances:*:row:*")), "an app that declares it builds it anew"


def test_a_halted_ordered_group_is_archived_with_what_waits(
    rm: Verb, cli: Cli, bank: Path, move: Move, redis_url: str, client: redis.Redis
) -> None:
    move(bad=-1)
    move(bad=1)
    with WorkerProc("bank:app", redis_url, "--group", "ledger", cwd=bank) as worker:
        worker.wait_ready()
        wait_until(lambda: counts(cli, redis_url, "ledger") == (2, 0, 0, 0))
        wait_until(lambda: cli("keys", "ls", "--halted", "--json", "--redis", redis_url).json)
        worker.term()
        worker.wait()
    assert rm("moves", "ledger", "--yes", "--archive", "owed.jsonl").code == 0
    assert [(one["state"], one["event"]["data"]["n"]) for one in lines(bank / "owed.jsonl")] == [
        ("pending", -1), ("pending", 1),
    ]  # fmt: skip
    assert left(client, "ledger") == []


@pytest.mark.allow_keys("*")
def test_what_is_no_event_of_ours_is_archived_byte_by_byte(rm: Verb, bank: Path, client: redis.Redis) -> None:
    client.hset("streamlib:topics", mapping={"moves": "1", "moves:audit": "handler"})
    number = '{"n": 1.00000000000000000000000001,\n "m": 12345678901234567890123}'
    ours: dict[Any, Any] = {"id": "e-1", "type": "T", "v": "1", "key": "k", "data": number, "h": '{"a":"b"}'}
    packed: dict[Any, Any] = {"id": "e-2", "type": "T", "v": "1", "key": "k", "data": msgspec.msgpack.encode({"n": 1})}
    odd: dict[Any, Any] = {b"\xff\x00": b"\xfe\n"}
    client.xgroup_create("moves", "audit", "0", mkstream=True)
    for fields in (ours, packed, odd, ours):
        client.xadd("moves", fields)
    client.xreadgroup("audit", "w", {"moves": ">"}, count=3)
    client.xadd("{moves}:again:audit", {"id": "e-9", "body": "?"})
    client.hset("{moves}:retrybody:audit", "e-8", b"\xff")
    client.zadd("{moves}:retry:audit", {"e-7": 5, "e-8": 6})
    client.xadd("{moves}:dead:audit", {"who": "knows"})
    entries: Any = client.xrange("moves")
    client.xdel("moves", entries[0][0])
    done = rm("moves", "audit", "--yes", "--archive", "all.jsonl")
    assert done.code == 0, done.err
    found = lines(bank / "all.jsonl")
    assert [one["state"] for one in found] == ["pending", "pending", "pending", "retry", "retry", "again", "dead"]
    assert found[0]["event"] is None
    assert "fields_base64" not in found[0], "somebody deleted the entry: there is nothing to archive"
    assert decoded(found[1])[-1] == packed["data"]
    assert decoded(found[2]) == [b"\xff\x00", b"\xfe\n"]
    assert [found[3]["event_id"], found[4]["event_id"]] == ["e-7", "e-8"]
    assert decoded(found[4])[-1] == b"\xff"
    assert decoded(found[6]) == [b"who", b"knows"]


@pytest.mark.allow_keys("*")
def test_numbers_keep_every_digit_and_a_line_is_one_line(rm: Verb, bank: Path, client: redis.Redis) -> None:
    client.hset("streamlib:topics", mapping={"moves": "1", "moves:audit": "handler"})
    client.xgroup_create("moves", "audit", "0", mkstream=True)
    data = '{"n": 1.00000000000000000000000001,\n "m": 12345678901234567890123}'
    client.xadd("moves", {"id": "e-1", "type": "T", "v": "3", "key": "k", "data": data, "h": '{"a":"b"}', "ts": "5"})
    client.xreadgroup("audit", "w", {"moves": ">"})
    assert rm("moves", "audit", "--yes", "--archive", "all.jsonl").code == 0
    (text,) = (bank / "all.jsonl").read_text().splitlines()
    assert '"data":{"n":1.00000000000000000000000001,"m":12345678901234567890123}' in text
    (one,) = lines(bank / "all.jsonl")
    assert {name: one["event"][name] for name in ("type", "version", "id", "key")} == {
        "type": "T", "version": 3, "id": "e-1", "key": "k",
    }  # fmt: skip
    assert (one["envelope"]["headers"], one["envelope"]["time_ms"]) == ({"a": "b"}, 5)


@pytest.mark.parametrize(("answer", "code"), [("n\n", 5), ("y\n", 0)])
def test_it_asks_at_a_terminal(
    bank: Path, move: Move, redis_url: str, client: redis.Redis, answer: str, code: int
) -> None:
    move(a=1)
    mine, its = pty.openpty()
    try:
        os.write(mine, answer.encode())
        done = subprocess.run(
            command_line(["groups", "rm", "moves", "audit", "--redis", redis_url]), cwd=bank, env=environment(),
            stdin=its, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    finally:
        os.close(mine)
        os.close(its)
    assert done.returncode == code, done.stderr
    assert "remove group audit (handler) of topic moves for good" in done.stderr
    assert bool(left(client, "audit")) is (code == 5)


def forget_workers(client: redis.Redis) -> None:
    """A killed worker counts as living for most of a lease: as if that had passed."""
    client.delete("streamlib:workers")


def decoded(one: dict[str, Any]) -> list[bytes]:
    return [base64.b64decode(part) for part in one["fields_base64"]]
