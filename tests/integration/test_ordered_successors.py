"""Busy keys of an ordered group: one round trip per event, no other key waits for them, and they stop like others."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
import redis

from streamlib import App, Event
from streamlib.keys import Keys
from streamlib.redisio.claims import Claimed
from streamlib.redisio.delivery import Delivery
from streamlib.redisio.pauses import pause, resume
from streamlib.worker.parts import Parts
from tests.helpers.delivering import counted, running, settings
from tests.helpers.marks import COMPACT
from tests.helpers.waiting import eventually

TOPIC, GROUP = "moves", "ledger"


class Moved(Event):
    account: str
    n: int


class Bank:
    """An app with one ordered group, and what ran there."""

    def __init__(self, url: str, *, seconds: float = 0.0, **worker: Any) -> None:
        self.app = App("bank", settings=settings(url, **worker))
        self.moves = self.app.topic(TOPIC, Moved, key="account")
        self.ran: list[tuple[str, int]] = []

        @self.app.handler(self.moves, group=GROUP, ordering="key")
        async def move(event: Moved) -> None:
            await asyncio.sleep(seconds)
            self.ran.append((event.account, event.n))

    async def publish(self, account: str, count: int) -> None:
        await self.moves.publish_many([Moved(account=account, n=n) for n in range(count)])


def claims(client: Any) -> list[str]:
    """The states of events that somebody has claimed and not settled."""
    keys = Keys().stream(TOPIC, 0, 1)
    found = [client.get(name) for name in client.scan_iter(match=keys.idem(GROUP, "*"))]
    return [state.decode() for state in found if state.startswith(b"c")]


@pytest.mark.skipif(COMPACT, reason="with the compact store nothing is claimed along with a settle")
async def test_a_busy_key_is_claimed_for_once_and_then_led_on(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bank, claimed, original = Bank(redis_url), 0, Parts.claim

    async def counting(self: Parts, deliveries: Sequence[Delivery], *, take_suspects: bool = False) -> list[Claimed]:
        nonlocal claimed
        claimed += len(deliveries)
        return await original(self, deliveries, take_suspects=take_suspects)

    monkeypatch.setattr(Parts, "claim", counting)
    async with bank.app:
        await bank.publish("a", 400)
        async with running(bank.app):
            await eventually(lambda: len(bank.ran) == 400)
    assert bank.ran == [("a", n) for n in range(400)]
    assert claimed < 40, "nearly all are claimed by the script that settles the one before"


async def test_a_long_backlog_of_one_key_lets_the_others_in(redis_url: str) -> None:
    bank = Bank(redis_url, seconds=0.06, concurrency=1)
    async with bank.app:
        await bank.publish("busy", 30)
        for account in ("b", "c", "d"):
            await bank.publish(account, 1)
        async with running(bank.app):
            await eventually(lambda: len(bank.ran) == 33)
    order = [account for account, _ in bank.ran]
    assert max(order.index(account) for account in ("b", "c", "d")) < 10, order


async def test_a_paused_group_leaves_no_successor_claimed(redis_url: str, client: redis.Redis) -> None:
    bank = Bank(redis_url, seconds=0.01)
    async with bank.app:
        await bank.publish("a", 300)
        async with running(bank.app) as one:
            await eventually(lambda: len(bank.ran) >= 10)
            await pause(bank.app.redis, bank.app.keys, TOPIC, GROUP)
            await eventually(lambda: "paused" in one.worker.readiness()[1])
            await eventually(lambda: not claims(client))
            assert len(bank.ran) < 300, "it was paused at work"
            await resume(bank.app.redis, bank.app.keys, TOPIC, GROUP)
            await eventually(lambda: len(bank.ran) == 300)
    assert bank.ran == [("a", n) for n in range(300)]


async def test_a_drained_worker_leaves_no_successor_claimed_and_the_next_goes_on(
    redis_url: str, client: redis.Redis
) -> None:
    bank = Bank(redis_url, seconds=0.001)
    async with bank.app:
        await bank.publish("a", 600)
        for _ in range(2):
            ran = len(bank.ran)
            async with running(bank.app):
                await eventually(lambda: len(bank.ran) >= ran + 50)  # noqa: B023 - asked in this very turn
            assert len(bank.ran) < 600, "it was stopped at work"
            assert not claims(client)
        async with running(bank.app):
            await eventually(lambda: len(bank.ran) == 600)
    assert bank.ran == [("a", n) for n in range(600)]
    assert not counted(bank.app, "lease_lost_total")
