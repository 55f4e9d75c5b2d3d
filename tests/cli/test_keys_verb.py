"""`streamlib keys`: from a key that halted under a real worker to its resume or the end of its event."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.cli.conftest import Cli, Result
from tests.helpers.waiting import wait_until
from tests.helpers.workers import WorkerProc

Move = Callable[..., None]
Verb = Callable[..., Result]


@pytest.fixture
def keys(cli: Cli, redis_url: str) -> Verb:
    """`keys("ls", ...)` runs `streamlib keys ls ...` on the shared server."""
    return lambda *args: cli("keys", *args, "--redis", redis_url)


@pytest.fixture
def halted(keys: Verb, bank: Path, move: Move, redis_url: str) -> Iterator[WorkerProc]:
    """A worker of the bank at which the keys bad and worse have halted, each with one event behind it."""
    move(bad=-1, good=1, worse=-1)
    move(bad=2, good=2, worse=2)
    with WorkerProc("bank:app", redis_url, "--group", "ledger", cwd=bank) as worker:
        worker.wait_ready()
        wait_until(lambda: len(keys("ls", "--halted", "--json").json) == 2)
        yield worker


def noted(keys: Verb) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in keys("ls", "--json").json}


def pending(cli: Cli, redis_url: str) -> int:
    [info] = cli("info", "moves", "--json", "--redis", redis_url).json
    return next(int(group["pending"]) for group in info["groups"] if group["group"] == "ledger")


@pytest.mark.usefixtures("halted")
def test_doctor_tells_of_halted_keys(cli: Cli, redis_url: str) -> None:
    told = cli("doctor", "--json", "--redis", redis_url).json
    (halted,) = [one for one in told["findings"] if one["code"] == "halted_keys"]
    assert (halted["severity"], halted["where"]) == ("warning", "group ledger of moves")
    assert halted["what"].startswith("2 keys are halted")
    ls, _, _ = halted["advice"].partition(", then")
    done = cli(*ls.split()[1:], "--json", "--redis", redis_url)
    assert {row["key"] for row in done.json} == {"bad", "worse"}


@pytest.mark.usefixtures("halted")
def test_ls_tells_where_and_why(keys: Verb) -> None:
    rows = noted(keys)
    assert rows.keys() == {"bad", "worse"}
    bad = rows["bad"]
    assert bad.keys() == {
        "topic", "group", "partition", "key", "state", "attempts", "due_ms", "event_id", "entry_id", "error",
    }  # fmt: skip
    assert (bad["topic"], bad["group"], bad["state"], bad["attempts"], bad["due_ms"]) == (
        "moves", "ledger", "halted", 1, None,
    )  # fmt: skip
    assert "bad is overdrawn" in bad["error"]
    assert bad["event_id"]
    assert "bad is overdrawn" in keys("ls", "moves", "ledger").out
    assert keys("ls", "moves", "--json").json == keys("ls", "moves", "ledger", "--json").json


def test_resume_runs_the_event_again(
    halted: WorkerProc, keys: Verb, cli: Cli, bank: Path, redis_url: str, client: redis.Redis
) -> None:
    assert halted.running
    assert pending(cli, redis_url) == 4
    (bank / "mended").touch()
    done = keys("resume", "moves", "ledger", "bad", "--json")
    assert done.code == 0, done.err
    assert (done.json["resumed"], done.json["key"]) == (1, "bad")
    wait_until(lambda: pending(cli, redis_url) == 2)
    assert noted(keys).keys() == {"worse"}
    assert not client.exists("{moves.0}:dead:ledger", "{moves.1}:dead:ledger")
    again = keys("resume", "moves", "ledger", "bad")
    assert again.code == 4
    assert "key 'bad' of group 'ledger' is not halted" in again.err


def test_skip_gives_the_event_up_after_consent(halted: WorkerProc, keys: Verb, cli: Cli, redis_url: str) -> None:
    assert halted.running
    event_id = noted(keys)["bad"]["event_id"]
    refused = keys("skip", "moves", "ledger", "bad")
    assert refused.code == 5
    assert "--yes" in refused.err
    tried = keys("skip", "moves", "ledger", "bad", "--dry-run", "--json").json
    assert (tried["would_skip"], tried["event_id"]) == (1, event_id)
    assert noted(keys).keys() == {"bad", "worse"}
    done = keys("skip", "moves", "ledger", "bad", "--yes")
    assert (done.code, done.out.strip()) == (
        0, f"skipped=1 topic=moves group=ledger partition={tried['partition']} key=bad event_id={event_id}",
    )  # fmt: skip
    wait_until(lambda: pending(cli, redis_url) == 2)
    letters = cli("dlq", "ls", "--json", "--redis", redis_url).json
    assert [(row["event_id"], row["group"], row["reason"]) for row in letters] == [(event_id, "ledger", "max_attempts")]
    assert keys("skip", "moves", "ledger", "bad", "--yes").code == 4


@pytest.mark.parametrize("verb", [["resume"], ["skip", "--yes"]])
@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("moves", "ledger", "good"), "key 'good' of group 'ledger' is not halted: nothing of it has failed"),
        (("moves", "audit", "bad"), "'audit' of topic 'moves' is of kind 'handler'"),
        (("moves", "nobody", "bad"), "no group 'nobody' of topic 'moves'; there are audit, balances, ledger"),
        (("nowhere", "ledger", "bad"), "no topic 'nowhere' in this Redis; there are moves"),
    ],
)
def test_what_is_not_halted_is_not_found(
    keys: Verb, move: Move, verb: list[str], names: tuple[str, ...], says: str
) -> None:
    move(good=1)
    done = keys(verb[0], *names, *verb[1:])
    assert done.code == 4
    assert says in done.err
    assert done.out == ""


def test_ls_of_nothing_and_of_names_that_are_none(keys: Verb, move: Move) -> None:
    move(good=1)
    assert keys("ls", "--json").json == []
    assert "no failing keys" in keys("ls").err
    assert "no halted keys" in keys("ls", "--halted").err
    assert keys("ls", "nowhere").code == 4
    assert keys("ls", "moves", "nobody").code == 4
    assert keys("ls", "moves", "audit").code == 4


@pytest.mark.allow_keys("*")
def test_a_key_that_retries_is_listed_but_neither_resumed_nor_skipped(
    keys: Verb, client: redis.Redis, redis_url: str
) -> None:
    client.hset("streamlib:topics", mapping={"moves": "1", "moves:ledger": "ordered"})
    client.hset("{moves}:keys:ledger", mapping={"bad": "1-1 2 1700000000000 0 ValueError: not yet"})
    (row,) = keys("ls", "--json").json
    assert (row["state"], row["attempts"], row["due_ms"], row["error"]) == (
        "retrying", 2, 1_700_000_000_000, "ValueError: not yet",
    )  # fmt: skip
    assert keys("ls", "--halted", "--json").json == []
    for verb in (["resume"], ["skip", "--yes"]):
        done = keys(verb[0], "moves", "ledger", "bad", *verb[1:])
        assert done.code == 4
        assert "comes again by itself" in done.err


@pytest.mark.allow_keys("*")
def test_a_key_that_somebody_put_into_another_partition_is_found(keys: Verb, client: redis.Redis) -> None:
    client.hset("streamlib:topics", mapping={"moves": "8", "moves:ledger": "ordered"})
    for number in range(8):
        client.hset(f"{{moves.{number}}}:keys:ledger", f"key-{number}", f"1-{number} 2 halted 0 no\0e-{number}")
    for number in range(8):
        assert keys("resume", "moves", "ledger", f"key-{number}", "--json").json["partition"] == number
    assert {row["state"] for row in keys("ls", "--json").json} == {"retrying"}
