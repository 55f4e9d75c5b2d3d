"""The cases that an event store has to pass, on one server, behind sentinels and on a cluster.

They are those of the `eventsourcing` package for its recorders; the words are ours, and so are the numbers:

| its case | here |
|---|---|
| AggregateRecorder insert and select | `test_insert_and_select` |
| ApplicationRecorder insert and select | `test_positions_follow_the_appends_and_a_conflict_takes_none` |
| ApplicationRecorder concurrent, no conflicts | `test_many_writers_and_readers_at_once` |
| ApplicationRecorder concurrent throughput | `test_many_jobs_over_few_doors` |
| ProcessRecorder insert and select | `test_events_and_the_answer_are_one_write`: an answer key marks what was done |
| ProcessRecorder has tracking id | `test_each_answer_is_known_by_its_own_key` |
| NonInterleaving notification ids | `test_batches_do_not_interleave` |
| test_performance | `python -m benchmarks.event_store` |
| InfrastructureFactory: mapper, compressor, cipher, environment | `test_recorder_encoding.py` |
| Transcoder | `test_recorder_encoding.py` |
| ConnectionPool | `test_recorder_connections.py` |
| ours: a lost reply, gaps, version overflow, a read during appends | the last four here |
| ours: OOM, READONLY, NOREPLICAS leave nothing | `tests/integration/test_event_store.py`, on every kind of server |
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest

from streamlib import App
from streamlib.errors import ConcurrencyConflict, PublishError
from streamlib.message import entry_order
from streamlib.redisio import event_store
from streamlib.redisio.aggregate_reader import AnsweredBefore
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.elements import Stored
from streamlib.redisio.event_store import Answer, EventStore
from streamlib.topic import TopicSpec
from tests.conformance.places import Place
from tests.conformance.rig import make_app
from tests.helpers.accounts import Deposited, Opened, deposits

Store = tuple[EventStore, TopicSpec]


@asynccontextmanager
async def opened(place: Place) -> AsyncIterator[Store]:
    """The store of an app of its own."""
    app = App("recorder", settings=make_app(place.url).settings)
    topic = app.topic("accounts", Opened, Deposited, key="account_id", partitions=place.partitions)
    async with app:
        yield app.event_store, topic.spec


async def read(store: Store, account_id: str, *bounds: Any, **options: Any) -> list[Stored]:
    return [stored async for stored in store[0].read(store[1], account_id, *bounds, **options)]


def streams(place: Place) -> list[list[tuple[str, str, str]]]:
    """Of each partition, in order: entry id, event id and key of every entry."""
    found = []
    with place.client() as client:
        for stream in place.streams("accounts"):
            entries: Any = client.xrange(stream)
            found.append([(entry.decode(), f[b"id"].decode(), f[b"key"].decode()) for entry, f in entries])
    return found


def written(place: Place) -> dict[str, list[Any]]:
    with place.client() as client:
        lists: dict[str, list[Any]] = {
            key.decode(): client.lrange(key, 0, -1) for key in client.scan_iter("{accounts*}:agg:*")
        }
    return {**lists, "streams": streams(place)}


async def test_insert_and_select(place: Place) -> None:
    async with opened(place) as (store, topic):
        both = store, topic
        assert await read(both, "a") == []
        first = deposits("a", 1, topic)
        await store.append(topic, "a", 0, first)
        (found,) = await read(both, "a")
        assert (found.version, found.message) == (1, first[0])
        assert isinstance(found.message.data, bytes)
        more = deposits("a", 4, topic)
        await store.append(topic, "a", 1, more)
        await store.append(topic, "b", 0, deposits("b", 2, topic))
        before = written(place)
        for expected in (0, 1, 4):  # the same version again; a batch of which some are there already
            with pytest.raises(ConcurrencyConflict):
                await store.append(topic, "a", expected, deposits("a", 3, topic))
        with pytest.raises(PublishError, match="nothing to append"):
            await store.append(topic, "a", 5, [])
        assert written(place) == before
        assert [stored.message for stored in await read(both, "a")] == first + more
        assert [stored.version for stored in await read(both, "a", 2)] == [3, 4, 5]
        assert [stored.version for stored in await read(both, "a", 0, 3)] == [1, 2, 3]
        assert [stored.version for stored in await read(both, "a", 1, 2)] == [2]
        assert [stored.message.key for stored in await read(both, "b")] == ["b", "b"]


async def test_positions_follow_the_appends_and_a_conflict_takes_none(place: Place) -> None:
    async with opened(place) as (store, topic):
        positions = (await store.append(topic, "a", 0, deposits("a", 3, topic))).positions
        with pytest.raises(ConcurrencyConflict):
            await store.append(topic, "a", 0, deposits("a", 3, topic))
        positions += (await store.append(topic, "a", 3, deposits("a", 2, topic))).positions
        (stream,) = [entries for entries in streams(place) if entries]
        assert [entry_id for entry_id, _, _ in stream] == [position.entry_id for position in positions]
        order = [entry_order(position.entry_id) for position in positions]
        assert order == sorted(set(order))
        assert [stored.position for stored in await read((store, topic), "a")] == positions


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_many_writers_and_readers_at_once(place: Place) -> None:
    """10 writers of 100 batches of 100 events, each on its own aggregate, and two readers all the while.

    Of 20 batches where there is more than one server.
    """
    batches = 100 if place.partitions == 1 else 20
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(opened(place)) for _ in range(4)]
        writing = True

        async def write(number: int) -> None:
            store, topic = stores[number % 3]
            for batch in range(batches):
                await store.append(topic, f"w-{number}", batch * 100, deposits(f"w-{number}", 100, topic))

        async def look() -> int:
            looks, seen = 0, 0
            while writing:
                found = await read(stores[3], "w-3", max(seen - 10, 0))
                versions = [stored.version for stored in found]
                assert versions == list(range(versions[0], versions[-1] + 1)) if versions else not seen
                assert len(found) + max(seen - 10, 0) >= seen
                assert not versions or versions[-1] % 100 == 0, "a batch is seen whole"
                seen, looks = max(seen, versions[-1] if versions else 0), looks + 1
            return looks

        readers = [asyncio.create_task(look()) for _ in range(2)]
        await asyncio.gather(*(write(number) for number in range(10)))
        writing = False
        assert min(await asyncio.gather(*readers)) > 1
        for number in range(10):
            assert await stores[0][0].length(stores[0][1], f"w-{number}") == batches * 100
    assert sum(map(len, streams(place))) == batches * 1_000
    for entries in streams(place):
        assert [entry_order(entry) for entry, _, _ in entries] == sorted(
            {entry_order(entry) for entry, _, _ in entries}
        )


async def test_many_jobs_over_few_doors(place: Place) -> None:
    """60 jobs of 500 events over 4 doors."""
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(opened(place)) for _ in range(4)]

        async def job(number: int) -> None:
            store, topic = stores[number % 4]
            for version in range(0, 500, 50):
                await store.append(topic, f"job-{number}", version, deposits(f"job-{number}", 50, topic))

        await asyncio.gather(*(job(number) for number in range(60)))
    counts = Counter(key for entries in streams(place) for _, _, key in entries)
    assert counts == {f"job-{number}": 500 for number in range(60)}


async def test_events_and_the_answer_are_one_write(place: Place) -> None:
    async with opened(place) as (store, topic):
        await store.append(topic, "a", 0, deposits("a", 2, topic), answer=Answer("job-1", b"=1", 60_000))
        before = written(place)
        for expected in (0, 2):
            with pytest.raises(AnsweredBefore) as raised:
                await store.append(topic, "a", expected, deposits("a", 2, topic), answer=Answer("job-1", b"=2", 60_000))
            assert raised.value.value == b"=1"
        assert written(place) == before
        with pytest.raises(ConcurrencyConflict):
            await store.append(topic, "a", 5, deposits("a", 1, topic), answer=Answer("job-2", b"=2", 60_000))
        assert len(await read((store, topic), "a", answer_key="job-2")) == 2, "no answer without its events"
        assert (await store.append(topic, "a", 2, deposits("a", 1, topic))).version == 3


async def test_each_answer_is_known_by_its_own_key(place: Place) -> None:
    async with opened(place) as (store, topic):
        for number in range(3):
            for later in range(number, 3):
                assert len(await read((store, topic), "a", answer_key=f"job-{later}")) == number
            answer = Answer(f"job-{number}", b"=%d" % number, 60_000)
            await store.append(topic, "a", number, deposits("a", 1, topic), answer=answer)
            for earlier in range(number + 1):
                with pytest.raises(AnsweredBefore) as raised:
                    await read((store, topic), "a", answer_key=f"job-{earlier}")
                assert raised.value.value == b"=%d" % earlier


async def test_batches_do_not_interleave(place: Place) -> None:
    """Two writers, each with batches of 500 events for aggregates of one partition."""
    async with opened(place) as one, opened(place) as other:
        names = names_of_one_partition(one[1], 4)

        async def write(store: Store, name: str) -> None:
            await store[0].append(store[1], name, 0, deposits(name, 500, store[1]))

        await asyncio.gather(*(write(store, name) for store, name in zip((one, other) * 2, names, strict=True)))
    (entries,) = [entries for entries in streams(place) if entries]
    keys = [key for _, _, key in entries]
    assert len(keys) == 2_000
    changes = sum(here != there for here, there in pairwise(keys))
    assert changes == 3


def names_of_one_partition(topic: TopicSpec, count: int) -> list[str]:
    names = (f"n-{number}" for number in range(1_000))
    found = [name for name in names if topic.partition_of(deposits(name, 1, topic)[0]) == 0]
    return found[:count]


# -- ours


async def test_a_lost_reply_stores_nothing_twice(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    execute = RedisDoor.execute
    lost: list[Any] = []

    async def losing(door: RedisDoor, *command: Any) -> Any:
        reply = await execute(door, *command)
        if command[:2] == ("EVALSHA", event_store._append.sha) and len(lost) < 2:
            lost.append(reply)
            raise ConnectionResetError("the reply was lost")
        return reply

    async with opened(place) as (store, topic):
        await store.append(topic, "a", 0, deposits("a", 1, topic))
        monkeypatch.setattr(RedisDoor, "execute", losing)
        appended = await store.append(topic, "a", 1, deposits("a", 3, topic))
        monkeypatch.undo()
        assert (len(lost), appended.repeated, appended.version) == (2, True, 4)
        assert [stored.position for stored in await read((store, topic), "a", 1)] == appended.positions
    assert sum(map(len, streams(place))) == 4


@pytest.mark.row(76)
async def test_no_version_is_skipped(place: Place) -> None:
    async with opened(place) as (store, topic):
        for expected in (1, 2, 100):
            with pytest.raises(ConcurrencyConflict, match=r"but it has version 0: there would be a gap"):
                await store.append(topic, "a", expected, deposits("a", 1, topic))
        await store.append(topic, "a", 0, deposits("a", 1, topic))
        with pytest.raises(ConcurrencyConflict, match=r"expected version 2, but it has version 1"):
            await store.append(topic, "a", 2, deposits("a", 1, topic))
        assert len(await read((store, topic), "a")) == 1


async def test_a_version_beyond_all_numbers_is_refused(place: Place) -> None:
    async with opened(place) as (store, topic):
        for expected in (1 << 53, (1 << 63) - 1, 1 << 63, 1 << 64, 1 << 200, -1):
            with pytest.raises(PublishError, match="is no version"):
                await store.append(topic, "a", expected, deposits("a", 1, topic))
    assert written(place) == {"streams": [[] for _ in place.streams("accounts")]}


async def test_a_read_sees_whole_appends_while_others_write(place: Place) -> None:
    async with opened(place) as (store, topic), opened(place) as other:
        done = asyncio.Event()

        async def write() -> None:
            for version in range(0, 700, 7):
                await store.append(topic, "a", version, deposits("a", 7, topic))
            done.set()

        writing, lengths = asyncio.create_task(write()), []
        while not done.is_set():
            found = await read(other, "a")
            assert [stored.version for stored in found] == list(range(1, len(found) + 1))
            assert len(found) % 7 == 0
            lengths.append(len(found))
        await writing
        assert lengths == sorted(lengths)
        assert len(await read(other, "a")) == 700
