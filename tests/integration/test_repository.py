"""Repositories: loading, saving, editing, and the history of an aggregate, on a real server."""

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
import redis

from streamlib import Aggregate, App, Event, Position, Repository, Settings, applies
from streamlib.codec import NativeCodec
from streamlib.errors import (
    AggregateNotFound,
    ConcurrencyConflict,
    NotFound,
    PublishError,
    RedisUnavailable,
    SchemaError,
    StreamlibError,
    TopicFull,
    UnappliedEvent,
    UnknownType,
)
from streamlib.settings import LimitSettings, RedisSettings
from tests.helpers.accounts import (
    ACCOUNTS,
    LIST,
    STREAM,
    Account,
    Deposited,
    Opened,
    elements,
    everything,
    open_bank,
    open_store,
    topic,
)
from tests.helpers.proxy import ChaosProxy
from tests.helpers.publishing import entries


async def opened(bank: Repository[Account], id: str = "a", *, deposits: int = 0) -> Account:
    account = Account(id)
    account.open()
    for _ in range(deposits):
        account.deposit()
    await bank.save(account)
    return account


# -- load and save


async def test_what_was_saved_is_loaded(redis_url: str, client: redis.Redis) -> None:
    async with open_bank(redis_url) as bank:
        account = Account("a")
        account.open("Ada")
        account.deposit(Decimal("9.50"))
        position = await bank.save(account)
        assert position == Position("accounts", 0, entries(client, STREAM)[-1][0])
        assert (account.version, account._recorded) == (2, [])
        account.deposit(1)
        await bank.save(account)
        loaded = await bank.load("a")
    assert (loaded.id, loaded.version, loaded.owner, loaded.balance) == ("a", 3, "Ada", Decimal("10.50"))
    assert loaded.notes == ["opened for Ada"]


async def test_an_aggregate_that_does_not_exist(redis_url: str) -> None:
    async with open_bank(redis_url) as bank:
        with pytest.raises(AggregateNotFound, match="Account 'a' does not exist: topic 'accounts' has no event of it"):
            await bank.load("a")
        with pytest.raises(NotFound):
            await bank.edit("a", Account.deposit)
        assert not await bank.exists("a")
        assert (await bank.load_or_new("a")).version == 0
        assert await bank.history("a") == []
        await opened(bank)
        assert await bank.exists("a")


async def test_saving_without_changes_is_refused(redis_url: str, client: redis.Redis) -> None:
    async with open_bank(redis_url) as bank:
        account = await opened(bank)
        before = everything(client)
        for nothing in (account, await bank.load("a"), Account("b")):
            with pytest.raises(PublishError, match=r"has recorded nothing since version \d; nothing to save"):
                await bank.save(nothing)
    assert everything(client) == before


async def test_of_two_who_loaded_one_version_one_saves(redis_url: str, client: redis.Redis) -> None:
    async with open_bank(redis_url) as bank, open_bank(redis_url) as other:
        await opened(bank)
        mine, theirs = await bank.load("a"), await other.load("a")
        mine.deposit(1)
        theirs.deposit(100)
        await other.save(theirs)
        before = everything(client)
        for _ in range(2):  # and it stays so
            with pytest.raises(ConcurrencyConflict, match="expected version 1, but it has version 2"):
                await bank.save(mine)
        assert everything(client) == before
        assert (mine.version, len(mine._recorded), mine.balance) == (1, 1, Decimal(1))
        with pytest.raises(ConcurrencyConflict, match="expected version 0, but it has version 2"):
            await opened(bank)


async def test_another_repositorys_aggregate_is_refused(redis_url: str) -> None:
    class Other(Aggregate):
        @applies(Opened)
        def _opened(self, event: Opened) -> None: ...

    async with open_bank(redis_url) as bank:
        stranger: Any = Other("a")
        stranger.record(Opened(account_id="a"))
        with pytest.raises(PublishError, match="is no Account"):
            await bank.save(stranger)


async def test_a_refused_save_leaves_the_aggregate_as_it_is(redis_url: str, client: redis.Redis) -> None:
    async with open_store(redis_url, limits=LimitSettings(topic_len=3)) as store:
        bank = Repository(Account, ACCOUNTS, store=lambda: store)
        account = await opened(bank)
        for _ in range(3):
            account.deposit()
        with pytest.raises(TopicFull):
            await bank.save(account)
        assert (account.version, len(account._recorded)) == (1, 3)
        client.xtrim(STREAM, maxlen=0, approximate=False)
        await bank.save(account)
        # Retention trims the topic, no aggregate.
        assert (account.version, (await bank.load("a")).balance) == (4, Decimal(3))


# -- edit


async def test_edit_loads_changes_and_saves(redis_url: str, client: redis.Redis) -> None:
    async def slowly(account: Account) -> None:
        await asyncio.sleep(0)
        account.deposit(5)

    async with open_bank(redis_url) as bank:
        await opened(bank)
        await bank.edit("a", lambda account: account.deposit(50))
        position = await bank.edit("a", slowly)
        assert (await bank.load("a")).balance == 55
        assert await bank.edit("a", lambda account: None) == position, "nothing changed: where the last event lies"
        assert position.entry_id == entries(client, STREAM)[-1][0]
        with pytest.raises(ValueError, match="must be positive"):
            await bank.edit("a", lambda account: account.deposit(-1))
        assert client.xlen(STREAM) == 3


async def test_edits_at_once_all_count(redis_url: str) -> None:
    async with open_bank(redis_url) as bank:
        await opened(bank)
        await asyncio.gather(*(bank.edit("a", lambda account: account.deposit(5)) for _ in range(20)))
        account = await bank.load("a")
        assert (account.version, account.balance) == (21, Decimal(100))


async def test_a_conflict_that_does_not_end_is_raised_after_the_last_try(redis_url: str) -> None:
    tries = []
    async with open_bank(redis_url) as bank:
        await opened(bank)

        async def overtaken(account: Account) -> None:
            tries.append(account.version)
            account.deposit()
            theirs = await bank.load("a")
            theirs.deposit()
            await bank.save(theirs)

        with pytest.raises(ConcurrencyConflict, match="expected version 4, but it has version 5"):
            await bank.edit("a", overtaken, retries=3)
        assert tries == [1, 2, 3, 4]


# -- outcomes that are not known


async def test_a_save_of_unknown_outcome_is_sent_again_by_saving_again(
    proxy: ChaosProxy, redis_url: str, client: redis.Redis
) -> None:
    async with open_bank(proxy.url, retry_s=0, timeout_s=0.5) as bank:
        account = await opened(bank)
        account.deposit(5)
        proxy.drop_next_reply(b"Deposited")
        with pytest.raises(RedisUnavailable):
            await bank.save(account)
        assert (account.version, client.llen(f"{LIST}a")) == (1, 2)
        position = await bank.save(account)
        assert (account.version, client.llen(f"{LIST}a")) == (2, 2)
        assert position.entry_id == elements(client, "a")[-1][0]


async def test_what_is_recorded_after_an_unknown_outcome_is_saved_behind_it(
    proxy: ChaosProxy, redis_url: str, client: redis.Redis
) -> None:
    async with open_bank(proxy.url, retry_s=0, timeout_s=0.5) as bank:
        account = await opened(bank)
        account.deposit(5)
        proxy.drop_next_reply(b"Deposited")
        with pytest.raises(RedisUnavailable):
            await bank.save(account)
        account.deposit(7)
        position = await bank.save(account)
        assert [record.event for record in await bank.history("a", after=1)] == [
            Deposited(account_id="a", amount=Decimal(5)),
            Deposited(account_id="a", amount=Decimal(7)),
        ]
        assert (account.version, position.entry_id) == (3, elements(client, "a")[-1][0])
        assert client.xlen(STREAM) == 3


async def test_a_save_of_unknown_outcome_that_never_arrived_loses_to_another(proxy: ChaosProxy, redis_url: str) -> None:
    async with open_bank(proxy.url, retry_s=0, timeout_s=0.3) as bank, open_bank(redis_url) as other:
        account = await opened(bank)
        account.deposit(5)
        proxy.blackhole()
        with pytest.raises(RedisUnavailable):
            await bank.save(account)
        proxy.reset_all()
        proxy.heal()
        await other.edit("a", lambda theirs: theirs.deposit(1))
        with pytest.raises(ConcurrencyConflict):
            await bank.save(account)
        assert (await other.load("a")).balance == 1


# -- history, and the state as it was


async def test_history_tells_each_event_with_its_place_and_time(redis_url: str, client: redis.Redis) -> None:
    async with open_bank(redis_url) as bank:
        account = await opened(bank, deposits=2)
        account.deposit(7)
        await bank.save(account)
        history = await bank.history("a")
        assert [record.version for record in history] == [1, 2, 3, 4]
        assert [type(record.event) for record in history] == [Opened, Deposited, Deposited, Deposited]
        stored = entries(client, STREAM)
        assert [record.event_id for record in history] == [fields[b"id"].decode() for _, fields in stored]
        assert [record.position.entry_id for record in history] == [entry_id for entry_id, _ in stored]
        assert [record.time for record in history] == [int(entry_id.split("-")[0]) for entry_id, _ in stored]
        commits = [record.commit_id for record in history]
        assert commits[0] == commits[1] == commits[2] != commits[3]
        assert await bank.history("a", after=1, upto=3) == history[1:3]


async def test_the_state_at_each_version_is_that_of_its_events(redis_url: str) -> None:
    async with open_bank(redis_url, snapshot_every=4) as bank:
        await opened(bank, deposits=10)
        for version in range(1, 12):
            account = await bank.at_version("a", version)
            assert (account.version, account.balance, account.owner) == (version, Decimal(version - 1), "Ada")
        for missing in (0, -1, 12, 1 << 60):
            with pytest.raises(AggregateNotFound, match=rf"has no version {missing}; it has 11 versions"):
                await bank.at_version("a", missing)
        old = await bank.at_version("a", 5)
        old.deposit()
        with pytest.raises(ConcurrencyConflict):
            await bank.save(old)


async def test_the_state_at_a_time_is_that_of_the_events_until_then(redis_url: str) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    async with open_store(redis_url) as store:
        bank = Repository(Account, ACCOUNTS, store=lambda: store)
        for day in range(5):
            time_ms = int((start + timedelta(days=day)).timestamp() * 1000)
            message = ACCOUNTS.message(Deposited(account_id="a", amount=Decimal(10)), key="a", time_ms=time_ms)
            await store.append(ACCOUNTS, "a", day, [message])
        assert (await bank.at_time("a", start)).balance == 10
        assert (await bank.at_time("a", start + timedelta(days=2, hours=1))).balance == 30
        assert (await bank.at_time("a", int(start.timestamp() * 1000) + 86_400_000)).balance == 20
        assert (await bank.at_time("a", datetime.now(tz=UTC))).balance == 50
        assert [record.time for record in await bank.history("a", upto=1)] == [int(start.timestamp() * 1000)]
        with pytest.raises(AggregateNotFound, match="has no event up to"):
            await bank.at_time("a", start - timedelta(seconds=1))
        with pytest.raises(ValueError, match="without a zone"):
            await bank.at_time("a", datetime(2026, 1, 1))  # noqa: DTZ001 - what is refused


# -- events that cannot be applied


class Closed(Event):
    account_id: str


class Renamed(Event, version=2, type_name="Opened"):
    account_id: str
    holder: str


async def test_a_stored_event_that_the_aggregate_does_not_know_is_an_error_with_its_name(redis_url: str) -> None:
    app = App("bank", settings=Settings(redis=RedisSettings(url=redis_url)))
    accounts = app.topic("accounts", Opened, Deposited, Closed, key="account_id")
    bank = app.repository(Account, accounts)
    async with app:
        await opened(bank)
        message = accounts.spec.message(Closed(account_id="a"), event_id="e-2")
        await app.event_store.append(accounts.spec, "a", 1, [message])
        with pytest.raises(UnappliedEvent, match=r"Account 'a' does not know Closed") as raised:
            await bank.load("a")
        assert raised.value.__notes__ == ["Account 'a', version 2: event e-2"]
        assert (await bank.at_version("a", 1)).owner == "Ada"
        assert len(await bank.history("a")) == 2


@pytest.mark.parametrize(
    ("fields", "error", "why"),
    [
        ((b"type", b"Merged"), UnknownType, "Account 'a', version 2: no class for 'Merged' version 1"),
        ((b"v", b"9"), UnknownType, "Account 'a', version 2: no class for 'Deposited' version 9"),
        ((b"data", b"{}"), SchemaError, "Account 'a', version 2: .*account_id"),
    ],
)
async def test_a_stored_event_that_cannot_be_read_is_named(
    redis_url: str, client: redis.Redis, fields: tuple[bytes, bytes], error: type[StreamlibError], why: str
) -> None:
    async with open_bank(redis_url) as bank:
        await opened(bank)
        name, value = fields
        written = NativeCodec().write(ACCOUNTS.message(Deposited(account_id="a"), key="a"))
        written[written.index(name) + 1] = value
        packed = b"".join(b"%d:%b" % (len(part), part) for part in written)
        client.rpush(f"{LIST}a", b"1-1 c " + packed)
        with pytest.raises(error, match=why):
            await bank.load("a")


async def test_older_versions_are_raised_when_an_aggregate_is_loaded(redis_url: str) -> None:
    class Holder(Aggregate):
        holder: str = ""

        @applies(Renamed)
        def _renamed(self, event: Renamed) -> None:
            self.holder = event.holder

    async with open_bank(redis_url) as bank:
        await opened(bank)
    app = App("bank", settings=Settings(redis=RedisSettings(url=redis_url)))
    accounts = app.topic("accounts", Renamed, key="account_id")

    @app.upcast(Renamed, from_version=1)
    def owner_became_holder(data: dict[str, Any]) -> dict[str, Any]:
        return {"account_id": data["account_id"], "holder": data["owner"]}

    holders = app.repository(Holder, accounts)
    async with app:
        assert (await holders.load("a")).holder == "Ada"
        assert (await holders.history("a"))[0].event == Renamed(account_id="a", holder="Ada")


async def test_a_closed_app_says_so() -> None:
    app = App("bank")
    bank = app.repository(Account, app.topic("accounts", Opened, Deposited, key="account_id"))
    with pytest.raises(StreamlibError, match="app 'bank' is not open"):
        await bank.load("a")


async def test_several_partitions(redis_url: str, client: redis.Redis) -> None:
    spread = topic(partitions=3)
    async with open_bank(redis_url, spread) as bank:
        for number in range(9):
            await opened(bank, f"a-{number}")
        for number in range(3):
            lists: Any = client.keys(f"{{accounts.{number}}}:agg:*")
            assert len(lists) == client.xlen(f"accounts.{number}") > 0
