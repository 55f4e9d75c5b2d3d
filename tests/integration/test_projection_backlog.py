"""Under a backlog a batch takes many reads, and is folded upon another that is being committed: nothing is lost or
doubled, and nothing of a failed one is kept."""

from collections.abc import AsyncIterator, Iterable
from decimal import Decimal
from typing import Any

import pytest
import redis

from streamlib.event import Event
from streamlib.message import Position
from streamlib.redisio.commits import MAX_EVENTS, MAX_ROWS
from tests.helpers.projecting import TOPIC, VIEW, Balance, Closed, Moved, Noted, Opened, Rig
from tests.helpers.waiting import eventually

HEAD = f"{{{TOPIC}}}:view:{VIEW}:1"
OWNER = f"{{{TOPIC}}}:owner:{VIEW}"
DEAD = f"{{{TOPIC}}}:dead:{VIEW}"
ACCOUNTS = 40
BATCHES = 5
READ = 500


@pytest.fixture
async def rig(redis_url: str) -> AsyncIterator[Rig]:
    async with Rig(redis_url, lease_ms=1_500) as rig:
        yield rig


def opened(rig: Rig, client: redis.Redis) -> None:
    rig.publish_many(client, [(Opened(account=f"a{n}", owner=f"o{n % 3}"), f"open-{n}") for n in range(ACCOUNTS)])


def moves(rig: Rig, client: redis.Redis, numbers: Iterable[int]) -> Position:
    """A move for each number, by an id of its own; some accounts are closed and opened again in between."""
    events: list[tuple[Event, str | None]] = []
    for n in numbers:
        account = f"a{n % ACCOUNTS}"
        if n % 97 == 0:
            events.append((Closed(account=account), f"close-{n}"))
            events.append((Opened(account=account, owner=f"o{n % 4}"), f"open-again-{n}"))
        events.append((Moved(account=account, amount=Decimal(n) / 3), f"move-{n}"))
    return rig.publish_many(client, events)


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


def commits(client: redis.Redis) -> int:
    """Each moves the group."""
    stats: Any = client.info("commandstats")
    return int(stats.get("cmdstat_xgroup|setid", {"calls": 0})["calls"])


def row_writes(client: redis.Redis) -> int:
    """Each commit writes to the head of the view and, for marks of indexes, to it again."""
    stats: Any = client.info("commandstats")
    return int(stats["cmdstat_hset"]["calls"])


async def test_what_the_events_of_a_backlog_do_to_one_row_is_written_once(rig: Rig, client: redis.Redis) -> None:
    opened(rig, client)
    last = moves(rig, client, range(1, MAX_EVENTS - ACCOUNTS - 100))
    client.config_resetstat()
    async with rig.running():
        await rig.view.wait_for(last, timeout=30)
        assert commits(client) <= 2
        assert row_writes(client) < 10 * ACCOUNTS
        assert await is_right(rig, client)


async def test_a_commit_changes_only_so_many_rows(rig: Rig, client: redis.Redis) -> None:
    last = rig.publish_many(client, [(Opened(account=f"a{n}", owner="o"), None) for n in range(3 * MAX_ROWS)])
    client.config_resetstat()
    async with rig.running():
        await rig.view.wait_for(last, timeout=30)
        assert commits(client) >= 3
        assert await rig.view.count(owner="o") == 3 * MAX_ROWS


async def test_a_commit_waits_for_no_entries_that_are_not_there_yet(redis_url: str, client: redis.Redis) -> None:
    async with Rig(redis_url, block_ms=30_000) as rig:
        last = moves(rig, client, range(2 * READ - 10))  # what one read brings, twice, with those of closed accounts
        assert client.xlen(TOPIC) % READ
        while client.xlen(TOPIC) % READ:
            last = rig.publish(client, Closed(account="a0"))
        async with rig.running():
            await rig.view.wait_for(last, timeout=20)  # shorter than a read waits


async def test_a_row_that_cannot_be_stored_is_the_fault_of_the_event_that_made_it(
    rig: Rig, client: redis.Redis
) -> None:
    @rig.view.on(Noted)
    def noted(row: Balance | None, event: Noted) -> Balance:
        assert row is not None
        return Balance(account=row.account, owner=row.owner, balance=Decimal(event.text), moves=row.moves)

    opened(rig, client)
    moves(rig, client, range(1, 60))
    rig.publish(client, Noted(account="a7", text="NaN"), "bad")
    last = moves(rig, client, range(60, 300))  # the row could be stored again
    async with rig.running():
        await rig.view.wait_for(last, timeout=30)
        assert await rig.stored(client) == rig.recomputed(client, without=[b"bad"])
    dead: Any = client.xrange(DEAD)
    assert [(fields[b"id"], fields[b"dl-reason"]) for _, fields in dead] == [(b"bad", b"schema")]


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
        moves(rig, client, range(9000, 9000 + 2 * MAX_EVENTS))
        async with rig.running() as (projector,):
            await eventually(lambda: projector.problems, what="it halts")
            assert bad.entry_id in projector.problems[0]
            assert client.hget(HEAD, "checkpoint") == good.entry_id.encode()
            assert await rig.stored(client) == expected
