"""Event sourcing: an account is what has happened to it, and nothing else is stored.

Use it where how something came about matters as much as what it is: money, contracts, stock. A balance is folded from
the events, so the history is no log beside the truth, it is the truth. A save names the version that the decision was
made on: of two withdrawals at one moment, one is decided again with the other one known.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

from msgspec import Struct

from streamlib import Aggregate, Command, Event, Reject, applies
from workers.shop.app import app

SNAPSHOT_EVERY = 100
"""A load folds the events since the last snapshot: 99 at most. Fewer cost more writes."""


class AccountOpened(Event):
    account_id: str
    owner: str


class MoneyDeposited(Event):
    account_id: str
    amount: Decimal


class MoneyWithdrawn(Event):
    account_id: str
    amount: Decimal


accounts = app.topic("accounts", AccountOpened, MoneyDeposited, MoneyWithdrawn, key="account_id", partitions=2)


class Overdraft(Reject):
    """A withdrawal of more than there is. A Reject: no retry would mend it."""


class Account(Aggregate):
    """Methods decide and record; what `@applies` only adds up, for it runs again whenever the account is loaded."""

    owner: str = ""
    balance: Decimal = Decimal(0)

    def open(self, owner: str) -> None:
        if self.owner:
            raise Reject(f"account {self.id} is open already, for {self.owner}")
        if not owner:
            raise Reject(f"account {self.id} needs an owner")
        self.record(AccountOpened(account_id=self.id, owner=owner))

    def deposit(self, amount: Decimal) -> None:
        if amount <= 0:
            raise Reject(f"account {self.id}: a deposit of {amount}")
        self.record(MoneyDeposited(account_id=self.id, amount=amount))

    def withdraw(self, amount: Decimal) -> None:
        if amount <= 0:
            raise Reject(f"account {self.id}: a withdrawal of {amount}")
        if amount > self.balance:
            raise Overdraft(f"account {self.id}: {amount} is more than its balance of {self.balance}")
        self.record(MoneyWithdrawn(account_id=self.id, amount=amount))

    @applies(AccountOpened)
    def _opened(self, event: AccountOpened) -> None:
        self.owner = event.owner

    @applies(MoneyDeposited)
    def _deposited(self, event: MoneyDeposited) -> None:
        self.balance += event.amount

    @applies(MoneyWithdrawn)
    def _withdrawn(self, event: MoneyWithdrawn) -> None:
        self.balance -= event.amount


bank = app.repository(Account, accounts, snapshot_every=SNAPSHOT_EVERY)


class OpenAccount(Command):
    account_id: str
    owner: str


class Deposit(Command):
    account_id: str
    amount: Decimal


class Withdraw(Command):
    account_id: str
    amount: Decimal


@app.command_handler
async def open_account(command: OpenAccount) -> None:
    account = await bank.load_or_new(command.account_id)
    account.open(command.owner)
    await bank.save(account)


@app.command_handler
async def deposit(command: Deposit) -> Decimal:
    account = await bank.load(command.account_id)
    account.deposit(command.amount)
    await bank.save(account)
    return account.balance


@app.command_handler
async def withdraw(command: Withdraw) -> Decimal:
    account = await bank.load(command.account_id)
    account.withdraw(command.amount)
    await bank.save(account)
    return account.balance


class Line(Struct, frozen=True):
    """One line of a statement: what happened, and the balance after it."""

    version: int
    at: datetime
    what: str
    balance: Decimal


async def statement(account_id: str) -> list[Line]:
    """The audit trail of an account: its events, folded once more into an account that is never saved."""
    account, lines = Account(account_id), list[Line]()
    for one in await bank.history(account_id):
        account.record(one.event)
        at = datetime.fromtimestamp(one.time / 1000, tz=UTC)
        lines.append(Line(one.version, at, type(one.event).__name__, account.balance))
    return lines
