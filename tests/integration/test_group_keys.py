"""What a group leaves in Redis: found and deleted whole, and nothing of anybody else's."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from streamlib.keys import Keys, StreamKeys
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.group_keys import destroy, groups_on, many_keys, unlink
from tests.helpers.publishing import open_door
from tests.helpers.servers import connect

pytestmark = pytest.mark.allow_keys("*")


class Rig:
    """Two groups, and a third whose name begins alike, on the partitions of two topics."""

    def __init__(self, door: RedisDoor, client: Any) -> None:
        self.door = door
        self.client = client
        self.partitions = [Keys().stream("orders", n, 3) for n in range(3)]
        self.others = [Keys().stream("orders.old", 0, 1), Keys("shop").stream("orders", 0, 3)]
        for keys in [*self.partitions, *self.others]:
            for group in ("email", "email2", "audit"):
                self._fill(keys, group)

    def _fill(self, keys: StreamKeys, group: str) -> None:
        for stream in (keys.stream, keys.again(group)):
            self.client.xgroup_create(stream, group, "0", mkstream=True)
        self.client.zadd(keys.retry(group), {"e": 1})
        self.client.xadd(keys.dead(group), {"a": "b"})
        for name in (keys.retry_body(group), keys.suspect(group), keys.owner(group), keys.key_states(group)):
            self.client.hset(name, "a", "b")
        for event_id in ("e-1", "two words", "{odd}", "a:b*[c]\n", "ü"):
            self.client.set(keys.idem(group, event_id), "d")
        self.client.hset(keys.view(group, 1), "checkpoint", "0-0")
        self.client.hset(keys.row(group, 2, "row"), "a", "b")
        self.client.zadd(keys.sorted_by(group, 1, "total"), {"a": 1})

    def keys(self) -> set[str]:
        return {key.decode() for key in self.client.scan_iter(count=1_000)}

    def left(self, keys: StreamKeys, group: str) -> set[str]:
        """Every key of a group on a partition."""
        tag = "{" + keys.stream + "}:"
        return {key for key in self.keys() if key.startswith(tag) and key.removeprefix(tag).split(":")[1] == group}

    async def found(self, partitions: Sequence[StreamKeys], group: str, *, one_node: bool) -> list[list[bytes]]:
        kinds = [f"idem:{group}", f"view:{group}"]
        return [some async for some in many_keys(self.door, partitions, kinds, one_node=one_node)]


@pytest.fixture
async def rig(redis_url: str) -> AsyncIterator[Rig]:
    async with open_door(redis_url) as door:
        with connect(redis_url) as client:
            yield Rig(door, client)


@pytest.mark.parametrize("one_node", [True, False])
@pytest.mark.parametrize("count", [1, 3])
async def test_everything_of_a_group_and_nothing_else_goes(rig: Rig, one_node: bool, count: int) -> None:
    partitions = rig.partitions[:count]
    before, mine = rig.keys(), set[str]().union(*(rig.left(keys, "email") for keys in partitions))
    assert len(mine) == 15 * count
    for keys in partitions:
        await destroy(rig.door, keys, "email")
    found = await rig.found(partitions, "email", one_node=one_node)
    assert sum([await unlink(rig.door, some) for some in found]) == 8 * count
    assert before - rig.keys() == mine
    for keys in partitions:
        assert await groups_on(rig.door, keys.stream) == {"email2", "audit"}


@pytest.mark.parametrize("one_node", [True, False])
async def test_an_id_that_looks_like_a_key_of_the_group_stays_with_its_own(rig: Rig, one_node: bool) -> None:
    """Ids of events and rows are free text."""
    trap = "}:idem:email:x"
    for keys in rig.partitions:
        rig.client.set(keys.idem("audit", trap), "d")
        rig.client.hset(keys.row("audit", 1, trap), "a", "b")
    names = [name for some in await rig.found(rig.partitions, "email", one_node=one_node) for name in some]
    assert len(names) == 8 * 3
    assert [name for name in names if b"audit" in name] == []


@pytest.mark.parametrize("one_node", [True, False])
async def test_what_is_found_together_lies_in_one_slot(rig: Rig, one_node: bool) -> None:
    found = await rig.found(rig.partitions, "audit", one_node=one_node)
    assert all(len({name[: name.index(b"}")] for name in some}) == 1 for some in found)
    names = [name for some in found for name in some]
    assert len(names) == len(set(names)) == 8 * 3


async def test_each_step_may_be_done_again(rig: Rig) -> None:
    keys = rig.partitions[0]
    [names] = [some for some in await rig.found([keys], "email", one_node=True) if b":idem:" in some[0]]
    assert await unlink(rig.door, names) == 5
    assert await unlink(rig.door, names) == 0
    for _ in range(2):
        await destroy(rig.door, keys, "email")
    rig.client.delete(keys.stream)
    await destroy(rig.door, keys, "email")
    assert await groups_on(rig.door, keys.stream) == frozenset()


async def test_nothing_is_found_where_there_is_nothing(rig: Rig) -> None:
    assert await rig.found(rig.partitions, "nobody", one_node=True) == []
    assert await unlink(rig.door, []) == 0


@pytest.mark.row(78)
async def test_thousands_are_found_in_pages_and_deleted_in_chunks(rig: Rig) -> None:
    keys = rig.partitions[0]
    rig.client.mset({keys.idem("many", f"e-{n}"): "d" for n in range(7_000)})
    found = await rig.found([keys], "many", one_node=True)
    assert len(found) > 1
    assert len({name for some in found for name in some}) == 7_000
    assert sum([await unlink(rig.door, some) for some in found]) == 7_000
    assert rig.left(keys, "many") == set()


async def test_groups_of_a_stream_are_told_whoever_made_them(rig: Rig) -> None:
    assert await groups_on(rig.door, "orders.0") == {"email", "email2", "audit"}
    assert await groups_on(rig.door, "nothing") == frozenset()
