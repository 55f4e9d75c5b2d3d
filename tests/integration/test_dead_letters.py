"""Dead letters on a real server: nothing is lost or doubled by replay, scans page, ids lead back to their letter."""

import asyncio
from collections.abc import AsyncIterator, Callable
from itertools import count
from typing import Any, Literal

import pytest
import redis

from streamlib import App, Retry
from streamlib.errors import NotFound, RedisUnavailable, StreamlibError, WrongKeyType
from streamlib.event import Event, Registry
from streamlib.keys import Keys
from streamlib.message import Message
from streamlib.ops.dead_letters import FOREIGN, DeadLetters, Filters, Found
from streamlib.redisio import dead_letters as stored
from streamlib.redisio.again import Again, unpack
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.dead_letter import Failure, Reason, dead_letter_fields
from streamlib.redisio.dead_letters import PAGE, Replay
from streamlib.redisio.failures import CLIENT_ERRORS
from streamlib.redisio.registry import declare_group, declare_topic
from streamlib.settings import RedisSettings
from streamlib.topic import TopicSpec
from tests.helpers.delivering import burst, settings
from tests.helpers.proxy import ChaosProxy
from tests.helpers.servers import RedisProc

WINDOW_S = 60.0
SEQUENCE = count(1)


class Ordered(Event):
    order_id: str


class Paid(Event):
    order_id: str


ORDERS = TopicSpec(name="orders", registry=Registry([Ordered, Paid]))
SHIPMENTS = TopicSpec(name="shipments", registry=Registry([Ordered]), partitions=3)


class Yard:
    """Dead letters written by hand, as the settle and commit scripts write them."""

    def __init__(self, url: str, client: redis.Redis, **settings: Any) -> None:
        self.client = client
        self.door = RedisDoor.open(RedisSettings(url=url, **settings))
        self.keys = Keys()
        self.letters = DeadLetters(self.door, self.keys, window_s=WINDOW_S)

    async def declare(self) -> None:
        await declare_topic(self.door, self.keys, ORDERS)
        await declare_topic(self.door, self.keys, SHIPMENTS)
        await declare_group(self.door, self.keys, ORDERS, "email", "handler", ["Ordered"])
        await declare_group(self.door, self.keys, ORDERS, "view", "projection", ["Ordered"])
        await declare_group(self.door, self.keys, SHIPMENTS, "stock", "handler", ["Ordered"])

    def bury(
        self,
        event_id: str,
        *,
        topic: TopicSpec = ORDERS,
        partition: int = 0,
        group: str = "email",
        kind: type[Event] = Ordered,
        reason: Reason = "max_attempts",
        error: str = "ValueError: bad total",
        fields: list[bytes] | None = None,
        at_ms: int = 1_700_000_000_000,
        dead_id: str = "*",
        state: str | None = "x",
    ) -> str:
        """One dead letter; returns its full id."""
        names = self.keys.stream(topic.name, partition, topic.partitions)
        message = Message(id=event_id, type=kind.__name__, key="k", data=b'{"order_id":"o-1"}')
        own = fields if fields is not None else topic.codec.write(message)
        letter = dead_letter_fields(
            own, Failure(reason, error), attempts=5, entry_id=f"1700000000000-{next(SEQUENCE)}", group=group,
            consumer="host-1", at_ms=at_ms,
        )  # fmt: skip
        pairs: Any = dict(zip(letter[::2], letter[1::2], strict=True))
        entry: Any = self.client.xadd(names.dead(group), pairs, id=dead_id)
        if state is not None:
            self.client.set(names.idem(group, event_id), state, px=60_000)
        return f"{topic.name}/{partition}/{group}/{entry.decode()}"

    def again(self, group: str = "email", stream: str = "orders") -> list[tuple[str, Again]]:
        entries: Any = self.client.xrange(f"{{{stream}}}:again:{group}")
        flat = [(key.decode(), _flat(fields)) for key, fields in entries]
        return [(fields[1].decode(), unpack(key, fields)) for key, fields in flat]

    def dead(self, group: str = "email", stream: str = "orders") -> int:
        return int(self.client.xlen(f"{{{stream}}}:dead:{group}"))

    async def all(self, **filters: Any) -> list[Found]:
        return [found async for found in self.letters.find(Filters(**filters))]


def _flat(fields: dict[bytes, bytes]) -> list[bytes]:
    return [part for pair in fields.items() for part in pair]


@pytest.fixture
async def yard(redis_url: str, client: redis.Redis) -> AsyncIterator[Yard]:
    made = Yard(redis_url, client)
    await made.declare()
    yield made
    await made.door.close()


async def test_replay_moves_the_event_to_again_and_forgets_its_attempts(yard: Yard) -> None:
    found = await yard.letters.get(yard.bury("e-1"))
    assert await yard.letters.replay([found]) == {Replay.REPLAYED: 1}
    assert yard.dead() == 0
    [(event_id, again)] = yard.again()
    assert event_id == "e-1"
    assert again == Again(found.letter.entry_id, 0, 0, "replayed", found.letter.fields, 1)
    assert yard.client.get("{orders}:idem:email:e-1") == b"r"
    assert 0 < int(yard.client.pttl("{orders}:idem:email:e-1")) <= WINDOW_S * 1000


@pytest.mark.row(69)
@pytest.mark.parametrize("ordering", ["none", "key"])
async def test_an_event_that_dies_again_tells_how_often_it_was_replayed(
    redis_url: str, client: Any, ordering: Literal["none", "key"]
) -> None:
    app = App("again", settings=settings(redis_url))
    orders = app.topic("orders", Ordered, key="order_id")

    @app.handler(orders, group="email", ordering=ordering, retry=Retry(max_attempts=2, base=0.01, cap=0.02))
    async def send(event: Ordered) -> None:
        raise ValueError("every time")

    async with app:
        letters = DeadLetters(app.redis, app.keys, window_s=WINDOW_S)
        await orders.publish(Ordered(order_id="o-1"), id="e-1")
        [(_, entry)] = client.xrange("orders")
        for replays in range(3):
            await burst(app)
            [found] = [one async for one in letters.find(Filters(group="email"))]
            assert (found.event_id, found.letter.replays, found.letter.attempts) == ("e-1", replays, 2)
            assert found.letter.fields == _flat(entry), "its own fields, untouched"
            assert await letters.replay([found]) == {Replay.REPLAYED: 1}


async def test_replay_after_the_window_needs_no_mark(yard: Yard) -> None:
    found = await yard.letters.get(yard.bury("e-1", state=None))
    assert await yard.letters.replay([found]) == {Replay.REPLAYED: 1}
    assert yard.client.get("{orders}:idem:email:e-1") == b"r"


async def test_replay_sent_twice_is_gone_and_adds_nothing(yard: Yard) -> None:
    found = await yard.letters.get(yard.bury("e-1"))
    assert await yard.letters.replay([found]) == {Replay.REPLAYED: 1}
    assert await yard.letters.replay([found]) == {Replay.GONE: 1}
    assert len(yard.again()) == 1


@pytest.mark.parametrize(
    ("state", "outcome"),
    [("d", Replay.DONE), ("r", Replay.BUSY), ("c99999999999999:worker:1-1", Replay.BUSY)],
)
async def test_replay_leaves_a_letter_whose_event_lives_elsewhere(yard: Yard, state: str, outcome: Replay) -> None:
    found = await yard.letters.get(yard.bury("e-1", state=state))
    assert await yard.letters.replay([found]) == {outcome: 1}
    assert yard.dead() == 1
    assert yard.again() == []
    assert yard.client.get("{orders}:idem:email:e-1") == state.encode()


@pytest.mark.row(69)
async def test_many_replaying_the_same_letters_add_each_event_once(yard: Yard) -> None:
    for number in range(40):
        yard.bury(f"e-{number}")
    found = await yard.all()
    totals = await asyncio.gather(*(yard.letters.replay(found) for _ in range(5)))
    assert sum(total[Replay.REPLAYED] for total in totals) == 40
    assert sum(total[Replay.GONE] for total in totals) == 160
    assert sorted(event_id for event_id, _ in yard.again()) == sorted(f"e-{n}" for n in range(40))
    assert yard.dead() == 0


@pytest.mark.row(21, 69)
async def test_a_lost_reply_does_not_double_the_replay(yard: Yard, proxy: ChaosProxy) -> None:
    found = await yard.letters.get(yard.bury("e-1"))
    # Without this the first sending would only teach the server the script.
    await yard.letters.replay([await yard.letters.get(yard.bury("e-0"))])
    behind = Yard(proxy.url, yard.client)
    proxy.drop_next_reply(b"EVALSHA")
    assert await behind.letters.replay([found]) == {Replay.GONE: 1}
    await behind.door.close()
    assert proxy.struck == 1
    assert [event_id for event_id, _ in yard.again()] == ["e-0", "e-1"]


@pytest.mark.row(69)
async def test_a_full_redis_refuses_the_replay_before_anything_is_written(
    own_server: Callable[..., RedisProc],
) -> None:
    server = own_server()
    with server.client() as client:
        yard = Yard(server.url, client, retry_s=0)
        await yard.declare()
        found = await yard.letters.get(yard.bury("e-1"))
        client.config_set("maxmemory", "1")
        with pytest.raises(RedisUnavailable, match="takes no writes now"):
            await yard.letters.replay([found])
        client.config_set("maxmemory", "0")
        assert (yard.dead(), yard.again(), client.get("{orders}:idem:email:e-1")) == (1, [], b"x")
        assert await yard.letters.replay([found]) == {Replay.REPLAYED: 1}
        await yard.door.close()


@pytest.mark.allow_keys("{orders}:again:email", "{orders}:dead:email")
async def test_keys_of_another_type_are_named_and_left_alone(yard: Yard) -> None:
    found = await yard.letters.get(yard.bury("e-1"))
    yard.client.set("{orders}:again:email", "mine")
    with pytest.raises(CLIENT_ERRORS, match=r"WRONGTYPE \{orders\}:again:email is a string"):
        await yard.letters.replay([found])
    assert yard.dead() == 1
    yard.client.set("{orders}:dead:email", "mine")
    with pytest.raises(WrongKeyType, match=r"\{orders\}:dead:email"):
        await yard.all()


async def test_an_event_that_cannot_be_read_goes_by_its_first_entry_id(yard: Yard) -> None:
    found = await yard.letters.get(yard.bury("unused", fields=[b"\xff", b"\x00raw"], reason="decode", state=None))
    assert (found.message, found.type, found.event_id) == (None, "", found.letter.entry_id)
    assert await yard.letters.replay([found]) == {Replay.REPLAYED: 1}
    [(event_id, again)] = yard.again()
    assert event_id == found.letter.entry_id
    assert again.fields == [b"\xff", b"\x00raw"]


async def test_letters_of_projections_and_foreign_entries_say_why_they_stay(yard: Yard) -> None:
    in_view = await yard.letters.get(yard.bury("e-1", group="view"))
    assert "view is a projection" in in_view.not_replayable
    yard.client.xadd("{orders}:dead:email", {"hello": "world"})
    [foreign] = await yard.all(group="email")
    assert foreign.letter.reason == FOREIGN
    assert foreign.not_replayable
    assert await yard.letters.purge([foreign]) == 1


async def test_scans_read_page_by_page_and_leave_out_what_comes_meanwhile(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = PAGE * 2 + 7
    for number in range(total):
        yard.bury(f"e-{number}", dead_id=f"1700000000000-{number + 1}", state=None)
    counts: list[int] = []
    execute = yard.door.execute

    async def watched(*command: Any) -> Any:
        if command[0] in ("XRANGE", "XREVRANGE"):
            counts.append(command[command.index("COUNT") + 1])
        return await execute(*command)

    monkeypatch.setattr(yard.door, "execute", watched)
    seen = []
    async for found in yard.letters.find(Filters(group="email")):
        seen.append(found.event_id)
        if len(seen) == 3:
            yard.bury("late", dead_id="1700000000001-0", state=None)
    assert seen == [f"e-{number}" for number in range(total)]
    assert len(counts) > 3
    assert max(counts) <= PAGE


async def test_replayed_letters_that_die_again_do_not_keep_the_scan_going(yard: Yard) -> None:
    for number in range(10):
        yard.bury(f"e-{number}")
    seen = 0
    async for found in yard.letters.find(Filters(group="email")):
        assert await yard.letters.replay([found]) == {Replay.REPLAYED: 1}
        yard.bury(found.event_id, state=None)
        seen += 1
    assert seen == 10


async def test_filters_choose(yard: Yard) -> None:
    yard.bury("a", dead_id="1000000000000-0", error="TimeoutError: mail is slow")
    yard.bury("b", dead_id="2000000000000-0", kind=Paid, reason="rejected", error="Reject: negative")
    yard.bury("c", dead_id="1500000000000-0", topic=SHIPMENTS, partition=2, group="stock")
    fingerprint = (await yard.all(type="Paid"))[0].letter.fingerprint

    async def ids(**filters: Any) -> list[str]:
        return [found.event_id for found in await yard.all(**filters)]

    assert await ids() == ["a", "b", "c"]
    assert await ids(topic="orders") == ["a", "b"]
    assert await ids(group="stock") == ["c"]
    assert await ids(type="Paid") == ["b"]
    assert await ids(reason="max_attempts") == ["a", "c"]
    assert await ids(error="MAIL IS") == ["a"]
    assert await ids(fingerprint=fingerprint) == ["b"]
    assert await ids(since_ms=1_500_000_000_000) == ["b", "c"]
    assert await ids(until_ms=1_500_000_000_000) == ["a", "c"]
    assert await ids(limit=2) == ["a", "b"]
    assert [found.event_id for found in await yard.letters.newest(Filters(limit=2))] == ["b", "c"]


async def test_unknown_topics_and_groups_are_not_found_and_the_known_ones_named(yard: Yard) -> None:
    with pytest.raises(NotFound, match=r"no topic 'order'.* are orders, shipments"):
        await yard.all(topic="order")
    with pytest.raises(NotFound, match=r"no group 'mail'.* are email, stock, view"):
        await yard.all(group="mail")


async def test_causes_are_grouped(yard: Yard) -> None:
    for number in range(3):
        yard.bury(f"e-{number}", error=f"ValueError: order {number} is wrong", at_ms=1_700_000_000_000 + number)
    yard.bury("other", error="KeyError: 'total'")
    first, second = await yard.letters.by_cause(Filters(group="email"))
    assert (first.count, second.count) == (3, 1)
    assert (first.first_at, first.last_at) == ("2023-11-14T22:13:20.000Z", "2023-11-14T22:13:20.002Z")
    assert first.types == ["Ordered"]
    assert (await yard.letters.get(first.sample_id)).letter.fingerprint == first.fingerprint


async def test_ids_are_unique_over_partitions_and_lead_back(yard: Yard) -> None:
    ids = [
        yard.bury(f"e-{p}", topic=SHIPMENTS, partition=p, group="stock", dead_id="1700000000000-1") for p in range(3)
    ]
    assert [found.id for found in await yard.all(topic="shipments")] == ids
    assert [(await yard.letters.get(one)).event_id for one in ids] == ["e-0", "e-1", "e-2"]
    assert await yard.letters.purge(await yard.all(topic="shipments")) == 3
    with pytest.raises(NotFound):
        await yard.letters.get(ids[0])


@pytest.mark.parametrize(
    "wrong",
    [
        "", "1-1", "orders/0/email", "orders/0/email/x", "orders/0/email/1-1", "orders/7/email/1-1",
        "orders/0/mail/1-1", "order/0/email/1-1", "orders/0/email/1-\u0661", f"orders/0/email/{'9' * 30}-0",
        "a/b/c/d/1-1",
    ],
)  # fmt: skip
async def test_ids_that_lead_nowhere_are_not_found(yard: Yard, wrong: str) -> None:
    with pytest.raises(NotFound) as raised:
        await yard.letters.get(wrong)
    assert isinstance(raised.value, StreamlibError)
    assert len(str(raised.value)) > 20


async def test_deleting_goes_in_chunks(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "DELETE_CHUNK", 3)
    for number in range(8):
        yard.bury(f"e-{number}")
    assert await yard.letters.purge(await yard.all(group="email")) == 8
    assert yard.dead() == 0
