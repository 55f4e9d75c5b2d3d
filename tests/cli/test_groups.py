"""`streamlib groups`: list, create, pause and resume, with real workers. `rm` has a file of its own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.cli.conftest import BANK, Cli, Result
from tests.conformance.places import KINDS, open_place
from tests.helpers.waiting import wait_until
from tests.helpers.workers import WorkerProc

Move = Callable[..., None]
Verb = Callable[..., Result]


@pytest.fixture
def groups(cli: Cli, redis_url: str) -> Verb:
    """`groups("ls", ...)` runs `streamlib groups ls ...` on the shared server."""
    return lambda *args: cli("groups", *args, "--redis", redis_url)


def row(groups: Verb, name: str) -> dict[str, Any]:
    [found] = [one for one in groups("ls", "moves", "--json").json if one["group"] == name]
    return dict(found)


def test_ls_tells_kinds_counts_and_workers(groups: Verb, bank: Path, move: Move, redis_url: str) -> None:
    assert "no groups yet" in groups("ls").err
    move(a=13, b=14, c=-1)
    with WorkerProc("bank:app", redis_url, cwd=bank) as worker:
        worker.wait_ready()
        wait_until(lambda: row(groups, "ledger")["halted_keys"] == 1)
        wait_until(lambda: (row(groups, "audit")["retrying"], row(groups, "audit")["dead"]) == (1, 1))
        wait_until(lambda: row(groups, "balances")["lag"] == 0, what="nothing changes any more")
        rows = groups("ls", "--json").json
        assert rows == groups("ls", "moves", "--json").json
        assert [(one["topic"], one["group"], one["kind"], one["paused"]) for one in rows] == [
            ("moves", "audit", "handler", False),
            ("moves", "balances", "projection", False),
            ("moves", "ledger", "ordered", False),
        ]
        assert [len(one["workers"]) for one in rows] == [1, 1, 1]
        table = groups("ls").out
        assert all(name in table for name in ("audit", "balances", "ledger", "halted_keys"))
    assert groups("ls", "nowhere").code == 4


def test_a_paused_group_takes_nothing_and_the_others_go_on(
    groups: Verb, bank: Path, move: Move, redis_url: str
) -> None:
    move(a=1)
    done = groups("pause", "moves", "audit")
    assert (done.code, done.out.strip()) == (0, "topic=moves group=audit paused=true changed=true")
    again = groups("pause", "moves", "audit", "--json")
    assert (again.json["changed"], "was paused already" in again.err) == (False, True)
    with WorkerProc("bank:app", redis_url, cwd=bank) as worker:
        worker.wait_ready()
        wait_until(lambda: row(groups, "balances")["lag"] == 0)
        assert row(groups, "audit")["lag"] == 1
        assert row(groups, "audit")["paused"] is True
        wait_until(lambda: worker.metric("streamlib_group_paused", group="audit") == 1, timeout=30)
        assert groups("resume", "moves", "audit", "--json").json["changed"] is True
        wait_until(lambda: row(groups, "audit")["lag"] == 0)
        wait_until(lambda: worker.metric("streamlib_group_paused", group="audit") == 0, timeout=30)
    assert "was not paused" in groups("resume", "moves", "audit").err


def test_names_that_are_none_are_not_found_and_nothing_is_written(
    groups: Verb, move: Move, client: redis.Redis
) -> None:
    move(a=1)
    before = sorted(client.scan_iter("streamlib:*"))
    for verb in (["pause"], ["resume"], ["rm", "--yes"]):
        for names in (("moves", "nobody"), ("nowhere", "audit")):
            done = groups(verb[0], *names, *verb[1:])
            assert (done.code, done.out) == (4, ""), done.err
    assert groups("create", "nowhere", "audit").code == 4
    assert sorted(client.scan_iter("streamlib:*")) == before


# --- create


def ids_of(client: redis.Redis) -> dict[str, list[str]]:
    streams: dict[str, Any] = {f"moves.{number}": client.xrange(f"moves.{number}") for number in (0, 1)}
    return {stream: [entry_id.decode() for entry_id, _ in entries] for stream, entries in streams.items()}


def lag(client: redis.Redis, group: str) -> dict[str, list[str]]:
    """The entries of each partition that the group gets from now on."""
    found: dict[str, list[str]] = {}
    for stream in ("moves.0", "moves.1"):
        reply: Any = client.xreadgroup(group, "probe", {stream: ">"}, count=100)
        found[stream] = [entry_id.decode() for _, entries in reply for entry_id, _ in entries]
    return found


def test_a_created_group_begins_where_it_was_told(groups: Verb, move: Move, client: redis.Redis) -> None:
    for n in range(3):
        move(**{f"k{m}": n for m in range(6)})
    there = ids_of(client)
    middle = sorted(there["moves.0"] + there["moves.1"])[9]

    def later(entry_id: str) -> dict[str, list[str]]:
        return {stream: [one for one in ids if order(one) >= order(entry_id)] for stream, ids in there.items()}

    for name, start, wanted in (
        ("g-begin", "begin", there),
        ("g-default", None, there),
        ("g-end", "end", {"moves.0": [], "moves.1": []}),
        ("g-id", middle, later(middle)),
        ("g-ms", middle.partition("-")[0], later(middle.partition("-")[0] + "-0")),
        ("g-ago", "2h", there),
        ("g-old", "1-1", there),
    ):
        done = groups("create", "moves", name, *(["--from", start] if start else []), "--json")
        assert done.code == 0, done.err
        assert len(done.json["begins_behind"]) == 2
        assert lag(client, name) == wanted, name


def order(entry_id: str) -> tuple[int, int]:
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence)


def test_a_worker_goes_on_where_the_group_was_created(
    groups: Verb, cli: Cli, bank: Path, move: Move, redis_url: str
) -> None:
    move(a=14, b=14)
    assert groups("create", "moves", "late", "--from", "end").code == 0
    move(c=14)
    (bank / "later.py").write_text(BANK.replace('group="audit"', 'group="late"'))
    done = cli("run", "later:app", "--group", "late", "--burst", "--no-http", "--redis", redis_url)
    assert done.code == 0, done.err
    letters = cli("dlq", "ls", "--group", "late", "--json", "--redis", redis_url).json
    keys = [cli("dlq", "show", one["id"], "--json", "--redis", redis_url).json["key"] for one in letters]
    assert keys == ["c"]


def test_what_cannot_be_created_says_why(groups: Verb, move: Move, client: redis.Redis) -> None:
    move(a=1)
    exists = groups("create", "moves", "audit")
    assert (exists.code, "exists (kind 'handler')" in exists.err) == (5, True)
    assert groups("create", "moves", "a:b").code == 2
    assert groups("create", "moves", "new", "--from", "yesterday").code == 2
    assert groups("create", "moves", "new", "--kind", "view").code == 2
    future = groups("create", "moves", "new", "--from", "2999-01-01")
    assert (future.code, "--from end" in future.err) == (4, True)
    half = groups("create", "moves", "new", "--kind", "projection", "--from", "end")
    assert (half.code, "can only begin with the first entry" in half.err) == (5, True)
    client.xgroup_create("moves.1", "theirs", "$")
    foreign = groups("create", "moves", "theirs")
    assert (foreign.code, "XGROUP DESTROY moves.1 theirs" in foreign.err) == (5, True)
    client.xgroup_destroy("moves.1", "theirs")
    assert {one["group"] for one in groups("ls", "--json").json} == {"audit", "balances", "ledger"}


@pytest.mark.parametrize("kind", ["ordered", "projection"])
def test_the_kind_is_the_apps_or_the_app_does_not_start(
    groups: Verb, cli: Cli, bank: Path, move: Move, redis_url: str, kind: str
) -> None:
    move(a=1)
    assert groups("create", "moves", "late", "--kind", kind).code == 0
    (bank / "later.py").write_text(BANK.replace('group="audit"', 'group="late"'))
    done = cli("run", "later:app", "--burst", "--no-http", "--redis", redis_url)
    assert done.code == 2
    assert "streamlib groups rm moves late" in done.err


# --- everywhere


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "standalone"])
def test_every_verb_works_behind_sentinels_and_on_a_cluster(
    cli: Cli, bank: Path, server_kind: str, tmp_path_factory: pytest.TempPathFactory, kind: str
) -> None:
    lines = "\n".join(f'{{"type":"Moved","data":{{"account":"k{n}","n":{n}}}}}' for n in (-1, 1, 2, 13, 14))
    with open_place(kind, server_kind, tmp_path_factory.mktemp(kind)) as place:

        def ask(*args: str) -> Any:
            done = cli(*args, "--json", "--redis", place.url)
            assert done.code == 0, (args, done.err)
            return done.json

        assert cli("publish", "bank:app", "moves", "--redis", place.url, stdin=lines).code == 0
        assert ask("groups", "pause", "moves", "balances")["changed"]
        with WorkerProc("bank:app", place.url, cwd=bank) as worker:
            worker.wait_ready()
            (halted,) = wait_until(lambda: ask("keys", "ls", "moves", "ledger", "--halted"))
            (seen,) = ask("ps")
            assert [work["partitions"] for work in seen["groups"]] == [None, [0, 1], [0, 1]]
            assert ask("keys", "skip", "moves", "ledger", halted["key"], "--yes")["skipped"] == 1
            wait_until(lambda: len(ask("dlq", "ls")) == 2)
            wait_until(lambda: {one["group"]: one["retrying"] for one in ask("groups", "ls")}["audit"] == 1)
            (info,) = ask("info", "moves", "--partition", "1")
            assert info["partition"] == 1
            worker.term()
            worker.wait()
        removed = ask("groups", "rm", "moves", "audit", "--yes", "--archive", "audit.jsonl")
        assert removed["archived"] == 2
        archived = [json.loads(line) for line in (bank / "audit.jsonl").read_text().splitlines()]
        assert sorted((one["state"], one["event"]["data"]["n"]) for one in archived) == [("dead", 14), ("retry", 13)]
        assert ask("groups", "create", "moves", "audit", "--from", "end")["begins_behind"]
        assert {one["group"]: one["lag"] for one in ask("groups", "ls")}["audit"] == 0
        for group in ("audit", "ledger", "balances"):
            ask("groups", "rm", "moves", group, "--yes", "--archive", f"{group}-2.jsonl")
        assert ask("groups", "ls") == []
        with place.client() as client:
            names = {name.decode() for name in client.scan_iter("*")}
        assert not [name for name in names if any(group in name for group in ("audit", "ledger", "balances"))]
