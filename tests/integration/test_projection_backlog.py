"""Under a backlog one batch is folded upon another that is being committed: nothing is lost or doubled, and nothing
of a failed one is kept."""

from collections.abc import AsyncIterator, Iterable
from decimal import Decimal
from typing import Any

import pytest
import redis

from streamlib.message import Position
from streamlib.redisio.commits import MAX_EVENTS
from tests.helpers.projecting import TOPIC, VIEW, Closed, Moved, Opened, Rig
from tests.helpers.waiting import eventually

HEAD = f"{{{TOPIC}}}:view:{VIEW}:1"
OWNER = f"{{{TOPIC}}}:owner:{VIEW}"
DEAD = f"{{{TOPIC}}}:dead:{VIEW}"
ACCOUNTS = 40
BATCHES = 5


@pytest.fixture
async def rig(redis_url: str) -> AsyncIterator[Rig]:
    async with Rig(redis_url, lease_ms=1_500) as rig:
        yield rig


def opened(rig: Rig, client: redis.Redis) -> None:
    for n in range(ACCOUNTS):
        rig.publish(client, Opened(account=f"a{n}", owner=f"o{n % 3}"), f"open-{n}")


def moves(rig: Rig, client: redis.Redis, numbers: Iterable[int]) -> Position:
    """A move for each number, by an id of its own; some accounts are closed and opened again in between."""
    for n in numbers:
        account = f"a{n % ACCOUNTS}"
        if n % 97 == 0:
            rig.publish(client, Closed(account=account), f"close-{n}")
            rig.publish(client, Opened(account=account, owner=f"o{n % 4}"), f"open-again-{n}")
        last = rig.publish(client, Moved(account=account, amount=Decimal(n) / 3), f"move-{n}")
    return last


async def is_right(rig: Rig, client: redis.Redis) -> bool:
    expected = rig.recomputed(client)
    for owner in ("o0", "o1", "o2", "o3"):
        named = sorted(row.account for row in expected.values() if row.owner == owner)
        assert [row.account for row in await rig.view.find(owner=owner)] == named
    by_balance = sorted(expected.values(), key=lambda row: (row.balance, row.account))
    assert await rig.view.between("balance", None, None, limit=1000) == by_balance
    assert await rig.view.count() == len(expected)
    return await rig.stored(client) == expected


async def test_copies_of_events_whose_commit_is_still_under_way_are_folded_once(rig: Rig, client: redis.Redis) -> None:
    opened(rig, client)
    for n in range(BATCHES):  # the next batch brings the events of this one again, and some of the one before
        some = range(n * MAX_EVENTS // 2, (n + 1) * MAX_EVENTS // 2)
        moves(rig, client, some)
        last = moves(rig, client, [*some, *range(max(some.start - 50, 0), some.start)])
    async with rig.running():
        await rig.view.wait_for(last, timeout=30)
        assert await is_right(rig, client)


@pytest.mark.allow_keys(f"{HEAD}:by:*")
async def test_what_was_folded_upon_a_commit_that_could_not_be_written_is_folded_anew(
    rig: Rig, client: redis.Redis
) -> None:
    opened(rig, client)
    bad = [b"bad-%d" % n for n in range(3)]
    for n, bad_id in enumerate(bad):
        moves(rig, client, range(n * 1200, n * 1200 + 200))
        client.set(f"{HEAD}:by:owner:wrong{n}", "mine")  # only the commit finds out
        rig.publish(client, Opened(account=f"a{n}", owner=f"wrong{n}"), bad_id.decode())
        last = moves(rig, client, range(n * 1200 + 200, n * 1200 + 1200))  # batches that could be written as they are
    async with rig.running():
        await rig.view.wait_for(last, timeout=30)
        assert await rig.stored(client) == rig.recomputed(client, without=bad)
    dead: Any = client.xrange(DEAD)
    assert [fields[b"id"] for _, fields in dead] == bad


async def test_an_owner_that_is_robbed_in_mid_backlog_keeps_nothing_of_what_it_folded(
    rig: Rig, client: redis.Redis
) -> None:
    opened(rig, client)
    async with rig.running():
        for n in range(4):
            before = client.hget(HEAD, "checkpoint")
            last = moves(rig, client, range(n * 1500, n * 1500 + 1500))
            await eventually(lambda before=before: client.hget(HEAD, "checkpoint") != before, what="it projects")  # type: ignore[misc]
            client.hset(OWNER, mapping={"owner": "thief", "deadline": "0"})
            client.hincrby(OWNER, "epoch", 1)
        await rig.view.wait_for(last, timeout=30)
        assert await is_right(rig, client)


async def test_a_view_that_halts_in_mid_backlog_contains_all_that_came_before(
    redis_url: str, client: redis.Redis
) -> None:
    async with Rig(redis_url, on_error="halt") as rig:
        opened(rig, client)
        good = moves(rig, client, range(2 * MAX_EVENTS + 100))
        expected = rig.recomputed(client)
        bad = rig.publish(client, Moved(account="nobody", amount=Decimal(1)))
        moves(rig, client, range(5000, 5000 + 2 * MAX_EVENTS))
        async with rig.running() as (projector,):
            await eventually(lambda: projector.problems, what="it halts")
            assert bad.entry_id in projector.problems[0]
            assert client.hget(HEAD, "checkpoint") == good.entry_id.encode()
            assert await rig.stored(client) == expected
