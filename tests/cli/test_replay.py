"""`streamlib replay`: a range again for one group or into a file; killed in mid-run, the same command goes on."""

import json
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.cli.conftest import Cli, Result, command_line, environment
from tests.helpers.servers import RedisProc
from tests.helpers.waiting import wait_until

COUNTS = {"not_delivered", "busy", "waiting", "dead", "foreign", "copies", "filtered"}
Verb = Callable[..., Result]


def store(cli: Cli, url: str, count: int, *, bad: int = 0) -> None:
    """So many orders, the last `bad` of which the group email rejects; it has had them all."""
    totals = [n + 1 for n in range(count - bad)] + [-1] * bad
    lines = [
        json.dumps({"type": "OrderCreated", "data": {"order_id": f"o-{n}", "total": total}, "id": f"e-{n}"})
        for n, total in enumerate(totals)
    ]
    published = cli("publish", "shop:app", "orders", "--redis", url, stdin="\n".join(lines))
    assert published.code == 0, published.err
    run_burst(cli, url)


def run_burst(cli: Cli, url: str) -> None:
    done = cli("run", "shop:app", "--burst", "--no-http", "--redis", url)
    assert done.code == 0, done.err


def again(client: redis.Redis) -> list[str]:
    """The ids of the events that wait to run again."""
    streams: list[Any] = [client.xrange(f"{{orders.{number}}}:again:email") for number in (0, 1)]
    return [fields[b"id"].decode() for entries in streams for _, fields in entries]


@pytest.fixture
def replay(cli: Cli, redis_url: str) -> Verb:
    return lambda *args: cli("replay", "--topic", "orders", "--group", "email", *args, "--redis", redis_url)


@pytest.fixture
def stored(cli: Cli, redis_url: str) -> None:
    store(cli, redis_url, 12, bad=2)


class Started:
    """A `streamlib replay` at work: 20 events per second, two in each step."""

    def __init__(self, url: str, cwd: Path, *more: str) -> None:
        args = ["replay", "--topic", "orders", "--group", "email", "--from", "begin", "--yes", "--redis", url, *more]
        self.process = subprocess.Popen(
            command_line(args), cwd=cwd, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def end(self) -> Result:
        out, err = self.process.communicate(timeout=60)
        return Result(self.process.returncode, out, err)


def test_a_range_runs_again(replay: Verb, cli: Cli, stored: None, redis_url: str, client: redis.Redis) -> None:
    done = replay("--from", "1h", "--yes", "--json")
    assert done.json.keys() == COUNTS | {"replayed"}
    assert (done.json["replayed"], done.json["dead"]) == (10, 2)
    assert done.code == 6, "not all of the range was run again"
    assert "2 are dead letters; `streamlib dlq replay` runs them again" in done.err
    assert sorted(again(client)) == sorted(f"e-{n}" for n in range(10))
    run_burst(cli, redis_url)
    assert again(client) == []
    assert replay("--from", "begin", "--type", "OrderPaid", "--yes").out.startswith("replayed=0 ")
    assert replay("--from", "begin", "--key", "o-3", "--key", "o-4", "--yes").code == 0
    assert sorted(again(client)) == ["e-3", "e-4"]


def test_it_wants_consent_and_can_say_before_what_it_would_do(replay: Verb, stored: None, client: redis.Redis) -> None:
    refused = replay("--from", "1h")
    assert refused.code == 5
    assert "add --yes, or --dry-run" in refused.err
    would = replay("--from", "1h", "--dry-run", "--json")
    assert would.code == 0
    assert would.json.keys() == COUNTS | {"would_replay", "dry_run", "events"}
    assert (would.json["would_replay"], would.json["dead"]) == (10, 2)
    events = would.json["events"]
    assert {one["partition"] for one in events} == {0, 1}
    assert {one["type"] for one in events} == {"OrderCreated"}
    assert sum(one["events"] for one in events) == 10
    assert "OrderCreated" in replay("--from", "1h", "--dry-run").out
    assert again(client) == []
    assert client.keys("*replay*") == []


def test_bad_input_is_named_and_nothing_is_written(
    replay: Verb, cli: Cli, stored: None, redis_url: str, client: redis.Redis
) -> None:
    client.xtrim("orders.0", maxlen=1, approximate=False)
    wrong = (
        (["--from", "yesterday"], 2, "'yesterday' is no moment"),
        (["--from", "1h", "--to", "2h"], 2, "--from 1h is behind --to 2h"),
        (["--from", "7-1", "--to", "7-0"], 2, "--from 7-1 is behind --to 7-0"),
        (["--from", "1h", "--rate", "fast"], 2, "write a number and a period"),
        (["--from", "1h"], 5, "orders.0 begins with "),
        (["--from", "begin"], 5, "--from first"),
    )
    for args, code, text in wrong:
        done = replay(*args, "--yes")
        assert (done.code, text in done.err) == (code, True), done.err
    for names, text in ((("nope", "email"), "there are orders"), (("orders", "nope"), "there are email")):
        done = cli("replay", "--topic", names[0], "--group", names[1], "--from", "1h", "--yes", "--redis", redis_url)
        assert (done.code, text in done.err) == (4, True), done.err
    assert cli("replay", "--topic", "orders", "--from", "1h", "--redis", redis_url).code == 2
    assert again(client) == []
    assert client.keys("*replay*") == []
    assert replay("--from", "first", "--yes").err.startswith("what was before is gone: orders.0 begins with ")


def test_an_empty_range_and_a_type_that_nobody_handles_are_told(replay: Verb, stored: None) -> None:
    done = replay("--from", "2100-01-01", "--yes")
    assert (done.code, done.out.split()[0]) == (0, "replayed=0")
    assert "there is no entry in this range" in done.err
    done = replay("--from", "1h", "--type", "OrderCreate", "--yes")
    assert done.code == 0
    assert "has ever handled type OrderCreate; it handles OrderCreated" in done.err


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_interrupted_in_mid_run_the_same_command_goes_on_and_runs_nothing_twice(
    replay: Verb, cli: Cli, shop: Path, redis_url: str, client: redis.Redis, end: signal.Signals
) -> None:
    store(cli, redis_url, 120)
    began = Started(redis_url, shop, "--rate", "20/s")
    wait_until(lambda: len(again(client)) >= 10)
    began.process.send_signal(end)
    ended = began.end()
    if end is signal.SIGINT:
        assert ended.code == 130
        assert "the same command goes on from there" in ended.err
    copied = again(client)
    assert 10 <= len(copied) < 120
    run_burst(cli, redis_url)
    other = replay("--from", "1h", "--yes")
    assert other.code == 5, "another range is not begun in between"
    assert "--topic orders --from begin --group email" in other.err
    done = replay("--from", "begin", "--yes", "--json")
    assert done.code == 0, done.err
    assert done.json["replayed"] == 120
    assert "it goes on where it stands" in done.err
    assert Counter(copied + again(client)) == {f"e-{n}": 1 for n in range(120)}
    assert not client.exists("streamlib:replay:orders:email")


def test_when_redis_goes_away_it_says_so_and_goes_on_when_redis_is_back(
    cli: Cli, shop: Path, own_server: Callable[..., RedisProc]
) -> None:
    server = own_server(aof=True)
    store(cli, server.url, 60)
    began = Started(server.url, shop, "--rate", "20/s")
    with server.client() as client:
        wait_until(lambda: len(again(client)) >= 6)
    server.kill9()
    ended = began.end()
    assert ended.code == 3
    assert "the same command goes on from there" in ended.err
    assert "is not reachable" in ended.err
    server.start()
    with server.client() as client:
        assert len(again(client)) < 60
        done = Started(server.url, shop).end()
        assert done.code == 0, done.err
        assert Counter(again(client)) == {f"e-{n}": 1 for n in range(60)}


def test_a_range_goes_into_a_file_that_publish_reads(
    cli: Cli, shop: Path, stored: None, redis_url: str, client: redis.Redis
) -> None:
    def into(*args: str) -> Result:
        return cli("replay", "--topic", "orders", "--from", "begin", *args, "--redis", redis_url)

    done = into("--out", "range.jsonl", "--json")
    assert done.code == 0, done.err
    assert (done.json["written"], done.json["file"]) == (12, "range.jsonl")
    lines = [json.loads(line) for line in (shop / "range.jsonl").read_text().splitlines()]
    assert lines[0].keys() == {"type", "version", "id", "key", "data"}
    assert {line["id"] for line in lines} == {f"e-{n}" for n in range(12)}
    assert again(client) == []
    published = cli("publish", "shop:app", "orders", "range.jsonl", "--redis", redis_url)
    assert published.out == "published=12 duplicates=0\n"
    exists = into("--out", "range.jsonl")
    assert exists.code == 5
    assert "range.jsonl exists" in exists.err
    assert into("--key", "nobody", "--out", "none.jsonl").code == 0
    group = into("--group", "email", "--out", "given.jsonl", "--json").json
    assert (group["written"], group["not_delivered"]) == (12, 12), "the group was not given the new ones yet"
    assert into("--group", "nope", "--out", "no.jsonl").code == 4
    client.xadd("orders.1", {"sensor": "a7"})
    foreign = into("--out", "all.jsonl", "--json")
    assert (foreign.code, foreign.json["foreign"]) == (6, 1)
    assert {file.name for file in shop.glob("*.jsonl*")} == {"range.jsonl", "given.jsonl", "all.jsonl"}


def test_a_file_that_cannot_be_written_is_told(cli: Cli, stored: None, redis_url: str) -> None:
    done = cli("replay", "--topic", "orders", "--from", "begin", "--out", "no/such/f.jsonl", "--redis", redis_url)
    assert done.code == 1
    assert "cannot write" in done.err
