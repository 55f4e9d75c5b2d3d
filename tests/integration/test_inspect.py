"""Inspection agrees with counting by hand, whatever was deleted, moved, acknowledged or lost."""

import asyncio
import time
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamlib.errors import NotFound
from streamlib.keys import Keys
from streamlib.ops.inspect import GroupInfo, TopicInfo, inspect
from streamlib.redisio.connection import RedisDoor
from streamlib.settings import RedisSettings
from tests.helpers.servers import RedisProc

TOPIC, GROUP, VIEW = "orders", "email", "view"
S = TOPIC
AGAIN, RETRY, DEAD = f"{{{S}}}:again:{GROUP}", f"{{{S}}}:retry:{GROUP}", f"{{{S}}}:dead:{GROUP}"

pytestmark = pytest.mark.allow_keys("*")


def declare(client: redis.Redis, partitions: int = 1, topic: str = TOPIC) -> list[str]:
    """A topic with one handler group and one projection, as the registry keeps them; its streams."""
    client.hset("streamlib:topics", mapping={topic: partitions, f"{topic}:{GROUP}": "handler"})
    client.hset("streamlib:topics", f"{topic}:{VIEW}", "projection")
    streams = [topic] if partitions == 1 else [f"{topic}.{number}" for number in range(partitions)]
    for stream in streams:
        client.xgroup_create(stream, GROUP, "0", mkstream=True)
        client.xgroup_create(stream, VIEW, "0")
        client.xgroup_create(f"{{{stream}}}:again:{GROUP}", GROUP, "0", mkstream=True)
    return streams


def look(server: RedisProc, topic: str | None = None, **options: Any) -> list[TopicInfo]:
    async def ask() -> list[TopicInfo]:
        door = RedisDoor.open(RedisSettings(url=server.url))
        try:
            return await inspect(door, Keys(), topic, **options)
        finally:
            await door.close()

    return asyncio.run(ask())


def group_of(infos: list[TopicInfo], group: str = GROUP) -> GroupInfo:
    [info] = infos
    return next(found for found in info.groups if found.group == group)


def order(entry_id: bytes) -> tuple[int, int]:
    milliseconds, _, sequence = entry_id.partition(b"-")
    return int(milliseconds), int(sequence)


# --- by brute force


def after(client: redis.Redis, stream: str, group: str) -> list[tuple[int, int]]:
    """The ids of a stream that the group has not got yet."""
    rows: Any = client.xinfo_groups(stream)
    last = next(order(row["last-delivered-id"]) for row in rows if row["name"] == group.encode())
    entries: Any = client.xrange(stream)
    return [order(entry_id) for entry_id, _ in entries if order(entry_id) > last]


def pending(client: redis.Redis, stream: str, group: str) -> list[tuple[int, int]]:
    rows: Any = client.xpending_range(stream, group, min="-", max="+", count=100_000)
    return [order(row["message_id"]) for row in rows]


def by_hand(client: redis.Redis, group: str) -> dict[str, int]:
    handler = group == GROUP
    lag, held = len(after(client, S, group)), len(pending(client, S, group))
    retrying = len(client.xrange(AGAIN)) + int(client.zcard(RETRY)) if handler else 0  # type: ignore[arg-type]
    dead = len(client.xrange(f"{{{S}}}:dead:{group}"))  # type: ignore[arg-type]
    return {"lag": lag, "pending": held, "retrying": retrying, "dead": dead, "backlog": lag + held + retrying}


def told(info: GroupInfo) -> dict[str, int | None]:
    return {
        "lag": info.lag, "pending": info.pending, "retrying": info.retrying, "dead": info.dead,
        "backlog": info.backlog,
    }  # fmt: skip


class History:
    """Does to the streams what people and workers do, and remembers what was ever added."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self.ids: list[bytes] = []

    def do(self, action: str, number: int) -> None:
        getattr(self, f"_{action}")(number)

    def _add(self, number: int) -> None:
        self.ids += [self.client.xadd(S, {"n": "x"}) for _ in range(number)]  # type: ignore[misc]

    def _read(self, number: int) -> None:
        self.client.xreadgroup(GROUP, f"worker-{number % 2}", {S: ">"}, count=number)

    def _ack(self, number: int) -> None:
        rows: Any = self.client.xpending_range(S, GROUP, min="-", max="+", count=1000)
        self.client.xack(S, GROUP, *[row["message_id"] for row in rows[::number]] or ["0-1"])

    def _delete(self, number: int) -> None:
        if self.ids:
            self.client.xdel(S, self.ids[number * 7 % len(self.ids)])

    def _trim(self, number: int) -> None:
        """Retention: what every group is past."""
        rows: Any = self.client.xinfo_groups(S)
        self.client.xtrim(S, minid=min((row["last-delivered-id"] for row in rows), key=order), approximate=False)

    def _trim_unread(self, number: int) -> None:
        """Somebody trims by hand what groups have not read."""
        self.client.xtrim(S, maxlen=number, approximate=False)

    def _seek(self, number: int) -> None:
        """An operator moves the group without telling how many entries lie before."""
        self.client.xgroup_setid(S, GROUP, self.ids[number * 5 % len(self.ids)] if self.ids else "0")

    def _commit(self, number: int) -> None:
        """A projection commits: position and number of entries up to there."""
        if self.ids:
            at = number * 3 % len(self.ids)
            self.client.xgroup_setid(S, VIEW, self.ids[at], entries_read=at + 1)

    def _fail(self, number: int) -> None:
        self.client.zadd(RETRY, {f"event-{number}": 1})

    def _promote(self, number: int) -> None:
        self.client.xadd(AGAIN, {"id": "x", "body": "y"})

    def _read_again(self, number: int) -> None:
        self.client.xreadgroup(GROUP, "worker-0", {AGAIN: ">"}, count=number)

    def _settle_again(self, number: int) -> None:
        rows: Any = self.client.xpending_range(AGAIN, GROUP, min="-", max="+", count=number)
        for row in rows:
            self.client.xack(AGAIN, GROUP, row["message_id"])
            self.client.xdel(AGAIN, row["message_id"])

    def _bury(self, number: int) -> None:
        self.client.xadd(DEAD, {"dl-reason": "crash"})


ACTIONS = [name.removeprefix("_") for name in vars(History) if name[0] == "_" and name[1] != "_"]
# Redis 7.0 gives a wrong lag afterwards, and nothing in its answers shows it.
TOLD_WRONGLY = {("redis7", "trim_unread")}
FAVOURED = ["add", "add", "read", "delete"]


@pytest.mark.row(64)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(st.lists(st.tuples(st.sampled_from(ACTIONS + FAVOURED), st.integers(1, 9)), min_size=10, max_size=40))
def test_every_number_agrees_with_counting_by_hand(
    client: redis.Redis, server: RedisProc, steps: list[tuple[str, int]]
) -> None:
    client.flushall()
    declare(client)
    history = History(client)
    for action, number in steps:
        if (server.kind, action) not in TOLD_WRONGLY:
            history.do(action, number)
    infos = look(server)
    for group in (GROUP, VIEW):
        assert told(group_of(infos, group)) == by_hand(client, group)
    assert infos[0].length == client.xlen(S)


def test_a_hole_ahead_of_the_group_is_not_counted(client: redis.Redis, server: RedisProc) -> None:
    declare(client)
    ids: Any = [client.xadd(S, {"n": "x"}) for _ in range(10)]
    client.xreadgroup(GROUP, "w", {S: ">"}, count=3)
    client.xdel(S, ids[5])
    info = group_of(look(server))
    assert (info.lag, info.lag_known, info.pending, info.backlog) == (6, True, 3, 9)


@pytest.mark.row(64)
def test_a_lag_past_the_bound_is_unknown_and_the_backlog_a_lower_bound(client: redis.Redis, server: RedisProc) -> None:
    declare(client)
    ids: Any = [client.xadd(S, {"n": "x"}) for _ in range(200)]
    client.xgroup_setid(S, GROUP, ids[9])
    client.xdel(S, ids[50])
    info = group_of(look(server, count_bound=100))
    assert (info.lag, info.lag_known, info.backlog) == (None, False, 100)
    info = group_of(look(server, count_bound=189))
    assert (info.lag, info.lag_known, info.backlog) == (189, True, 189)


def test_partitions_are_added_up_and_a_consumer_counts_once(client: redis.Redis, server: RedisProc) -> None:
    streams = declare(client, partitions=20)
    for number, stream in enumerate(streams):
        for _ in range(number):
            client.xadd(stream, {"n": "x"})
        client.xreadgroup(GROUP, "worker-a", {stream: ">"}, count=2)
        client.xreadgroup(GROUP, "worker-b", {stream: ">"}, count=1)
        client.xadd(f"{{{stream}}}:dead:{GROUP}", {"dl-reason": "crash"})
        client.zadd(f"{{{stream}}}:retry:{GROUP}", {"e": 1})
    [topic] = look(server, TOPIC)
    info = group_of([topic])
    held = sum(min(number, 3) for number in range(20))
    assert (topic.partitions, topic.length) == (20, 190)
    assert (info.pending, info.lag, info.retrying, info.dead) == (held, 190 - held, 20, 20)
    assert info.backlog == 190 + 20
    assert info.consumers == 2


def test_ages_are_those_of_the_oldest_entry_by_the_servers_clock(client: redis.Redis, server: RedisProc) -> None:
    declare(client)
    now_ms = int(client.time()[0]) * 1000
    for age_s in (500, 300, 100):
        client.xadd(S, {"n": "x"}, id=f"{now_ms - age_s * 1000}-1")
    info = group_of(look(server))
    assert 500 <= info.oldest_undelivered_seconds < 560
    assert info.oldest_pending_seconds == 0
    client.xreadgroup(GROUP, "w", {S: ">"}, count=1)
    info = group_of(look(server))
    assert 500 <= info.oldest_pending_seconds < 560
    assert 300 <= info.oldest_undelivered_seconds < 360
    assert info.oldest_seconds == info.oldest_pending_seconds
    client.xadd(AGAIN, {"id": "x", "body": "y"}, id=f"{now_ms - 900_000}-1")
    assert 900 <= group_of(look(server)).oldest_undelivered_seconds < 960
    client.xreadgroup(GROUP, "w", {AGAIN: ">"}, count=1)
    assert 900 <= group_of(look(server)).oldest_pending_seconds < 960


@pytest.mark.row(44)
def test_ids_from_the_future_have_no_age(client: redis.Redis, server: RedisProc) -> None:
    declare(client)
    client.xadd(S, {"n": "x"}, id=f"{int(time.time() * 1000) + 3_600_000}-1")
    info = group_of(look(server))
    assert (info.lag, info.oldest_seconds) == (1, 0)


def test_a_lost_group_has_everything_since_its_remembered_position_ahead(
    client: redis.Redis, server: RedisProc
) -> None:
    declare(client)
    ids: Any = [client.xadd(S, {"n": "x"}) for _ in range(5)]
    client.xgroup_destroy(S, GROUP)
    assert group_of(look(server)).lag == 5
    client.hset(f"streamlib:group:{TOPIC}:{GROUP}", "pos:0", ids[2])
    assert group_of(look(server)).lag == 2
    client.hset(f"streamlib:group:{TOPIC}:{GROUP}", "pos:0", "9999999999999-0")
    assert group_of(look(server)).lag == 5


def test_a_lost_stream_is_empty(client: redis.Redis, server: RedisProc) -> None:
    declare(client)
    client.delete(S)
    [topic] = look(server)
    assert topic.length == 0
    assert (group_of([topic]).lag, group_of([topic]).backlog) == (0, 0)


def test_topics_come_by_name_and_an_unknown_one_is_an_error(client: redis.Redis, server: RedisProc) -> None:
    assert look(server) == []
    declare(client, topic="b")
    declare(client, topic="a")
    assert [info.topic for info in look(server)] == ["a", "b"]
    assert [info.topic for info in look(server, "b")] == ["b"]
    with pytest.raises(NotFound, match="'c' is not declared here; declared: a, b"):
        look(server, "c")
