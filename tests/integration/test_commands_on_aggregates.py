"""Commands that change an aggregate: its events and the answer are one script, once per idempotency key."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import pytest

from streamlib import (
    Aggregate,
    AggregateNotFound,
    Answer,
    App,
    Command,
    ConcurrencyConflict,
    Event,
    IdempotencyConflict,
    ReadModel,
    StreamlibError,
    applies,
)
from streamlib.redisio import event_store
from streamlib.redisio.connection import RedisDoor
from tests.helpers.delivering import burst, running, settings


class Deposited(Event):
    account_id: str
    amount: Decimal


class Account(Aggregate):
    balance: Decimal = Decimal(0)

    def deposit(self, amount: Decimal) -> None:
        if self.balance + amount < 0:
            raise ValueError(f"overdraft: {self.balance} are there")
        self.record(Deposited(account_id=self.id, amount=amount))

    @applies(Deposited)
    def _on_deposited(self, event: Deposited) -> None:
        self.balance += event.amount


class Open(Command):
    account_id: str
    amount: Decimal
    unless_there: bool = False


class Change(Command):
    account_id: str
    amount: Decimal


class Transfer(Command):
    source: str
    target: str
    amount: Decimal


class Balance(ReadModel):
    account_id: str
    balance: Decimal


class Bank:
    """An app with one aggregate, and what its handlers did."""

    def __init__(self, url: str, partitions: int = 1) -> None:
        self.app = App("bank", settings=settings(url))
        self.topic = self.app.topic("accounts", Deposited, key="account_id", partitions=partitions)
        self.accounts = self.app.repository(Account, self.topic)
        self.view = self.app.projection("balances", self.topic, Balance, key="account_id")
        self.runs: list[Command] = []
        self.fail_after_save = False
        self.app.command_handler(self.open)
        self.app.command_handler(self.change)
        self.app.command_handler(self.transfer)

        @self.view.on(Deposited)
        def deposited(row: Balance | None, event: Deposited) -> Balance:
            before = row.balance if row else Decimal(0)
            return Balance(account_id=event.account_id, balance=before + event.amount)

    async def open(self, command: Open) -> str:
        self.runs.append(command)
        if command.unless_there and await self.accounts.exists(command.account_id):
            raise ValueError(f"{command.account_id} exists")
        account = Account(command.account_id)
        account.deposit(command.amount)
        assert (await self.accounts.save(account)).entry_id == ""
        return account.id

    async def change(self, command: Change) -> Decimal:
        self.runs.append(command)
        account = await self.accounts.load(command.account_id)
        account.deposit(command.amount)
        await self.accounts.save(account)
        assert await self.accounts.load(command.account_id) is account  # what this run has saved is what it reads
        if self.fail_after_save:
            raise ValueError("after all, no")
        return account.balance

    async def transfer(self, command: Transfer) -> None:
        await self.accounts.edit(command.source, lambda account: account.deposit(-command.amount))
        await self.accounts.edit(command.target, lambda account: account.deposit(command.amount))

    async def balance(self, account_id: str = "a") -> Decimal:
        return (await self.accounts.load(account_id)).balance


@pytest.fixture(params=[1, 3], ids=["one partition", "three partitions"])
def bank(redis_url: str, request: pytest.FixtureRequest) -> Bank:
    return Bank(redis_url, request.param)


async def test_a_command_saves_its_aggregate_and_answers_with_its_place(bank: Bank) -> None:
    async with bank.app, running(bank.app):
        opened = await bank.app.dispatch(Open(account_id="a", amount=Decimal(5)))
        assert opened.value == "a"
        changed = await bank.app.dispatch(Change(account_id="a", amount=Decimal(-2)))
        assert changed.value == 3
        history = await bank.accounts.history("a")
        assert [record.position for record in history] == [opened.position, changed.position]
        assert changed.position is not None
        await bank.view.wait_for(changed.position, timeout=10)
        assert await bank.view.get("a") == Balance(account_id="a", balance=Decimal(3))


async def test_a_repeat_gives_the_first_answer_whatever_has_happened_since(bank: Bank) -> None:
    """A withdrawal that would overdraw now, an account that exists now: they were asked for before."""
    async with bank.app as app:
        opened = await app.dispatch(Open(account_id="a", amount=Decimal(5)), idempotency_key="open")
        taken = await app.dispatch(Change(account_id="a", amount=Decimal(-5)), idempotency_key="take")
        assert await app.dispatch(Open(account_id="a", amount=Decimal(5)), idempotency_key="open") == opened
        assert await app.dispatch(Change(account_id="a", amount=Decimal(-5)), idempotency_key="take") == taken
        assert await bank.balance() == 0
        assert len(bank.runs) == 2
        with pytest.raises(IdempotencyConflict):
            await app.dispatch(Change(account_id="a", amount=Decimal(-6)), idempotency_key="take")


async def test_the_answer_beside_the_aggregate_is_enough(bank: Bank, client: Any) -> None:
    """The process died after the append, before it kept the answer where it is looked for first."""
    async with bank.app as app:
        opened = await app.dispatch(Open(account_id="a", amount=Decimal(5)), idempotency_key="open")
        taken = await app.dispatch(Change(account_id="a", amount=Decimal(-5)), idempotency_key="take")
        await app.dispatch(Change(account_id="a", amount=Decimal(1)))
        assert client.delete("{bank-commands}:cmd:open", "{bank-commands}:cmd:take") == 2
        assert await app.dispatch(Change(account_id="a", amount=Decimal(-5)), idempotency_key="take") == taken
        assert await app.dispatch(Open(account_id="a", amount=Decimal(5)), idempotency_key="open") == opened
        assert await bank.balance() == 1
        assert client.exists("{bank-commands}:cmd:open", "{bank-commands}:cmd:take") == 2


async def test_a_handler_that_asks_whether_its_aggregate_exists_is_not_refused_by_its_own_repeat(
    bank: Bank, client: Any
) -> None:
    command = Open(account_id="a", amount=Decimal(5), unless_there=True)
    async with bank.app as app:
        opened = await app.dispatch(command, idempotency_key="open")
        assert client.delete("{bank-commands}:cmd:open") == 1
        assert await app.dispatch(command, idempotency_key="open") == opened
        with pytest.raises(ValueError, match="a exists"):
            await app.dispatch(command, idempotency_key="another")


async def test_a_handler_that_raises_has_written_nothing_also_after_its_save(bank: Bank, client: Any) -> None:
    async with bank.app as app:
        await app.dispatch(Open(account_id="a", amount=Decimal(5)))
        before = {key: client.dump(key) for key in client.scan_iter()}
        with pytest.raises(ValueError, match="overdraft: 5 are there"):
            await app.dispatch(Change(account_id="a", amount=Decimal(-6)), idempotency_key="take")
        bank.fail_after_save = True
        with pytest.raises(ValueError, match="after all, no"):
            await app.dispatch(Change(account_id="a", amount=Decimal(1)), idempotency_key="give")
        with pytest.raises(AggregateNotFound):
            await app.dispatch(Change(account_id="nobody", amount=Decimal(1)), idempotency_key="other")
        assert {key: client.dump(key) for key in client.scan_iter()} == before


async def test_commands_at_the_same_time_all_count_once(bank: Bank) -> None:
    """Each conflict runs the handler again on the aggregate as it is then; a key that comes three times counts once."""
    async with bank.app as app:
        await app.dispatch(Open(account_id="a", amount=Decimal(0)))
        commands = [(Change(account_id="a", amount=Decimal(n)), f"key-{n}") for n in range(1, 9)] * 3
        dispatched = (app.dispatch(command, idempotency_key=key) for command, key in commands)
        answers = await asyncio.gather(*dispatched)
        assert answers[:8] == answers[8:16] == answers[16:]
        assert await bank.balance() == sum(range(1, 9))
        assert [record.version for record in await bank.accounts.history("a")] == list(range(1, 10))


async def test_a_conflict_that_does_not_end_is_told(bank: Bank) -> None:
    async with bank.app as app:
        await app.dispatch(Open(account_id="a", amount=Decimal(5)))
        with pytest.raises(ConcurrencyConflict, match=r"expected version 0.*has version 1"):
            await app.dispatch(Open(account_id="a", amount=Decimal(5)))  # sees to no other account: never ends


async def test_sent_commands_are_saved_by_workers_once_per_key(bank: Bank) -> None:
    async with bank.app as app:
        await app.dispatch(Open(account_id="a", amount=Decimal(0)))
        sent = [
            await app.send(Change(account_id="a", amount=Decimal(1)), idempotency_key=f"k{n % 5}") for n in range(15)
        ]
        assert await burst(app) == 0
        answers = [await ticket.wait_for(1) for ticket in sent]
        assert sorted({answer.value for answer in answers}) == [1, 2, 3, 4, 5]
        assert answers[:5] == answers[5:10] == answers[10:]
        assert await bank.balance() == 5


async def test_a_second_aggregate_in_one_command_is_refused(bank: Bank) -> None:
    async with bank.app as app:
        for account_id in ("a", "b"):
            await app.dispatch(Open(account_id=account_id, amount=Decimal(5)))
        with pytest.raises(StreamlibError, match=r"a command changes one aggregate; this one has saved Account 'a'"):
            await app.dispatch(Transfer(source="a", target="b", amount=Decimal(1)))
        assert [await bank.balance(account_id) for account_id in ("a", "b")] == [5, 5]


@pytest.mark.row(21)
async def test_a_lost_reply_to_the_append_is_no_second_deposit(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reply is lost after the script ran: the append is sent again under its commit id."""
    execute, lost = RedisDoor.execute, list[Any]()

    async def losing(door: RedisDoor, *command: Any) -> Any:
        reply = await execute(door, *command)
        if command[:2] == ("EVALSHA", event_store._append.sha) and not lost:
            lost.append(reply)
            raise ConnectionResetError("the reply was lost")
        return reply

    async with bank.app as app:
        await app.dispatch(Open(account_id="a", amount=Decimal(1)))
        monkeypatch.setattr(RedisDoor, "execute", losing)
        answer = await app.dispatch(Change(account_id="a", amount=Decimal(2)), idempotency_key="give")
        monkeypatch.undo()
        assert lost
        assert answer == Answer(Decimal(3), (await bank.accounts.history("a"))[-1].position)
        assert await bank.balance() == 3
