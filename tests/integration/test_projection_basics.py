"""A view equals the fold of its stream: rows, indexes and counters, through deletes, copies and bad events."""

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest
import redis

from streamlib.errors import DeclarationError
from streamlib.event import Event, Registry
from streamlib.keys import Keys
from streamlib.message import Position
from streamlib.redisio.registry import declare_types
from streamlib.topic import TopicSpec
from streamlib.worker.projection import Projection
from tests.helpers.projecting import TOPIC, VIEW, Balance, Closed, Moved, Noted, Opened, Rig
from tests.helpers.waiting import eventually

DEAD = f"{{{TOPIC}}}:dead:{VIEW}"
HEAD = f"{{{TOPIC}}}:view:{VIEW}:1"


@pytest.fixture
async def rig(redis_url: str) -> AsyncIterator[Rig]:
    async with Rig(redis_url) as rig:
        yield rig


async def test_a_view_shows_what_the_events_say(rig: Rig, client: redis.Redis) -> None:
    rig.publish(client, Opened(account="a", owner="ann", limit=Decimal("100.00")))
    rig.publish(client, Noted(account="a", text="no fold for this"))
    last = rig.publish(client, Moved(account="a", amount=Decimal("12.50")))
    async with rig.running():
        await rig.view.wait_for(last, timeout=10)
        assert await rig.view.get("a") == Balance(
            account="a", owner="ann", balance=Decimal("12.50"), limit=Decimal("100.00"), moves=1
        )
        assert await rig.view.get("nobody") is None
        assert await rig.view.count() == 1


async def test_lag_in_xinfo_is_right_and_a_lost_group_is_made_again(rig: Rig, client: redis.Redis) -> None:
    async with rig.running():
        await rig.view.wait_for(rig.publish(client, Opened(account="a", owner="ann")), timeout=10)
        client.xgroup_destroy(TOPIC, VIEW)
        last = rig.publish(client, Moved(account="a", amount=Decimal(1)))
        await rig.view.wait_for(last, timeout=10)
    rig.publish(client, Moved(account="a", amount=Decimal(1)))
    rig.publish(client, Moved(account="a", amount=Decimal(1)))
    groups: Any = client.xinfo_groups(TOPIC)
    assert [(group["last-delivered-id"], group["lag"]) for group in groups] == [(last.entry_id.encode(), 2)]


async def test_lag_counts_from_a_stream_that_was_trimmed_before(rig: Rig, client: redis.Redis) -> None:
    for n in range(5):
        rig.publish(client, Opened(account=f"a{n}", owner="ann"))
    client.xtrim(TOPIC, maxlen=3, approximate=False)
    async with rig.running():
        last = rig.publish(client, Moved(account="a4", amount=Decimal(1)))
        await rig.view.wait_for(last, timeout=10)
    rig.publish(client, Moved(account="a4", amount=Decimal(1)))
    groups: Any = client.xinfo_groups(TOPIC)
    assert groups[0]["lag"] == 1


async def test_a_deleted_row_leaves_indexes_and_counter(rig: Rig, client: redis.Redis) -> None:
    for account in ("a", "b"):
        rig.publish(client, Opened(account=account, owner="ann"))
    async with rig.running():
        await rig.view.wait_for(rig.publish(client, Closed(account="a")), timeout=10)
        assert await rig.view.count() == 1
        assert await rig.view.count(owner="ann") == 1
        assert [row.account for row in await rig.view.find(owner="ann")] == ["b"]
        await rig.view.wait_for(rig.publish(client, Closed(account="b")), timeout=10)
        assert await rig.view.count() == 0
    assert not client.keys("*:by:*")
    assert not client.keys("*:row:*")


async def test_a_deleted_row_that_another_owner_loaded_leaves_its_indexes(rig: Rig, client: redis.Redis) -> None:
    async with rig.running("first"):
        await rig.view.wait_for(rig.publish(client, Opened(account="a", owner="ann")), timeout=10)
    async with rig.running("second"):
        await rig.view.wait_for(rig.publish(client, Closed(account="a")), timeout=10)
    assert not client.keys("*:by:*")


async def test_a_changed_value_leaves_its_old_index(rig: Rig, client: redis.Redis) -> None:
    async with rig.running():
        await rig.view.wait_for(rig.publish(client, Opened(account="a", owner="ann")), timeout=10)
        await rig.view.wait_for(rig.publish(client, Opened(account="a", owner="bob")), timeout=10)
        assert await rig.view.find(owner="ann") == []
        assert await rig.view.count(owner="ann") == 0
        assert [row.owner for row in await rig.view.find(owner="bob")] == ["bob"]


async def test_copies_of_an_event_are_folded_once(rig: Rig, client: redis.Redis) -> None:
    rig.publish(client, Opened(account="a", owner="ann"))
    for _ in range(3):  # within one batch
        last = rig.publish(client, Moved(account="a", amount=Decimal(5)), "e-1")
    async with rig.running("first"):
        await rig.view.wait_for(last, timeout=10)
    last = rig.publish(client, Moved(account="a", amount=Decimal(5)), "e-1")  # and later, elsewhere
    async with rig.running("second"):
        await rig.view.wait_for(last, timeout=10)
        row = await rig.view.get("a")
    assert row is not None
    assert (row.balance, row.moves) == (Decimal(5), 1)


async def test_bad_events_go_to_the_dead_letters_and_harm_no_neighbour(rig: Rig, client: redis.Redis) -> None:
    rig.publish(client, Opened(account="a", owner="ann"))
    rig.publish(client, Moved(account="nobody", amount=Decimal(1)), "raises")
    client.xadd(TOPIC, {"no": "event"})
    client.xadd(TOPIC, {"id": "x", "type": "Moved", "v": "1", "key": "a", "data": b'{"account":"a"}'})
    client.xadd(TOPIC, {"id": "y", "type": "Moved", "v": "1", "key": "a", "data": b'{"account":"","amount":"1"}'})
    last = rig.publish(client, Moved(account="a", amount=Decimal(2)))
    async with rig.running():
        await rig.view.wait_for(last, timeout=10)
        row = await rig.view.get("a")
    assert row is not None
    assert row.balance == 2
    dead: Any = client.xrange(DEAD)
    assert [fields[b"dl-reason"] for _, fields in dead] == [b"rejected", b"decode", b"schema", b"schema"]
    assert int(dead[0][1][b"dl-at"]) == pytest.approx(int(dead[0][0].partition(b"-")[0]), abs=5)
    assert dead[0][1][b"id"] == b"raises"
    assert client.get(f"{{{TOPIC}}}:idem:{VIEW}:raises") == b"x"


async def test_halt_stops_at_the_failing_event_and_keeps_the_partition(redis_url: str, client: redis.Redis) -> None:
    async with Rig(redis_url, on_error="halt") as rig:
        good = rig.publish(client, Opened(account="a", owner="ann"))
        bad = rig.publish(client, Moved(account="nobody", amount=Decimal(1)))
        rig.publish(client, Moved(account="a", amount=Decimal(1)))
        async with rig.running() as (projector,):
            await rig.view.wait_for(good, timeout=10)
            await eventually(lambda: projector.problems, what="the projector says that it halted")
            assert bad.entry_id in projector.problems[0]
            assert projector.owned == {0}
            row = await rig.view.get("a")
            assert row is not None
            assert row.moves == 0
            with pytest.raises(TimeoutError, match=f"has reached {good.entry_id} .* not {bad.entry_id}"):
                await rig.view.wait_for(bad, timeout=0.05)
        assert not client.exists(DEAD)


@pytest.mark.row(35)
@pytest.mark.allow_keys(f"{{{TOPIC}}}:view:*")
@pytest.mark.parametrize("where", ["row", "index"])
@pytest.mark.parametrize("when", ["before", "while cached"])
async def test_a_key_of_another_type_harms_only_its_own_events(
    rig: Rig, client: redis.Redis, where: str, when: str
) -> None:
    key = f"{HEAD}:row:a" if where == "row" else f"{HEAD}:by:owner:ann"
    async with rig.running():
        if when == "while cached":
            await rig.view.wait_for(rig.publish(client, Opened(account="a", owner="x")), timeout=10)
        client.delete(key)
        client.set(key, "mine")
        rig.publish(client, Opened(account="b", owner="bob"))
        rig.publish(client, Opened(account="a", owner="ann"), "bad")
        last = rig.publish(client, Moved(account="b", amount=Decimal(3)))
        await rig.view.wait_for(last, timeout=10)
        row = await rig.view.get("b")
    assert row is not None
    assert row.balance == 3
    assert client.get(key) == b"mine"
    dead: Any = client.xrange(DEAD)
    assert [fields[b"id"] for _, fields in dead] == [b"bad"]
    assert key.encode() in dead[0][1][b"dl-error"]


async def test_a_shared_key_of_another_type_stops_the_view_until_it_is_mended(rig: Rig, client: redis.Redis) -> None:
    client.set(DEAD, "mine")
    last = rig.publish(client, Opened(account="a", owner="ann"))
    async with rig.running() as (projector,):
        await eventually(lambda: projector.problems, what="the projector says what is wrong")
        assert DEAD in projector.problems[0]
        client.delete(DEAD)
        await rig.view.wait_for(last, timeout=10)
        assert await rig.view.count() == 1
        await eventually(lambda: not projector.problems, what="it is healthy again")


async def test_events_of_partitions_fold_into_one_view(redis_url: str, client: redis.Redis) -> None:
    async with Rig(redis_url, partitions=4) as rig:
        last: dict[int, Position] = {}
        for n in range(100):
            for event in (
                Opened(account=f"a{n}", owner=f"o{n % 3}"),
                Moved(account=f"a{n}", amount=Decimal(n) / 4),
            ):
                position = rig.publish(client, event)
                last[position.partition] = position
        async with rig.running("one", "two"):
            for position in last.values():
                await rig.view.wait_for(position, timeout=10)
            assert await rig.view.count() == 100
            assert await rig.stored(client) == rig.recomputed(client)
            assert [row.account for row in await rig.view.between("balance", 10, 11)] == [
                "a40",
                "a41",
                "a42",
                "a43",
                "a44",
            ]
            assert len(await rig.view.find(owner="o1")) == await rig.view.count(owner="o1") == 33
            assert [row.account for row in await rig.view.prefix("account", "A9", limit=3)] == ["a9", "a90", "a91"]
        assert len(last) == 4


async def test_a_stopped_projector_lets_another_take_over_at_once(redis_url: str, client: redis.Redis) -> None:
    async with Rig(redis_url, lease_ms=60_000) as rig:
        async with rig.running("first"):
            await rig.view.wait_for(rig.publish(client, Opened(account="a", owner="ann")), timeout=10)
        owner: dict[bytes, bytes] = client.hgetall(f"{{{TOPIC}}}:owner:{VIEW}")  # type: ignore[assignment]
        assert owner[b"deadline"] == b"0"
        async with rig.running("second"):
            await rig.view.wait_for(rig.publish(client, Closed(account="a")), timeout=10)
            later: dict[bytes, bytes] = client.hgetall(f"{{{TOPIC}}}:owner:{VIEW}")  # type: ignore[assignment]
            assert int(later[b"epoch"]) > int(owner[b"epoch"])


async def test_a_type_only_newer_workers_know_waits_for_them(rig: Rig, client: redis.Redis) -> None:
    first = rig.publish(client, Opened(account="a", owner="ann"))
    await declare_types(rig.door, rig.keys, TOPIC, VIEW, ["Opened", "Frozen"])
    client.xadd(TOPIC, {"id": "n", "type": "Frozen", "v": "1", "key": "a", "data": b"{}"})
    async with rig.running() as (projector,):
        await rig.view.wait_for(first, timeout=10)
        await eventually(lambda: projector.idle and not projector.owned, what="the partition is released")
    assert client.hget(HEAD, "checkpoint") == first.entry_id.encode()
    assert not client.exists(DEAD)


def test_what_cannot_be_projected_is_refused_when_declared() -> None:
    topic = TopicSpec(name="t", registry=Registry([Opened, Closed]), key="account", partitions=2)

    def made(**options: Any) -> Projection[Balance]:
        given: dict[str, Any] = {"key": "account", "keys": Keys(), "redis": asyncio.Event} | options
        return Projection("v", topic, Balance, **given)

    with pytest.raises(DeclarationError, match="2 partitions by 'account'"):
        made(key="owner")
    with pytest.raises(DeclarationError, match="on_error='ignore'"):
        made(on_error="ignore")
    view = made()
    with pytest.raises(DeclarationError, match="not async"):

        @view.on(Opened)
        async def _(row: Balance | None, event: Opened) -> Balance | None:
            return row

    with pytest.raises(DeclarationError, match="takes \\(row, event\\)"):
        view.on(Opened)(lambda event: None)
    with pytest.raises(DeclarationError, match="does not declare"):
        view.on(Moved)
    with pytest.raises(DeclarationError, match="needs the event classes"):
        view.on()
    view.on(Opened, Closed)(lambda row, event: row)
    with pytest.raises(DeclarationError, match="folds Closed twice"):
        view.on(Closed)(lambda row, event: row)
    assert view.type_names == {"Opened", "Closed"}


def test_an_event_without_the_key_is_refused_when_declared() -> None:
    class Loose(Event):
        other: str

    topic = TopicSpec(name="t", registry=Registry([Loose]))
    view = Projection("v", topic, Balance, key="account", keys=Keys, redis=lambda: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(DeclarationError, match="Loose has no such field"):
        view.on(Loose)
