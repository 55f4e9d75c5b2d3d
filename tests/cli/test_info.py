"""`streamlib info`: partitions added up or one of them, owners, halted keys, pauses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.cli.conftest import Cli
from tests.helpers.waiting import wait_until
from tests.helpers.workers import WorkerProc

Move = Callable[..., None]


def groups_of(cli: Cli, redis_url: str, *args: str) -> dict[str, dict[str, Any]]:
    done = cli("info", "moves", *args, "--json", "--redis", redis_url)
    assert done.code == 0, done.err
    [info] = done.json
    return {group["group"]: group for group in info["groups"]}


def test_partitions_are_added_up_and_one_can_be_asked_for(
    cli: Cli, move: Move, redis_url: str, client: redis.Redis
) -> None:
    move(a=1, b=2, c=3, d=4, e=5)
    lengths = [client.xlen("moves.0"), client.xlen("moves.1")]
    assert all(lengths), "both partitions hold something"
    [whole] = cli("info", "moves", "--json", "--redis", redis_url).json
    assert (whole["partitions"], whole["length"], whole["partition"]) == (2, 5, None)
    assert {group["group"]: group["lag"] for group in whole["groups"]} == {"audit": 5, "balances": 5, "ledger": 5}
    for number, length in enumerate(lengths):
        [part] = cli("info", "moves", "--partition", str(number), "--json", "--redis", redis_url).json
        assert (part["partitions"], part["length"], part["partition"]) == (2, length, number)
        assert {group["lag"] for group in part["groups"]} == {length}


def test_a_partition_that_no_topic_has_is_not_found(cli: Cli, move: Move, redis_url: str) -> None:
    move(a=1)
    for args in (["moves", "--partition", "2"], ["--partition", "2"]):
        done = cli("info", *args, "--redis", redis_url)
        assert done.code == 4
        assert "partition" in done.err
    assert cli("info", "--partition", "-1", "--redis", redis_url).code == 2


def test_owners_are_those_of_ordered_groups_and_projections(cli: Cli, bank: Path, move: Move, redis_url: str) -> None:
    move(a=1, b=2)
    with WorkerProc("bank:app", redis_url, cwd=bank) as worker:
        worker.wait_ready()
        owned = wait_until(lambda: _all_owned(groups_of(cli, redis_url)), what="both partitions have owners")
        assert owned["audit"]["owners"] == []
        for group in ("ledger", "balances"):
            assert [owner["partition"] for owner in owned[group]["owners"]] == [0, 1]
            assert len({owner["worker"] for owner in owned[group]["owners"]}) == 1
        assert [owner["partition"] for owner in groups_of(cli, redis_url, "--partition", "1")["ledger"]["owners"]] == [
            1
        ]
        table = cli("info", "moves", "--redis", redis_url).out
        assert table.count("2/2") == 2
        assert table.count(owned["ledger"]["owners"][0]["worker"]) == 4
        worker.term()
        worker.wait()
    assert groups_of(cli, redis_url)["ledger"]["owners"] == [], "who has left owns nothing"
    assert cli("info", "moves", "--redis", redis_url).out.count("0/2") == 2


def _all_owned(groups: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The groups once each partition has its owner, nothing before."""
    return groups if all(len(groups[name]["owners"]) == 2 for name in ("ledger", "balances")) else {}


def test_halted_keys_are_counted_and_are_a_metric(cli: Cli, bank: Path, move: Move, redis_url: str) -> None:
    move(a=-1, b=-1, c=-1, d=1)
    with WorkerProc("bank:app", redis_url, cwd=bank) as worker:
        worker.wait_ready()
        wait_until(lambda: groups_of(cli, redis_url)["ledger"]["halted_keys"] == 3)
        wait_until(lambda: worker.metric("streamlib_halted_keys", group="ledger") == 3, timeout=30)
        assert worker.metric("streamlib_group_paused", group="ledger") == 0
        assert not [name for name in worker.metrics() if name.startswith("streamlib_halted_keys") and "audit" in name]
    assert "3 keys halted" in cli("info", "--redis", redis_url).out


@pytest.mark.allow_keys("*")
def test_many_halted_keys_are_counted_page_by_page(cli: Cli, redis_url: str, client: redis.Redis) -> None:
    client.hset("streamlib:topics", mapping={"moves": "1", "moves:ledger": "ordered"})
    noted: dict[Any, Any] = {f"halted-{n}": f"1-{n} 3 halted 0 no\0e-{n}\0{'x' * 200}" for n in range(1_234)}
    noted |= {f"waits-{n}": f"2-{n} 3 17 0 halted {'x' * 200}" for n in range(100)} | {
        "odd": "halted",
        "odder": "1-1 3 halted 0 no",
    }
    client.hset("{moves}:keys:ledger", mapping=noted)
    assert groups_of(cli, redis_url)["ledger"]["halted_keys"] == 1_234
