"""The connections of a store: none that is dead is handed out, waits are bounded, everybody gets a turn.

The ConnectionPool cases of the `eventsourcing` package. A pool there is asked for a connection and given it back; our
door is asked for an answer. So: what the pool's cases are about is shown of commands. There is no maximal age and no
ping before use: a command whose connection turns out to be dead goes out again on another one, which is safe because
an append knows its repeat.
"""

import asyncio
from typing import Any

import pytest

from streamlib import App, Settings
from streamlib.errors import RedisUnavailable
from streamlib.redisio.event_store import EventStore
from streamlib.settings import RedisSettings
from streamlib.topic import TopicSpec
from tests.conformance.places import Place
from tests.helpers.accounts import ACCOUNTS, Deposited, Opened, deposits, open_store
from tests.helpers.proxy import ChaosProxy


def declared(place: Place, **options: Any) -> tuple[App, TopicSpec]:
    app = App("recorder", settings=Settings(redis=RedisSettings(url=place.url, **options)))
    return app, app.topic("accounts", Opened, Deposited, key="account_id", partitions=place.partitions).spec


async def append_to(store: EventStore, topic: TopicSpec, name: str, count: int) -> None:
    for version in range(count):
        await store.append(topic, name, version, deposits(name, 1, topic))


async def test_many_tasks_share_the_connections_and_each_gets_its_own_answers(place: Place) -> None:
    """get and put, fairness: 100 tasks at once, all of them come to their end."""
    app, topic = declared(place)
    async with app:
        names = [f"a-{number}" for number in range(100)]
        await asyncio.gather(*(append_to(app.event_store, topic, name, 5) for name in names))
        for name in names:
            assert [one.message.key async for one in app.event_store.read(topic, name)] == [name] * 5


async def test_connections_that_the_server_has_closed_are_replaced(place: Place) -> None:
    app, topic = declared(place)
    async with app:
        for version in range(3):
            await asyncio.gather(*(app.event_store.length(topic, f"a-{number}") for number in range(10)))
            kill_normal_clients(place)
            await app.event_store.append(topic, "a", version, deposits("a", 1, topic))
            kill_normal_clients(place)
            assert await app.event_store.length(topic, "a") == version + 1


def kill_normal_clients(place: Place) -> None:
    with place.client() as client:
        targets: dict[str, Any] = {"target_nodes": "primaries"} if hasattr(client, "get_primaries") else {}
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes", **targets)


@pytest.mark.row(13)
async def test_a_store_that_is_cancelled_in_the_middle_hands_out_no_answer_of_another(place: Place) -> None:
    app, topic = declared(place)
    async with app:
        await asyncio.gather(*(append_to(app.event_store, topic, f"a-{number}", number + 1) for number in range(5)))
        for round_ in range(40):
            tasks = [asyncio.create_task(app.event_store.length(topic, f"a-{number}")) for number in range(5)]
            await asyncio.sleep(0)
            tasks[round_ % 5].cancel()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            for number, answer in enumerate(answers):
                assert isinstance(answer, asyncio.CancelledError) or answer == number + 1


async def test_reading_goes_on_while_a_write_is_under_way(place: Place) -> None:
    """reader and writer: neither holds the other up."""
    app, topic = declared(place)
    async with app:
        writing = asyncio.create_task(append_to(app.event_store, topic, "a", 100))
        seen = [await app.event_store.length(topic, "a") for _ in range(50)]
        await writing
        assert seen == sorted(seen)
        assert await app.event_store.length(topic, "a") == 100


async def test_nobody_waits_for_a_silent_server_for_ever(redis_url: str, proxy: ChaosProxy) -> None:
    """timeout: a wait is bounded by redis.timeout_s and redis.retry_s, for all who wait."""
    async with open_store(proxy.url, timeout_s=0.2, retry_s=0.3) as store:
        await store.append(ACCOUNTS, "a", 0, deposits("a"))
        proxy.blackhole()
        waiting = [store.append(ACCOUNTS, "a", 1, deposits("a")), store.length(ACCOUNTS, "a")]
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(answer) for answer in answers] == [RedisUnavailable] * 2
        proxy.reset_all()
        proxy.heal()
        assert await store.length(ACCOUNTS, "a") in (1, 2)


@pytest.mark.row(24)
async def test_a_server_that_takes_no_more_connections_is_waited_for(redis_url: str, client: Any) -> None:
    """semaphore: `maxclients` is reached, and some go away again."""
    async with open_store(redis_url, retry_s=30) as store:
        before = client.config_get("maxclients")["maxclients"]
        try:
            client.config_set("maxclients", len(client.client_list()))
            waiting = asyncio.create_task(store.append(ACCOUNTS, "a", 0, deposits("a")))
            rejected = int(client.info("stats")["rejected_connections"])
            while int(client.info("stats")["rejected_connections"]) <= rejected:
                await asyncio.sleep(0.01)
        finally:
            client.config_set("maxclients", before)
        assert (await waiting).version == 1
