"""The event store beside the `eventsourcing` package: `python -m benchmarks.event_store [--rounds K] [--memory]`.

Needs `pip install eventsourcing`. Every case has the same account with the same events in one process; each round runs
all cases, on empty stores. "floor" is what no event store on Redis can beat: scripts that store nothing, and a loop
over LRANGE, a msgspec decoder and the method that applies. `--memory` tells instead what aggregates of 1, 5 and 20
events cost Redis.
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import redis
import uvloop
from eventsourcing import application, domain

from streamlib import Aggregate, App, Event, Repository, Settings, applies
from streamlib.embedded import open_embedded
from streamlib.redisio.connection import RedisDoor
from streamlib.settings import RedisSettings

EVENTS, BATCH, ONE_BY_ONE, TASKS = 10_000, 100, 2_000, 100
PAGE = 2_000
Row = dict[str, float]


class Deposited(Event):
    account_id: str
    amount: Decimal
    note: str = ""


class Account(Aggregate):
    balance: Decimal = Decimal(0)

    def deposit(self, amount: Decimal, note: str = "") -> None:
        self.record(Deposited(account_id=self.id, amount=amount, note=note))

    @applies(Deposited)
    def _deposited(self, event: Deposited) -> None:
        self.balance += event.amount


class TheirAccount(domain.Aggregate):
    def __init__(self) -> None:
        self.balance = Decimal(0)

    @domain.event("Deposited")
    def deposit(self, amount: Decimal) -> None:
        self.balance += amount


class TheirBank(application.Application):  # type: ignore[type-arg]
    is_snapshotting_enabled = True


async def ours(url: str) -> Row:
    """Events per second and seconds per load of our repository."""
    app = App("bank", settings=Settings(redis=RedisSettings(url=url)))
    topic = app.topic("accounts", Deposited, key="account_id")
    plain: Repository[Account] = app.repository(Account, topic)
    kept: Repository[Account] = app.repository(Account, topic, snapshot_every=100)
    async with app:
        row: Row = {}
        account = Account("one-by-one")
        started = time.perf_counter()
        for _ in range(ONE_BY_ONE):
            account.deposit(Decimal(1))
            await plain.save(account)
        row["one_by_one_per_s"] = ONE_BY_ONE / (time.perf_counter() - started)

        account = Account("batches")
        started = time.perf_counter()
        for _ in range(EVENTS // BATCH):
            for _ in range(BATCH):
                account.deposit(Decimal(1))
            await plain.save(account)
        row["batches_per_s"] = EVENTS / (time.perf_counter() - started)

        started = time.perf_counter()
        await asyncio.gather(*(_some(plain, f"task-{n}", ONE_BY_ONE // TASKS) for n in range(TASKS)))
        row["tasks_per_s"] = ONE_BY_ONE / (time.perf_counter() - started)

        row["load_ms"] = await _load_ms(plain, EVENTS)
        await kept.edit("batches", lambda account: account.deposit(Decimal(1)))
        row["load_snapshot_ms"] = await _load_ms(kept, EVENTS + 1)
    return row


async def _some(bank: Repository[Account], name: str, count: int) -> None:
    account = Account(name)
    for _ in range(count):
        account.deposit(Decimal(1))
        await bank.save(account)


async def _load_ms(bank: Repository[Account], balance: int) -> float:
    times = []
    for _ in range(5):
        started = time.perf_counter()
        assert (await bank.load("batches")).balance == balance
        times.append((time.perf_counter() - started) * 1000)
    return median(times)


class BareAccount:
    balance = Decimal(0)

    def deposited(self, event: Deposited) -> None:
        self.balance += event.amount


async def floor(url: str) -> Row:
    """What awaited round trips cost, and reading the events that `ours` has left without looking at their envelopes."""
    door = RedisDoor.open(RedisSettings(url=url))
    row: Row = {}
    started = time.perf_counter()
    for _ in range(ONE_BY_ONE):
        await door.execute("EVAL", "return 1", 1, "accounts")
    row["one_by_one_per_s"] = ONE_BY_ONE / (time.perf_counter() - started)

    decode = msgspec.json.Decoder(Deposited).decode
    times = []
    for _ in range(5):
        started = time.perf_counter()
        account = BareAccount()
        for start in range(0, EVENTS, PAGE):
            for element in await door.execute("LRANGE", "{accounts}:agg:batches", start, start + PAGE - 1):
                account.deposited(decode(element[element.rindex(b"{") :]))
        assert account.balance == EVENTS
        times.append((time.perf_counter() - started) * 1000)
    row["load_ms"] = median(times)
    await door.close()
    return row


def theirs(env: dict[str, str]) -> Row:
    """The same of the `eventsourcing` package."""
    bank = TheirBank(env=env)
    row: Row = {}
    account = TheirAccount()
    started = time.perf_counter()
    for _ in range(ONE_BY_ONE):
        account.deposit(Decimal(1))
        bank.save(account)
    row["one_by_one_per_s"] = ONE_BY_ONE / (time.perf_counter() - started)

    account = TheirAccount()
    started = time.perf_counter()
    for _ in range(EVENTS // BATCH):
        for _ in range(BATCH):
            account.deposit(Decimal(1))
        bank.save(account)
    row["batches_per_s"] = EVENTS / (time.perf_counter() - started)

    def load_ms() -> float:
        times = []
        for _ in range(5):
            started = time.perf_counter()
            found: Any = bank.repository.get(account.id)
            assert found.balance == EVENTS
            times.append((time.perf_counter() - started) * 1000)
        return median(times)

    row["load_ms"] = load_ms()
    bank.take_snapshot(account.id)
    row["load_snapshot_ms"] = load_ms()
    bank.close()
    return row


def compare(rounds: int) -> dict[str, Row]:
    """Medians over the rounds, per case."""
    found: dict[str, list[Row]] = {
        "streamlib": [],
        "floor": [],
        "eventsourcing, memory": [],
        "eventsourcing, SQLite": [],
    }
    with tempfile.TemporaryDirectory() as directory, open_embedded(Path(directory) / "redis") as server:
        client = redis.Redis.from_url(server.url)
        for number in range(rounds):
            client.flushall()
            sqlite = {"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": f"{directory}/{number}.db"}
            cases: dict[str, Callable[[], Row]] = {
                "streamlib": lambda: uvloop.run(ours(server.url)),
                "floor": lambda: uvloop.run(floor(server.url)),
                "eventsourcing, memory": lambda: theirs({}),
                "eventsourcing, SQLite": lambda env=sqlite: theirs(env),  # type: ignore[misc]
            }
            names = list(cases) if number % 2 == 0 else [*list(cases)[2:], *list(cases)[:2]]  # the floor reads ours
            for name in names:
                found[name].append(cases[name]())
        client.close()
    return {
        case: {name: round(median(row[name] for row in rows), 2) for name in rows[0]} for case, rows in found.items()
    }


async def fill(url: str, aggregates: int, events: int) -> None:
    """So many accounts of so many events, whose data are about 60 bytes each."""
    app = App("bank", settings=Settings(redis=RedisSettings(url=url)))
    bank = app.repository(Account, app.topic("accounts", Deposited, key="account_id"))

    async def some(first: int) -> None:
        for number in range(first, aggregates, TASKS):
            account = Account(f"acc-{number:08}")
            for _ in range(events):
                account.deposit(Decimal("12.50"), note="x" * 4)
            await bank.save(account)

    async with app:
        await asyncio.gather(*(some(first) for first in range(TASKS)))


def used_memory(client: Any) -> int:
    """Bytes in use, once what was deleted is really freed: a server does that in the background."""
    while client.info("memory")["lazyfree_pending_objects"]:
        time.sleep(0.01)
    used: int = client.info("memory")["used_memory"]
    return used


def memory(aggregates: int) -> dict[str, Row]:
    """Bytes of Redis' memory per aggregate: its list with its key, and its entries in the topic."""
    found: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as directory, open_embedded(Path(directory)) as server:
        client: Any = redis.Redis.from_url(server.url)
        for events in (1, 5, 20):
            client.flushall(asynchronous=False)
            number = aggregates if events < 20 else aggregates // 5
            empty = used_memory(client)
            uvloop.run(fill(server.url, number, events))
            full = used_memory(client)
            client.delete("accounts")
            lists = used_memory(client)
            data = client.lindex("{accounts}:agg:acc-00000000", 0)
            found[f"{events} events"] = {
                "aggregates": number,
                "element_bytes": len(data),
                "list_bytes": round((lists - empty) / number),
                "stream_bytes": round((full - lists) / number),
                "million_mb": round((lists - empty) / number),  # bytes each: a million of them are as many MB
            }
        client.close()
    return found


def main() -> None:
    about = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.event_store", description=about)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--aggregates", type=int, default=100_000, help="with --memory; a fifth of them have 20 events")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    table = memory(given.aggregates) if given.memory else compare(given.rounds)
    if given.json:
        print(json.dumps(table))
        return
    columns = list(next(iter(table.values())))
    print(f"{'':<24}" + "".join(f"{name:>18}" for name in columns))
    for case, row in table.items():
        print(f"{case:<24}" + "".join(f"{row[name]:>18,.1f}" if name in row else f"{'-':>18}" for name in columns))


if __name__ == "__main__":
    main()
