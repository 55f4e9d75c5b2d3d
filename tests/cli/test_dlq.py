"""`streamlib dlq`: from a real worker's dead letters to their replay or end."""

import getpass
import json
import os
import pty
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis

from streamlib.redisio.dead_letter import Failure, dead_letter_fields
from tests.cli.conftest import Cli, Result, command_line, environment

LS_FIELDS = {
    "id", "topic", "partition", "group", "event_id", "type", "reason", "error", "attempts", "at", "fingerprint",
    "replays",
}  # fmt: skip
BAD = [f'{{"type":"OrderCreated","data":{{"order_id":"o-{n}","total":-1}},"id":"e-{n}"}}' for n in range(5)]


@pytest.fixture
def dlq(cli: Cli, redis_url: str) -> Callable[..., Result]:
    """`dlq("ls", ...)`, on a Redis in which the group email has given up on e-0 to e-4."""
    published = cli("publish", "shop:app", "orders", "--redis", redis_url, stdin="\n".join(BAD))
    assert published.code == 0, published.err
    run_burst(cli, redis_url)
    return lambda *args: cli("dlq", *args, "--redis", redis_url)


def run_burst(cli: Cli, redis_url: str) -> None:
    done = cli("run", "shop:app", "--burst", "--no-http", "--redis", redis_url)
    assert done.code == 0, done.err


def ids(dlq: Callable[..., Result]) -> list[str]:
    return [row["id"] for row in dlq("ls", "--json").json]


def test_ls_has_the_promised_shape(dlq: Callable[..., Result]) -> None:
    rows = dlq("ls", "--json").json
    assert len(rows) == 5
    assert all(rows[0].keys() == LS_FIELDS for row in rows)
    assert {row["event_id"] for row in rows} == {f"e-{n}" for n in range(5)}
    assert {(row["topic"], row["group"], row["type"], row["reason"], row["attempts"]) for row in rows} == {
        ("orders", "email", "OrderCreated", "rejected", 1)
    }
    assert len({row["id"] for row in rows}) == 5
    assert len({row["fingerprint"] for row in rows}) <= 5
    table = dlq("ls")
    assert all(row["id"] in table.out for row in rows)


def test_filters_and_limit(dlq: Callable[..., Result]) -> None:
    assert len(dlq("ls", "--json", "--limit", "2").json) == 2
    assert "--limit shows more" in dlq("ls", "--limit", "2").err
    assert len(dlq("ls", "--json", "--error", "total of o-3").json) == 1
    assert dlq("ls", "--json", "--type", "OrderPaid").json == []
    assert dlq("ls", "--json", "--until", "1h").json == []
    assert len(dlq("ls", "--json", "--since", "1h").json) == 5
    assert dlq("ls", "--since", "yesterday").code == 2
    assert dlq("ls", "--topic", "order").code == 4
    assert dlq("ls", "--group", "mail").code == 4


def test_groups_count_causes(dlq: Callable[..., Result]) -> None:
    causes = dlq("groups", "--json").json
    assert sum(cause["count"] for cause in causes) == 5
    assert causes[0]["sample_id"] in ids(dlq)


def test_show_tells_everything(dlq: Callable[..., Result]) -> None:
    one = ids(dlq)[0]
    full = dlq("show", one, "--json").json
    assert full["data"]["total"] == -1
    assert full["error"].startswith("Reject: negative total of o-")
    assert "shop.py" in full["traceback"]
    assert full["version"] == 1
    assert full["key"].startswith("o-")
    assert one in dlq("show", one).out


def test_replay_by_id_and_by_filter_runs_them_again(dlq: Callable[..., Result], cli: Cli, redis_url: str) -> None:
    first, *rest = ids(dlq)
    assert dlq("replay", first, "--json").json == {"replayed": 1, "done": 0, "busy": 0, "refused": 0}
    assert sorted(ids(dlq)) == sorted(rest)
    assert dlq("replay", first).code == 4
    assert dlq("replay", "--group", "email", "--dry-run", "--json").json["would_replay"] == 4
    assert len(ids(dlq)) == 4
    assert dlq("replay", "--group", "email", "--json").json["replayed"] == 4
    assert ids(dlq) == []
    run_burst(cli, redis_url)
    rows = dlq("ls", "--json").json
    assert {row["event_id"] for row in rows} == {f"e-{n}" for n in range(5)}
    assert {row["attempts"] for row in rows} == {1}


def test_replayed_events_that_succeed_are_done(
    dlq: Callable[..., Result], cli: Cli, shop: Path, redis_url: str, client: redis.Redis
) -> None:
    source = (shop / "shop.py").read_text()
    (shop / "shop.py").write_text(source.replace("if event.total < 0:", "if event.total < -1:"))
    assert dlq("replay", "--yes").code == 0
    run_burst(cli, redis_url)
    assert ids(dlq) == []
    [info] = cli("info", "orders", "--json", "--redis", redis_url).json
    assert info["groups"][0]["retrying"] == 0
    states = [client.get(key) for key in client.scan_iter("*:idem:email:*")]
    assert states == [b"d"] * 5


def test_replay_of_everything_wants_consent(dlq: Callable[..., Result]) -> None:
    refused = dlq("replay")
    assert refused.code == 5
    assert "add --yes" in refused.err
    assert len(ids(dlq)) == 5


def test_what_cannot_be_replayed_stays_and_is_told(dlq: Callable[..., Result], client: redis.Redis) -> None:
    partition = next(one.split("/")[1] for one in ids(dlq))
    events = [row["event_id"] for row in dlq("ls", "--json").json if str(row["partition"]) == partition]
    client.set(f"{{orders.{partition}}}:idem:email:{events[0]}", "d", px=60_000)
    done = dlq("replay", "--yes", "--json")
    assert done.code == 6
    assert done.json == {"replayed": 4, "done": 1, "busy": 0, "refused": 0}
    assert "were completed meanwhile" in done.err
    assert [row["event_id"] for row in dlq("ls", "--json").json] == [events[0]]


def test_letters_of_a_projection_are_refused_with_the_reason(cli: Cli, redis_url: str, client: redis.Redis) -> None:
    client.hset("streamlib:topics", mapping={"orders": "1", "orders:view": "projection"})
    fields = [b"id", b"e-1", b"type", b"T", b"v", b"1", b"key", b"", b"data", b"{}"]
    letter = dead_letter_fields(
        fields, Failure("rejected", "Reject: no"), attempts=1, entry_id="1-1", group="view", consumer="c", at_ms=1
    )
    client.xadd("{orders}:dead:view", dict(zip(letter[::2], letter[1::2], strict=True)), id="5-1")
    done = cli("dlq", "replay", "orders/0/view/5-1", "--redis", redis_url)
    assert done.code == 5
    assert "view is a projection" in done.err
    assert len(cli("dlq", "ls", "--json", "--redis", redis_url).json) == 1


def test_hostile_texts_cannot_steer_the_terminal(cli: Cli, redis_url: str, client: redis.Redis) -> None:
    client.hset("streamlib:topics", mapping={"orders": "1", "orders:email": "handler"})
    evil = "\x1b[2J\x9b31m\r\nid  forged\u202e[bold]"
    fields = [b"id", evil.encode(), b"type", evil.encode(), b"v", b"1", b"key", b"", b"data", evil.encode()]
    letter = dead_letter_fields(
        fields, Failure("rejected", evil, evil), attempts=1, entry_id="1-1", group="email", consumer="c", at_ms=1
    )
    client.xadd("{orders}:dead:email", dict(zip(letter[::2], letter[1::2], strict=True)), id="5-1")
    client.xadd("{orders}:dead:email", {b"\xff\x1b": b"\x00\x1b[31m"}, id="5-2")
    for args in (["ls"], ["ls", "--json"], ["groups"], ["show", "orders/0/email/5-1"], ["show", "orders/0/email/5-2"]):
        done = cli("dlq", *args, "--redis", redis_url)
        assert done.code == 0, done.err
        assert not [char for char in done.out if (ord(char) < 32 and char != "\n") or char in "\x7f\x9b\u202e"]
        assert not [line for line in done.out.split("\n") if line.startswith("id  forged")]


def test_purge_needs_consent_and_says_how(dlq: Callable[..., Result]) -> None:
    refused = dlq("purge", "--group", "email")
    assert refused.code == 5
    assert "refused to delete 5 dead letters" in refused.err
    assert "--yes" in refused.err
    assert dlq("purge", "--dry-run", "--json").json == {"dry_run": True, "would_purge": 5}
    assert len(ids(dlq)) == 5
    one = ids(dlq)[0]
    assert dlq("purge", one, "--yes", "--json").json == {"purged": 1}
    assert dlq("purge", "--error", "o-", "--limit", "1", "--yes", "--json").json == {"purged": 1}
    assert dlq("purge", "--yes", "--json").json == {"purged": 3}
    assert ids(dlq) == []


def test_who_agreed_to_what_is_in_the_log(dlq: Callable[..., Result]) -> None:
    """Before it is done: a purge that breaks off is told too. What was only looked at, or refused, is no act."""
    looked, refused, done = (dlq("purge", *flags, "--log-format", "json") for flags in (["--dry-run"], [], ["--yes"]))
    assert "agreed_to" not in looked.err + refused.err
    [line] = [json.loads(line) for line in done.err.splitlines()]
    assert line["event"] == "agreed_to"
    assert (line["act"], line["asked"]) == ("delete 5 dead letters for good", False)
    assert (line["by"], line["host"]) == (getpass.getuser(), socket.gethostname())


@pytest.mark.parametrize(("answer", "code", "left"), [("n\n", 5, 5), ("y\n", 0, 0)])
def test_purge_asks_at_a_terminal(
    dlq: Callable[..., Result], shop: Path, redis_url: str, answer: str, code: int, left: int
) -> None:
    mine, its = pty.openpty()
    try:
        os.write(mine, answer.encode())
        done = subprocess.run(
            command_line(["dlq", "purge", "--redis", redis_url]), cwd=shop, env=environment(), stdin=its,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    finally:
        os.close(mine)
        os.close(its)
    assert done.returncode == code, done.stderr
    assert "delete 5 dead letters for good?" in done.stderr
    assert ("agreed_to" in done.stderr) is (code == 0)
    assert len(ids(dlq)) == left


@pytest.mark.parametrize("verb", [["show"], ["replay"], ["purge", "--yes"]])
def test_an_unknown_id_is_not_found(dlq: Callable[..., Result], verb: list[str]) -> None:
    for one in ("orders/0/email/1-1", "nonsense"):
        done = dlq(verb[0], one, *verb[1:])
        assert done.code == 4
        assert one in done.err
        assert "streamlib dlq ls" in done.err


def test_ids_and_filters_together_are_a_usage_error(dlq: Callable[..., Result]) -> None:
    assert dlq("replay", ids(dlq)[0], "--group", "email").code == 2
    assert len(ids(dlq)) == 5


def test_one_partition_is_looked_at_replayed_and_purged(dlq: Callable[..., Result]) -> None:
    by_partition = {n: [one for one in ids(dlq) if one.split("/")[1] == n] for n in ("0", "1")}
    assert all(by_partition.values()), "both partitions hold dead letters"
    for number, there in by_partition.items():
        assert {row["id"] for row in dlq("ls", "--partition", number, "--json").json} == set(there)
        causes = dlq("groups", "--partition", number, "--json").json
        assert sum(cause["count"] for cause in causes) == len(there)
    assert dlq("replay", "--partition", "0", "--json").json["replayed"] == len(by_partition["0"])
    assert sorted(ids(dlq)) == sorted(by_partition["1"])
    assert dlq("purge", "--partition", "0", "--yes", "--json").json == {"purged": 0}
    assert dlq("purge", "--partition", "1", "--yes", "--json").json == {"purged": len(by_partition["1"])}
    done = dlq("ls", "--partition", "2")
    assert done.code == 4
    assert "no partition 2 of any topic; the last is 1" in done.err


# --- edit


def test_an_edited_event_runs_with_the_new_data_under_its_own_id(
    dlq: Callable[..., Result], cli: Cli, redis_url: str, client: redis.Redis
) -> None:
    one = dlq("ls", "--json", "--error", "total of o-3").json[0]
    edited = cli(
        "dlq", "edit", one["id"], "-", "--json", "--redis", redis_url, stdin='{"order_id": "o-3",\n "total": 3}'
    )
    assert (edited.code, edited.json) == (0, {"replayed": 1, "done": 0, "busy": 0, "refused": 0}), edited.err
    assert "agreed_to" in edited.err
    assert one["id"] not in ids(dlq)
    run_burst(cli, redis_url)
    assert len(ids(dlq)) == 4
    assert client.get(f"{{orders.{one['partition']}}}:idem:email:e-3") == b"d"
    stored: Any = client.xrange(f"orders.{one['partition']}")
    topic = [fields[b"data"] for _, fields in stored if fields[b"id"] == b"e-3"]
    assert [json.loads(data)["total"] for data in topic] == [-1], "the topic tells what was published"
    gone = cli("dlq", "edit", one["id"], "-", "--redis", redis_url, stdin="{}")
    assert gone.code == 4
    assert one["id"] in gone.err


def test_an_edited_event_that_dies_again_is_a_dead_letter_with_its_new_data(
    dlq: Callable[..., Result], cli: Cli, redis_url: str
) -> None:
    """Numbers keep every digit, and everything but the data stays."""
    one = dlq("ls", "--json", "--error", "total of o-3").json[0]
    before = dlq("show", one["id"], "--json").json
    total = "-" + "9" * 17
    cli("dlq", "edit", one["id"], "-", "--redis", redis_url, stdin=f'{{"order_id": "o-3", "total": {total}}}')
    run_burst(cli, redis_url)
    [again] = dlq("ls", "--json", "--error", "total of o-3").json
    after = dlq("show", again["id"], "--json").json
    assert after["data"] == {"order_id": "o-3", "total": int(total)}
    assert after["replays"] == 1
    kept = ("event_id", "type", "version", "key", "time_ms", "headers", "entry_id", "correlation_id")
    assert [after[name] for name in kept] == [before[name] for name in kept]


def test_data_that_no_event_may_have_are_refused_and_the_dead_letter_stays(
    dlq: Callable[..., Result], cli: Cli, redis_url: str
) -> None:
    [one, *_] = there = ids(dlq)
    wrong = {
        "": "takes a JSON object",
        "{": "takes a JSON object",
        "[1]": "takes a JSON object: Expected `object`",
        '{"order_id": NaN}': "takes a JSON object",
        '{"order_id": "' + "x" * 2_000_000 + '"}': "limits.payload_bytes",
        '{"order_id": ' + "[" * 100 + "]" * 100 + "}": "nest",
    }
    for data, why in wrong.items():
        done = cli("dlq", "edit", one, "-", "--redis", redis_url, stdin=data)
        assert done.code == 1
        assert why in done.err
        assert "agreed_to" not in done.err
    assert ids(dlq) == there


def test_what_cannot_be_edited_is_refused_with_the_reason(cli: Cli, redis_url: str, client: redis.Redis) -> None:
    client.hset("streamlib:topics", mapping={"orders": "1", "orders:view": "projection", "orders:email": "handler"})

    def died(group: str, dead_id: str, data: bytes = b"{}") -> None:
        fields = [b"id", b"e-1", b"type", b"T", b"v", b"1", b"key", b"", b"data", data]
        failure = Failure("rejected", "Reject: no")
        letter = dead_letter_fields(fields, failure, attempts=1, entry_id="1-1", group=group, consumer="c", at_ms=1)
        client.xadd(f"{{orders}}:dead:{group}", dict(zip(letter[::2], letter[1::2], strict=True)), id=dead_id)

    died("view", "5-1")
    died("email", "5-1", msgspec.msgpack.encode({"n": 1}))
    client.xadd("{orders}:dead:email", {"somebody": "else's"}, id="5-2")
    reasons = {"view/5-1": "view is a projection", "email/5-1": "msgpack", "email/5-2": "not written by streamlib"}
    for one, reason in reasons.items():
        done = cli("dlq", "edit", f"orders/0/{one}", "-", "--redis", redis_url, stdin="{}")
        assert done.code == 5
        assert reason in done.err
    assert len(cli("dlq", "ls", "--json", "--redis", redis_url).json) == 3


@pytest.mark.parametrize(
    ("script", "answers", "code", "left"),
    [
        ("sed -i s/-1/1/", "", 0, 4),
        ("true", "", 5, 5),
        ("echo {,, >", "n\n", 1, 5),
        ("test -e tried && sed -i s/.*,,/{}/ $1 || { touch tried; echo {,, > $1; } #", "y\n", 0, 4),
    ],
    ids=["changed", "unchanged", "no JSON", "mended"],
)
def test_an_editor_opens_with_the_data_at_a_terminal(
    dlq: Callable[..., Result], shop: Path, redis_url: str, script: str, answers: str, code: int, left: int
) -> None:
    (shop / "editor").write_text(f"#!/bin/sh\n{script} $1\n")
    (shop / "editor").chmod(0o755)
    one = ids(dlq)[0]
    mine, its = pty.openpty()
    try:
        os.write(mine, answers.encode())
        done = subprocess.run(
            command_line(["dlq", "edit", one, "--redis", redis_url]), cwd=shop, stdin=its, capture_output=True,
            env=environment({"VISUAL": str(shop / "editor")}), text=True, timeout=60, check=False,
        )  # fmt: skip
    finally:
        os.close(mine)
        os.close(its)
    assert done.returncode == code, done.stderr
    assert len(ids(dlq)) == left


def test_without_a_terminal_and_a_file_there_is_nothing_to_edit_with(dlq: Callable[..., Result]) -> None:
    done = dlq("edit", ids(dlq)[0])
    assert done.code == 2
    assert "name a FILE" in done.err


# --- export


def test_exported_dead_letters_are_lines_that_can_be_published(
    dlq: Callable[..., Result], cli: Cli, shop: Path, redis_url: str
) -> None:
    assert dlq("export", "--error", "total of o-3", "one.jsonl", "--json").json == {"exported": 1}
    assert dlq("export", "all.jsonl").out == "exported=5\n"
    lines = [json.loads(line) for line in (shop / "all.jsonl").read_text().splitlines()]
    assert {line["event"]["id"] for line in lines} == {f"e-{n}" for n in range(5)}
    assert len(ids(dlq)) == 5, "they stay"
    [line] = [json.loads(line) for line in (shop / "one.jsonl").read_text().splitlines()]
    assert line["error"] == "Reject: negative total of o-3"
    assert line["event"] == {
        "type": "OrderCreated", "version": 1, "id": "e-3", "key": "o-3", "data": {"order_id": "o-3", "total": -1},
    }  # fmt: skip
    sent = cli("publish", "shop:app", "orders", "--redis", redis_url, stdin=json.dumps(line["event"]))
    assert sent.code == 0, sent.err


def test_an_export_overwrites_nothing_and_leaves_no_empty_file(dlq: Callable[..., Result], shop: Path) -> None:
    (shop / "there").write_text("mine")
    refused = dlq("export", "there")
    assert (refused.code, (shop / "there").read_text()) == (5, "mine")
    assert dlq("export", "none", "--type", "OrderPaid").out == "exported=0\n"
    assert not (shop / "none").exists()
    assert dlq("export", "absent/file").code == 1
