"""`streamlib publish` and `info`: good lines go in, bad lines are named, numbers add up."""

import json
import os
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import redis

from tests.cli.conftest import Cli, command_line, environment
from tests.helpers.waiting import wait_until


def line(number: int, **more: Any) -> str:
    return json.dumps({"type": "OrderCreated", "data": {"order_id": f"o-{number}"}, **more})


def stored(client: redis.Redis) -> int:
    return sum(int(client.xlen(f"orders.{partition}")) for partition in range(2))


def test_lines_are_published_and_counted(cli: Cli, redis_url: str, client: redis.Redis) -> None:
    lines = [line(number) for number in range(1_200)]
    done = cli("publish", "shop:app", "orders", "-", "--json", "--redis", redis_url, stdin="\n".join(lines))
    assert done.code == 0, done.err
    assert done.json == {"published": 1_200, "duplicates": 0}
    assert stored(client) == 1_200
    [topic] = cli("info", "--json", "--redis", redis_url).json
    assert {"topic": "orders", "partitions": 2, "length": 1_200}.items() <= topic.items()
    [group] = topic["groups"]
    wanted = {"group": "email", "lag": 1_200, "pending": 0, "retrying": 0, "dead": 0, "consumers": 0}
    assert wanted.items() <= group.items()
    assert isinstance(group["oldest_seconds"], float)
    table = cli("info", "--redis", redis_url).out
    assert "orders" in table
    assert "1200" in table


def test_bad_lines_are_named_and_the_rest_goes_on(cli: Cli, shop: Path, redis_url: str, client: redis.Redis) -> None:
    lines = [
        line(1), "", "{broken", '{"type":"Nope","data":{}}', '{"type":"OrderCreated","data":{"order_id":7}}',
        line(2, extra=1), line(3, id=""), line(4, version=9), '"text"', '{"type":"OrderPaid","data":{"order_id":"o"}}',
        line(5, id="x" * 201), line(6, key="k", id="e-6"), json.dumps({"type": "OrderCreated", "data": {"total": 1}}),
        line(7),
    ]  # fmt: skip
    (shop / "in.jsonl").write_text("\r\n".join(lines))
    done = cli("publish", "shop:app", "orders", "in.jsonl", "--json", "--redis", redis_url)
    assert done.code == 6
    assert done.json == {"published": 4, "duplicates": 0, "failed": 9}
    named = [text.split(":")[0] for text in done.err.splitlines() if text.startswith("line ")]
    assert named == [f"line {n}" for n in (3, 4, 5, 6, 7, 8, 9, 11, 13)]
    assert "no class for 'Nope'" in done.err
    assert stored(client) == 4


def test_a_line_with_a_delay_waits(cli: Cli, redis_url: str, client: redis.Redis) -> None:
    text = "\n".join([line(1, delay=3_600), line(2, delay=0.5, id="e"), line(3), line(4, delay=-1), line(5, delay="1")])
    done = cli("publish", "shop:app", "orders", "--json", "--redis", redis_url, stdin=text)
    assert (done.code, done.json) == (6, {"published": 3, "duplicates": 0, "failed": 2})
    assert "line 4: delay=-1" in done.err
    assert stored(client) == 1
    [topic] = cli("info", "--json", "--redis", redis_url).json
    assert (topic["length"], topic["delayed"]) == (1, 2)


def test_strict_stops_at_the_first_bad_line(cli: Cli, redis_url: str, client: redis.Redis) -> None:
    text = "\n".join([line(1), "{broken", line(2)])
    done = cli("publish", "shop:app", "orders", "--strict", "--redis", redis_url, stdin=text)
    assert done.code == 6
    assert stored(client) == 1
    assert "line 2:" in done.err


def test_events_that_redis_refuses_are_named_too(cli: Cli, redis_url: str, client: redis.Redis) -> None:
    limits = {"STREAMLIB_LIMITS_PAYLOAD_BYTES": "2000", "STREAMLIB_LIMITS_TOPIC_LEN": "1000"}
    text = "\n".join([line(1), line(2, data={"order_id": "x" * 5_000}), line(3)])
    done = cli("publish", "shop:app", "orders", "--json", "--redis", redis_url, stdin=text, env=limits)
    assert (done.code, done.json["published"]) == (6, 2)
    assert "line 2:" in done.err
    assert stored(client) == 2


def test_duplicates_are_counted(cli: Cli, shop: Path, redis_url: str) -> None:
    source = (shop / "shop.py").read_text()
    (shop / "shop.py").write_text(source.replace('key="order_id"', 'key="order_id", dedup_window_s=60'))
    text = "\n".join(line(number, id=f"e-{number}") for number in range(3))
    args = ("publish", "shop:app", "orders", "--json", "--redis", redis_url)
    assert cli(*args, stdin=text).json == {"published": 3, "duplicates": 0}
    again = cli(*args, stdin=text)
    assert (again.code, again.json) == (0, {"published": 0, "duplicates": 3})


def test_an_unknown_topic_is_not_found(cli: Cli, redis_url: str) -> None:
    done = cli("publish", "shop:app", "order", "--redis", redis_url)
    assert done.code == 4
    assert "no topic 'order'; it has: orders" in done.err
    assert cli("info", "order", "--redis", redis_url).code == 4


def test_a_missing_file_is_a_usage_error(cli: Cli, redis_url: str) -> None:
    done = cli("publish", "shop:app", "orders", "none.jsonl", "--redis", redis_url)
    assert done.code == 2
    assert "none.jsonl" in done.err


def test_lines_of_a_slow_pipe_are_published_as_they_come(shop: Path, redis_url: str, client: redis.Redis) -> None:
    command = command_line(["publish", "shop:app", "orders", "--redis", redis_url])
    with subprocess.Popen(
        command, cwd=shop, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        try:
            for number in range(1, 4):
                os.write(process.stdin.fileno(), f"{line(number)}\n".encode())
                wait_until(partial(lambda n: stored(client) == n, number), what=f"{number} events are stored")
        finally:
            process.stdin.close()
        assert process.wait(30) == 0
