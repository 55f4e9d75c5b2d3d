"""`streamlib rebuild` where the topic was trimmed: from aggregates, or from a file; and what either refuses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.cli.conftest import Cli, Result, environment

SAVINGS = """
import asyncio
import sys
from streamlib import Aggregate, App, Event, Exact, ReadModel, applies

app = App("savings")

class Opened(Event):
    account: str
    owner: str

class Saved(Event):
    account: str
    amount: int

savings = app.topic("savings", Opened, Saved, key="account", partitions=2)

class Account(Aggregate):
    owner: str = ""
    total: int = 0
    def open(self, owner: str) -> None:
        self.record(Opened(account=self.id, owner=owner))
    def save(self, amount: int) -> None:
        self.record(Saved(account=self.id, amount=amount))
    @applies(Opened)
    def _opened(self, event: Opened) -> None:
        self.owner = event.owner
    @applies(Saved)
    def _saved(self, event: Saved) -> None:
        self.total += event.amount

bank = app.repository(Account, savings)

class Total(ReadModel):
    account: str
    owner: str
    total: int = 0

totals = app.projection("totals", savings, Total, key="account", indexes=[Exact("owner")])

@totals.on(Opened)
def opened(row, event: Opened) -> Total:
    return Total(account=event.account, owner=event.owner)

@totals.on(Saved)
def saved(row, event: Saved) -> Total:
    return Total(account=row.account, owner=row.owner, total=row.total + event.amount)

async def main(first: int, last: int) -> None:
    async with app:
        for n in range(first, last):
            account = Account(f"a{n % 20}") if n < 20 else await bank.load(f"a{n % 20}")
            if n < 20:
                account.open(f"o{n % 3}")
            account.save(n)
            await bank.save(account)

if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
"""

Save = Callable[[int, int], None]
Verb = Callable[..., Result]
STREAMS = ("savings.0", "savings.1")


@pytest.fixture
def save(shop: Path, redis_url: str) -> Save:
    """`save(0, 60)`: each of twenty accounts is opened with its first event, then saves so much."""
    (shop / "savings.py").write_text(SAVINGS)

    def run(first: int, last: int) -> None:
        env = environment({"STREAMLIB_REDIS_URL": redis_url})
        command = [sys.executable, "savings.py", str(first), str(last)]
        subprocess.run(command, cwd=shop, env=env, check=True, timeout=60)

    return run


@pytest.fixture
def verb(cli: Cli, redis_url: str) -> Verb:
    return lambda name, *args: cli(name, "savings:app", *args, "--redis", redis_url)


@pytest.fixture
def project(verb: Verb) -> Callable[[], None]:
    def run() -> None:
        assert verb("run", "--burst", "--no-http").code == 0

    return run


def trim(client: redis.Redis, leave: int) -> None:
    for stream in STREAMS:
        client.xtrim(stream, maxlen=leave, approximate=False)


def totals(client: redis.Redis, generation: int) -> dict[str, int]:
    keys = list(client.scan_iter(f"*:view:totals:{generation}:row:*", count=1_000))
    rows: list[Any] = [client.hgetall(key) for key in keys]
    return {row[b"account"].decode(): int(row[b"total"]) for row in rows}


def right(last: int) -> dict[str, int]:
    return {f"a{n}": sum(range(n, last, 20)) for n in range(20)}


def lags(cli: Cli, redis_url: str) -> dict[str, int]:
    found = cli("groups", "ls", "savings", "--json", "--redis", redis_url).json
    return {one["group"]: one["lag"] for one in found}


def test_from_aggregates_what_was_trimmed_is_folded_and_the_stream_gone_on_with(
    save: Save, verb: Verb, project: Callable[[], None], cli: Cli, redis_url: str, client: redis.Redis
) -> None:
    save(0, 60)
    project()
    trim(client, 3)
    save(60, 80)
    refused = verb("rebuild", "totals")
    assert (refused.code, "--from-aggregates" in refused.err) == (5, True)
    project()
    done = verb("rebuild", "totals", "--from-aggregates", "--json")
    assert (done.code, done.json["equal"], done.json["switched"], done.json["dead"]) == (0, True, True, 0), done.err
    assert totals(client, 2) == totals(client, 1) == right(80)
    assert not list(client.scan_iter("*:idem:totals.g2:*")), "the past gets no idempotency keys"
    save(80, 100)
    project()
    assert totals(client, 2) == right(100)
    assert lags(cli, redis_url) == {"totals": 0, "totals.g2": 0}


def test_one_that_was_cut_off_in_the_past_starts_over(
    save: Save, verb: Verb, project: Callable[[], None], client: redis.Redis
) -> None:
    save(0, 40)
    project()
    assert verb("rebuild", "totals", "--from-aggregates", "--no-switch").code == 0
    assert verb("rebuild", "totals", "--from-aggregates", "--dry-run", "--json").json["goes_on"]
    for stream in STREAMS:
        client.hset(f"{{{stream}}}:view:totals:2", "checkpoint", "0-7")
    assert verb("rebuild", "totals", "--from-aggregates", "--dry-run", "--json").json["starts_over"]
    assert verb("rebuild", "totals", "--from-aggregates").code == 0
    assert totals(client, 2) == right(40)


def test_from_a_file_that_reaches_to_the_stream(
    save: Save, verb: Verb, cli: Cli, project: Callable[[], None], redis_url: str, client: redis.Redis, shop: Path
) -> None:
    save(0, 60)
    out = ("replay", "--topic", "savings", "--from", "0-0", "--out", "past.jsonl", "--redis", redis_url)
    exported = cli(*out)
    assert exported.code == 0, exported.err
    save(60, 80)
    project()
    trim(client, 14)
    done = verb("rebuild", "totals", "--from", "past.jsonl", "--json")
    assert (done.code, done.json["equal"], done.json["dead"]) == (0, True, 0), done.err
    assert totals(client, 2) == right(80)
    assert lags(cli, redis_url) == {"totals": 0, "totals.g2": 0}
    assert verb("rebuild", "totals", "--drop", "--yes").code == 0
    trim(client, 2)
    gap = verb("rebuild", "totals", "--from", "past.jsonl")
    assert (gap.code, "what came in between is lost" in gap.err) == (5, True)
    (shop / "past.jsonl").write_text('{"type": "Saved"}\n')
    bad = verb("rebuild", "totals", "--from", "past.jsonl")
    assert (bad.code, "past.jsonl, line 1" in bad.err) == (1, True)
    assert client.hgetall("streamlib:views") == {b"savings:totals": b"2"}
