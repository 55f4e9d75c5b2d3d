"""The public face of aggregates, commands and upcasts, as agreed: the design's example runs as it is printed."""

from decimal import Decimal
from typing import Any

import pytest
import redis

from streamlib import (
    Aggregate,
    AggregateNotFound,
    App,
    Command,
    ConcurrencyConflict,
    Context,
    Event,
    Position,
    Settings,
    applies,
)
from streamlib.settings import RedisSettings

app = App("shop")


class MoneyDeposited(Event):
    account_id: str
    amount: Decimal


class OrderStatusUpdated(Event, version=2):
    order_id: str
    status: str


accounts = app.topic("accounts", MoneyDeposited, key="account_id", partitions=4)
orders = app.topic("orders", OrderStatusUpdated, key="order_id")


class Account(Aggregate):
    balance: Decimal = Decimal(0)

    def deposit(self, amount: Decimal) -> None:
        if amount <= 0:
            raise ValueError("amount must be positive")
        self.record(MoneyDeposited(account_id=self.id, amount=amount))

    @applies(MoneyDeposited)
    def _on_deposited(self, event: MoneyDeposited) -> None:
        self.balance += event.amount


bank = app.repository(Account, accounts, snapshot_every=100)


class OpenAccount(Command):
    account_id: str


@app.command_handler
async def open_account(command: OpenAccount, ctx: Context) -> None:
    account = Account(command.account_id)
    account.deposit(Decimal(1))
    await bank.save(account)


@app.upcast(OrderStatusUpdated, from_version=1)
def state_became_status(data: dict[str, Any]) -> dict[str, Any]:
    return {"order_id": data["order_id"], "status": data["state"]}


@pytest.fixture(autouse=True)
def configured(redis_url: str) -> None:
    app.configure(Settings(redis=RedisSettings(url=redis_url)))


async def test_an_account_is_loaded_changed_and_saved(client: redis.Redis) -> None:
    async with app:
        with pytest.raises(AggregateNotFound):
            await bank.load("acc-123")
        fresh = Account("acc-123")  # a new one, saved at expected version 0
        fresh.deposit(Decimal(100))
        await bank.save(fresh)

        account = await bank.load("acc-123")  # AggregateNotFound
        account.deposit(Decimal(50))
        position = await bank.save(account)  # ConcurrencyConflict; append and publish are one script
        await bank.edit("acc-123", lambda account: account.deposit(Decimal(1)))  # load, change, save, again on conflict
        history = await bank.history("acc-123")
        assert isinstance(position, Position)
        assert [record.event for record in history] == [
            MoneyDeposited(account_id="acc-123", amount=Decimal(amount)) for amount in (100, 50, 1)
        ]
        assert history[1].position == position
        assert client.xlen(f"accounts.{position.partition}") == 3
        account.deposit(Decimal(1))
        with pytest.raises(ConcurrencyConflict, match="expected version 2, but it has version 3"):
            await bank.save(account)
        assert (await bank.at_version("acc-123", 2)).balance == 150
        assert (await bank.at_time("acc-123", history[0].time - 1 + 86_400_000)).balance == 151


async def test_a_command_is_answered_once_per_key() -> None:
    async with app:
        for _ in range(2):
            result = await app.dispatch(OpenAccount(account_id="acc-123"), idempotency_key="req-77")  # here and now
            assert result.position is not None
        assert (await bank.load("acc-123")).version == 1
        ticket = await app.send(OpenAccount(account_id="acc-456"))  # through a stream
        assert ticket.position.topic == "shop-commands"


def test_the_same_from_plain_functions() -> None:
    with app.blocking() as shop:
        account = Account("acc-124")
        account.deposit(Decimal(5))
        shop.call(bank.save(account))
        assert shop.call(bank.load("acc-124")).balance == 5
