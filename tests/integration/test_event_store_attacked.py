"""Aggregates under attack: one object saved by many tasks, outcomes that stay unknown, copies that never confirm."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis
import redis.exceptions

from streamlib.errors import RedisUnfit
from streamlib.redisio import event_store
from streamlib.redisio.connection import RedisDoor
from tests.helpers.accounts import STREAM, Account, elements, open_bank


async def test_tasks_that_share_an_aggregate_lose_no_event_of_it(redis_url: str, client: redis.Redis) -> None:
    """A save that finds another's under way must not take the other's events for its own."""
    async with open_bank(redis_url) as bank:
        account = Account("a")

        async def deposit(amount: int) -> str:
            account.deposit(amount)
            return (await bank.save(account)).entry_id

        saved = await asyncio.gather(*(deposit(amount) for amount in range(1, 21)))
        stored = await bank.load("a")
        assert (stored.balance, stored.version) == (account.balance, account.version)
        assert (int(stored.balance), stored.version) == (210, 20)
        assert set(saved) <= {entry_id for entry_id, _ in elements(client, "a")}
        assert client.xlen(STREAM) == 20


async def test_an_outcome_stays_unknown_when_a_replica_answers_the_resend(
    redis_url: str, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reply was lost, and then the address led to a replica: the next save is the same append."""
    execute, sent = RedisDoor.execute, 0

    async def failing_over(door: RedisDoor, *command: Any) -> Any:
        nonlocal sent
        if command[0] == "EVALSHA" and command[1] == event_store._append.sha:
            sent += 1
            if sent > 1:
                raise redis.exceptions.ReadOnlyError("You can't write against a read only replica.")
            await execute(door, *command)
            raise ConnectionResetError("the reply was lost")
        return await execute(door, *command)

    async with open_bank(redis_url, retry_s=0.1) as bank:
        account = Account("a")
        account.open()
        await bank.save(account)
        account.deposit(5)
        monkeypatch.setattr(RedisDoor, "execute", failing_over)
        with pytest.raises(RedisUnfit, match="read-only"):
            await bank.save(account)
        monkeypatch.undo()
        position = await bank.save(account)
        assert [position.entry_id] == [entry_id for entry_id, _ in elements(client, "a")][1:]
        assert (await bank.load("a")).balance == 5
    assert client.xlen(STREAM) == 2
