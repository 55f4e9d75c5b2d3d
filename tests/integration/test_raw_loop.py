"""The loop that a worker is measured against does what somebody would write by hand, no less: claim, settle, once."""

from typing import Any

import redis

from streamlib.keys import Keys
from streamlib.redisio.scripts import Script
from tests.helpers.by_hand import GROUP, read_by_hand
from tests.helpers.publishing import ORDERS, add, deliver, made, open_door, open_publisher

STREAM = Keys().stream("orders", 0, 1)


async def test_every_event_is_handled_once_acknowledged_and_marked_as_done(redis_url: str, client: redis.Redis) -> None:
    async with open_publisher(redis_url) as publisher:
        await publisher.send(ORDERS, [made(n, event_id=f"e{n}") for n in range(1_200)])
    client.set(STREAM.idem(GROUP, "e7"), "d", px=60_000)  # another has handled it
    async with open_door(redis_url) as door:
        client.xadd("orders", {"id": "last", "type": "Made", "v": "1", "key": "k", "data": "{}"})
        of_another: Any = client.xrange("orders", count=8)
        client.xdel("orders", of_another[7][0])  # it cannot be acknowledged by us
        handled = await read_by_hand(door, STREAM)
    assert len(handled) == len(set(handled)) == 1_200
    marks: Any = client.mget(STREAM.idems(GROUP, [*(f"e{n}" for n in range(1_200)), "last"]))
    assert set(marks) == {b"d"}


async def test_the_scripts_answer_the_same_when_they_are_sent_again(redis_url: str, client: redis.Redis) -> None:
    client.xgroup_create("orders", GROUP, "0", mkstream=True)
    entry_ids = [add(client, "orders", name) for name in ("mine", "theirs", "odd")]
    deliver(client, "orders", GROUP, 3)
    keys = STREAM.idems(GROUP, ["mine", "theirs", "odd"])
    client.set(keys[1], "another token", px=60_000)
    client.rpush(keys[2], "no string")
    claim, settle = Script("raw_claim"), Script("raw_settle")
    async with open_door(redis_url) as door:
        for _ in range(2):
            assert await claim.run(door, keys, ["my token", 30_000]) == [1, 0, 0]
        for _ in range(2):
            told = await settle.run(door, [STREAM.stream, *keys[:2]], [GROUP, "my token", 60_000, *entry_ids[:2]])
            assert told == 1
    pending: Any = client.xpending_range("orders", GROUP, "-", "+", 10)
    assert [one["message_id"].decode() for one in pending] == entry_ids[1:]
    assert client.mget(keys[:2]) == [b"d", b"another token"]
    client.delete(keys[2])
