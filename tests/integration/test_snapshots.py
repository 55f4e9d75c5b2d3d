"""Snapshots are a cache: with them, without them and with stale ones an aggregate is what its events say."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest
import redis

from streamlib import Aggregate, Repository, applies
from streamlib.redisio.event_store import EventStore
from tests.helpers.accounts import ACCOUNTS, LIST, STREAM, Account, Deposited, Opened, deposits, open_bank, open_store

SNAPSHOT = "{accounts}:snap:a"


async def save_one_by_one(bank: Repository[Account], count: int) -> Account:
    account = await bank.load_or_new("a")
    for _ in range(count):
        if account.version:
            account.deposit()
        else:
            account.open()
        await bank.save(account)
    return account


def deposit_seven_times(account: Account) -> None:
    for _ in range(7):
        account.deposit()


def stored_version(client: redis.Redis) -> int | None:
    raw: Any = client.get(SNAPSHOT)
    return None if raw is None else int(raw.split(b" ")[1])


@asynccontextmanager
async def counted(url: str, *, snapshot_every: int) -> AsyncIterator[tuple[Repository[Account], list[int]]]:
    """A repository, and how many events each of its loads has read."""
    read: list[int] = []

    async with open_store(url) as store:
        page_of = store.page

        async def page(*args: Any, **options: Any) -> Any:
            page = await page_of(*args, **options)
            read.append(len(page.events))
            return page

        counting: Any = store
        counting.page = page
        yield Repository(Account, ACCOUNTS, store=lambda: store, snapshot_every=snapshot_every), read


async def test_a_snapshot_is_kept_after_so_many_events(redis_url: str, client: redis.Redis) -> None:
    async with open_bank(redis_url, snapshot_every=3) as bank:
        seen = []
        for _ in range(8):
            await save_one_by_one(bank, 1)
            seen.append(stored_version(client))
        assert seen == [None, None, 3, 3, 3, 6, 6, 6]
        await bank.edit("a", deposit_seven_times)
        assert stored_version(client) == 15
    async with open_bank(redis_url) as bank:
        await bank.edit("a", Account.deposit)
        assert stored_version(client) == 15, "a repository without snapshots keeps none"


async def test_a_load_reads_what_came_after_the_snapshot(redis_url: str, client: redis.Redis) -> None:
    async with open_bank(redis_url, snapshot_every=5) as bank:
        await save_one_by_one(bank, 12)
    async with counted(redis_url, snapshot_every=5) as (bank, read):
        with_snapshot = await bank.load("a")
        assert read == [2]
        assert client.delete(SNAPSHOT) == 1
        without = await bank.load("a")
        assert read == [2, 12]
    for account in (with_snapshot, without):
        assert (account.version, account.balance, account.owner) == (12, Decimal(11), "Ada")
        assert account.notes == ["opened for Ada"]
        assert account._kept.entry_id == without._kept.entry_id


async def test_an_aggregate_from_a_snapshot_goes_on_like_any_other(redis_url: str, client: redis.Redis) -> None:
    async with open_bank(redis_url, snapshot_every=5) as bank:
        await save_one_by_one(bank, 5)
        position = await bank.edit("a", lambda account: None)
        assert (await bank.history("a"))[-1].position == position
        for _ in range(5):
            await bank.edit("a", Account.deposit)
        assert stored_version(client) == 10
        assert (await bank.load("a")).balance == 9


async def test_a_snapshot_of_an_older_class_is_ignored_and_replaced(redis_url: str, client: redis.Redis) -> None:
    class Account(Aggregate, version=2):  # called like the first one, and counts in cents now
        cents: int = 0

        @applies(Opened)
        def _opened(self, event: Opened) -> None: ...

        @applies(Deposited)
        def _deposited(self, event: Deposited) -> None:
            self.cents += int(event.amount * 100)

        def deposit(self) -> None:
            self.record(Deposited(account_id=self.id))

    async with open_bank(redis_url, snapshot_every=2) as bank:
        await save_one_by_one(bank, 5)
        assert stored_version(client) == 4
    async with open_store(redis_url) as store:
        newer = Repository(Account, ACCOUNTS, store=lambda: store, snapshot_every=2)
        account = await newer.load("a")
        assert (account.version, account.cents) == (5, 400)
        account.deposit()
        await newer.save(account)
        assert stored_version(client) == 6, "at once: all events had to be read"
        assert (await newer.load("a")).cents == 500
    async with open_bank(redis_url, snapshot_every=2) as bank:
        assert (await bank.load("a")).balance == 5, "the old workers go on beside the new ones"


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"nothing of ours",
        b"Account@1 ",
        b"Account@1 4 0-0 c \x93",
        b"Account@1 99 0-0 c \x93\xa0\xa0\xa0",
        lambda raw: raw[:-2],
        lambda raw: raw + b"\x00",
        lambda raw: raw.replace(b"Account@1 4", b"Account@1 3"),
        lambda raw: raw.replace(b"Account@1 4", b"Account@1 99"),
        lambda raw: raw.replace(b"Account@1 4", b"Account@1 0"),
        lambda raw: raw.replace(b"Account@1 4", b"Account@1 -4"),
    ],
)
async def test_a_snapshot_that_cannot_be_used_is_ignored(redis_url: str, client: redis.Redis, damage: Any) -> None:
    async with open_bank(redis_url, snapshot_every=4) as bank:
        await save_one_by_one(bank, 6)
        raw: Any = client.get(SNAPSHOT)
        client.set(SNAPSHOT, damage(raw) if callable(damage) else damage)
        account = await bank.load("a")
        assert (account.version, account.balance, account.owner) == (6, Decimal(5), "Ada")


@pytest.mark.allow_keys(SNAPSHOT)
async def test_a_snapshot_of_another_type_is_ignored_and_replaced(redis_url: str, client: redis.Redis) -> None:
    client.hset(SNAPSHOT, "field", "value")
    async with open_bank(redis_url, snapshot_every=2) as bank:
        account = await save_one_by_one(bank, 2)
        assert (account.version, (await bank.load("a")).version, stored_version(client)) == (2, 2, 2)


async def test_a_snapshot_that_outlived_a_rollback_is_ignored(redis_url: str, client: redis.Redis) -> None:
    """A failover lost the last events, the snapshot came through. Others may have been appended in their place."""
    async with open_bank(redis_url, snapshot_every=4) as bank:
        await save_one_by_one(bank, 4)
        client.ltrim(f"{LIST}a", 0, 1)
        assert (await bank.load("a")).version == 2
        for _ in range(3):
            await bank.edit("a", lambda account: account.deposit(100))
        assert (await bank.load("a")).balance == 301


async def test_a_snapshot_that_cannot_be_stored_fails_no_save(
    redis_url: str, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def full(*args: Any) -> None:
        raise ConnectionResetError("the connection was lost")

    async with open_bank(redis_url, snapshot_every=2) as bank:
        await save_one_by_one(bank, 1)
        with monkeypatch.context() as patched:
            patched.setattr(EventStore, "keep_snapshot", full)
            account = await save_one_by_one(bank, 1)
        assert "the snapshot of Account 'a' was not stored: the connection was lost" in caplog.text
        assert (account.version, stored_version(client)) == (2, None)
        await save_one_by_one(bank, 1)
        assert stored_version(client) == 3


async def test_a_state_that_would_come_back_changed_fails_no_save(
    redis_url: str, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    class Sloppy(Aggregate):
        total: int = 0

        @applies(Deposited)
        def _deposited(self, event: Deposited) -> None:
            self.total += event.amount  # type: ignore[assignment] # a Decimal: what the annotation does not say

    async with open_store(redis_url) as store:
        repository = Repository(Sloppy, ACCOUNTS, store=lambda: store, snapshot_every=1)
        sloppy = Sloppy("a")
        sloppy.record(Deposited(account_id="a"))
        await repository.save(sloppy)
        assert "Sloppy 'a' gets no snapshot, for its state would not come back as it is: Expected `int`" in caplog.text
        assert (await repository.load("a")).total == Decimal(1)
    assert client.exists(SNAPSHOT) == 0


async def test_a_long_history_is_loaded_with_and_without(redis_url: str, client: redis.Redis) -> None:
    async with open_store(redis_url) as store:
        for version in range(0, 2_000, 500):
            await store.append(ACCOUNTS, "a", version, deposits("a", 500))
        bank = Repository(Account, ACCOUNTS, store=lambda: store, snapshot_every=100)
        assert (await bank.load("a")).balance == 2_000
        await bank.edit("a", Account.deposit)
        assert stored_version(client) == 2_001
        assert (await bank.load("a")).balance == 2_001
    assert client.xlen(STREAM) == 2_001
