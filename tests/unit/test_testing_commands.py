"""Commands and aggregates on the Redis inside the process: an app's own tests need no server for them."""

from __future__ import annotations

from decimal import Decimal

from streamlib import Aggregate, App, Command, Event, ReadModel, applies
from streamlib.testing import run_app

app = App("bank")


class Moved(Event):
    account_id: str
    amount: Decimal


class Account(Aggregate):
    balance: Decimal = Decimal(0)

    @applies(Moved)
    def _moved(self, event: Moved) -> None:
        self.balance += event.amount


class Move(Command):
    account_id: str
    amount: Decimal


class Row(ReadModel):
    account_id: str
    balance: Decimal


accounts = app.topic("accounts", Moved, key="account_id")
bank = app.repository(Account, accounts, snapshot_every=2)
balances = app.projection("balances", accounts, Row, key="account_id")


@balances.on(Moved)
def moved(row: Row | None, event: Moved) -> Row:
    return Row(account_id=event.account_id, balance=event.amount + (row.balance if row else 0))


@app.command_handler
async def move(command: Move) -> Decimal:
    account = await bank.load_or_new(command.account_id)
    account.record(Moved(account_id=account.id, amount=command.amount))
    await bank.save(account)
    return account.balance


async def test_commands_run_in_process_dispatched_and_sent() -> None:
    async with run_app(app) as harness:
        dispatched = [
            await app.dispatch(Move(account_id="a", amount=Decimal(5)), idempotency_key="k") for _ in range(2)
        ]
        ticket = await app.send(Move(account_id="a", amount=Decimal(2)))
        await harness.drain()
        assert dispatched[0] == dispatched[1]
        assert (await ticket.wait_for(1)).value == 7
        assert await balances.get("a") == Row(account_id="a", balance=Decimal(7))
        assert [record.version for record in await bank.history("a")] == [1, 2]
        assert (await bank.load("a")).balance == 7
        assert not harness.dead
