"""An account that is kept as its events, its topic, and stores of their own for a test."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import redis

from streamlib import Aggregate, Event, Repository, applies
from streamlib.event import Registry
from streamlib.keys import Keys
from streamlib.message import Message
from streamlib.redisio.event_store import EventStore
from streamlib.redisio.publisher import Publisher
from streamlib.settings import LimitSettings
from streamlib.topic import TopicSpec
from tests.helpers.publishing import open_door


class Opened(Event):
    account_id: str
    owner: str = "Ada"


class Deposited(Event):
    account_id: str
    amount: Decimal = Decimal(1)


class Account(Aggregate):
    owner: str = ""
    balance: Decimal = Decimal(0)
    notes: list[str] = []  # noqa: RUF012 - every aggregate has a copy of its own

    def open(self, owner: str = "Ada") -> None:
        self.record(Opened(account_id=self.id, owner=owner))

    def deposit(self, amount: Decimal | int = 1) -> None:
        if amount <= 0:
            raise ValueError("amount must be positive")
        self.record(Deposited(account_id=self.id, amount=Decimal(amount)))

    @applies(Opened)
    def _opened(self, event: Opened) -> None:
        self.owner = event.owner
        self.notes.append(f"opened for {event.owner}")

    @applies(Deposited)
    def _deposited(self, event: Deposited) -> None:
        self.balance += event.amount


def topic(name: str = "accounts", **declared: Any) -> TopicSpec:
    return TopicSpec(name=name, registry=Registry([Opened, Deposited]), key="account_id", **declared)


ACCOUNTS = topic()
STREAM, LIST = "accounts", "{accounts}:agg:"
"""The stream of that topic, and what stands before the id in the key of an aggregate."""


def deposits(account_id: str, count: int = 1, of: TopicSpec = ACCOUNTS, *, amount: int = 1) -> list[Message]:
    """Events for an append."""
    return [of.message(Deposited(account_id=account_id, amount=Decimal(amount)), key=account_id) for _ in range(count)]


@asynccontextmanager
async def open_store(url: str, *, limits: LimitSettings | None = None, **settings: Any) -> AsyncIterator[EventStore]:
    """A store with a door of its own; `settings` are RedisSettings (timeout_s, retry_s)."""
    async with open_door(url, **settings) as door:
        limits = limits or LimitSettings()
        store = EventStore(door, Keys(), limits, Publisher(door, Keys(), limits).encode)
        try:
            yield store
        finally:
            await store.close()


@asynccontextmanager
async def open_bank(
    url: str, of: TopicSpec = ACCOUNTS, *, snapshot_every: int | None = None, **settings: Any
) -> AsyncIterator[Repository[Account]]:
    """A repository of accounts with a door of its own."""
    async with open_store(url, **settings) as store:
        yield Repository(Account, of, store=lambda: store, snapshot_every=snapshot_every)


def elements(client: redis.Redis, account_id: str) -> list[tuple[str, str]]:
    """The entry id and the commit id of each event of an account."""
    found: Any = client.lrange(LIST + account_id, 0, -1)
    return [(element.split(b" ")[0].decode(), element.split(b" ")[1].decode()) for element in found]


def everything(client: redis.Redis) -> dict[bytes, Any]:
    """Every key with its serialized value: equal before and after means that nothing was written."""
    return {key: client.dump(key) for key in client.scan_iter()}
