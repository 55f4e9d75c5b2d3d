"""The shop's accounts: kept as events, never overdrawn, with their history as audit trail."""

import asyncio
from decimal import Decimal
from typing import Any

import pytest
import redis

from streamlib import Command, CommandFailed, Reject
from streamlib.errors import NotFound
from tests.helpers.delivering import burst, dead_letters
from tests.helpers.shop import everything, open_shop
from workers.shop.accounts import (
    SNAPSHOT_EVERY,
    Deposit,
    OpenAccount,
    Overdraft,
    Withdraw,
    bank,
    statement,
)

OPENED = OpenAccount(account_id="acc-1", owner="Ada")


def deposit(amount: str) -> Deposit:
    return Deposit(account_id="acc-1", amount=Decimal(amount))


def withdraw(amount: str) -> Withdraw:
    return Withdraw(account_id="acc-1", amount=Decimal(amount))


async def test_each_change_answers_with_the_balance(redis_url: str) -> None:
    async with open_shop(redis_url) as app:
        await app.dispatch(OPENED)
        assert (await app.dispatch(deposit("100.00"))).value == Decimal("100.00")
        assert (await app.dispatch(withdraw("30.50"))).value == Decimal("69.50")
        account = await bank.load("acc-1")
        assert (account.owner, account.balance) == ("Ada", Decimal("69.50"))


async def test_the_history_is_the_audit_trail(redis_url: str) -> None:
    async with open_shop(redis_url) as app:
        for command in (OPENED, deposit("100.00"), withdraw("30.50"), deposit("0.50")):
            await app.dispatch(command)
        lines = await statement("acc-1")
    assert [(line.version, line.what, line.balance) for line in lines] == [
        (1, "AccountOpened", Decimal(0)),
        (2, "MoneyDeposited", Decimal("100.00")),
        (3, "MoneyWithdrawn", Decimal("69.50")),
        (4, "MoneyDeposited", Decimal("70.00")),
    ]
    assert [line.at for line in lines] == sorted(line.at for line in lines)


async def test_an_account_can_be_seen_as_it_was(redis_url: str) -> None:
    async with open_shop(redis_url) as app:
        for command in (OPENED, deposit("100"), withdraw("30")):
            await app.dispatch(command)
        assert (await bank.at_version("acc-1", 2)).balance == 100
        assert (await bank.load("acc-1")).balance == 70


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (withdraw("20.01"), "account acc-1: 20.01 is more than its balance of 20"),
        (withdraw("0"), "account acc-1: a withdrawal of 0"),
        (deposit("-5"), "account acc-1: a deposit of -5"),
        (OPENED, "account acc-1 is open already, for Ada"),
        (OpenAccount(account_id="acc-2", owner=""), "account acc-2 needs an owner"),
        (Withdraw(account_id="acc-3", amount=Decimal(1)), "Account 'acc-3' does not exist"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Command) else "",
)
async def test_what_is_refused_writes_nothing(redis_url: str, client: redis.Redis, command: Command, why: str) -> None:
    async with open_shop(redis_url) as app:
        await app.dispatch(OPENED)
        await app.dispatch(deposit("20"))
        before = everything(client)
        with pytest.raises((Reject, NotFound), match=why):
            await app.dispatch(command, idempotency_key="req-1")
        assert everything(client) == before


async def test_withdrawals_at_one_moment_spend_no_euro_twice(redis_url: str) -> None:
    async with open_shop(redis_url) as app:
        await app.dispatch(OPENED)
        await app.dispatch(deposit("100"))
        answers = await asyncio.gather(*(app.dispatch(withdraw("30")) for _ in range(8)), return_exceptions=True)
        assert sum(isinstance(answer, Overdraft) for answer in answers) == 5
        assert (await bank.load("acc-1")).balance == 10
        assert len(await bank.history("acc-1")) == 2 + 3


async def test_a_request_that_is_made_again_is_one_withdrawal(redis_url: str) -> None:
    async with open_shop(redis_url) as app:
        await app.dispatch(OPENED)
        await app.dispatch(deposit("100"))
        answers = [await app.dispatch(withdraw("60"), idempotency_key="req-1") for _ in range(3)]
        assert [answer.value for answer in answers] == [40, 40, 40]
        assert (await bank.load("acc-1")).balance == 40


async def test_an_overdraft_that_was_sent_is_a_dead_letter_at_once(redis_url: str, client: redis.Redis) -> None:
    async with open_shop(redis_url) as app:
        await app.dispatch(OPENED)
        ticket = await app.send(withdraw("1"))
        assert await burst(app, ["commands"]) == 0
        with pytest.raises(CommandFailed, match="Overdraft: account acc-1: 1 is more than its balance of 0"):
            await ticket.wait_for(1)
    (letter,) = dead_letters(client, "shop-commands", "commands")
    assert (letter["id"], letter["dl-reason"], letter["dl-attempts"]) == (ticket.id, "rejected", "1")


async def test_snapshots_are_a_cache_of_the_events(redis_url: str, client: redis.Redis) -> None:
    async with open_shop(redis_url) as app:
        await app.dispatch(OPENED)
        for _ in range(SNAPSHOT_EVERY):
            await bank.edit("acc-1", lambda account: account.deposit(Decimal("0.10")))
        with_snapshot = await bank.load("acc-1")
        assert client.delete(*client.scan_iter("{accounts.*}:snap:acc-1")) == 1
        without = await bank.load("acc-1")
        assert with_snapshot.balance == without.balance == Decimal("10.00")


async def test_what_was_saved_is_published_too(redis_url: str, client: redis.Redis) -> None:
    async with open_shop(redis_url) as app:
        await app.dispatch(OPENED)
        position = (await app.dispatch(deposit("5"))).position
        assert position is not None
        stored: Any = client.xrange(f"accounts.{position.partition}", position.entry_id, position.entry_id)
        assert [fields[b"type"] for _, fields in stored] == [b"MoneyDeposited"]
