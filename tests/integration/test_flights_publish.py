"""Publishing flights: every event of the file lies in the topic once, however often the file is published."""

import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis

from streamlib import App
from streamlib.settings import RedisSettings, Settings
from workers.flights.app import app as flights_app
from workers.flights.app import flights
from workers.flights.publish import publish_file
from workers.flights.records import read_events

# The app's own topic and registry, and the marks of published ids.
pytestmark = pytest.mark.allow_keys("flights*", "{flights*}:*", "streamlib:*")

PARTITIONS = 4


@pytest.fixture
async def app(redis_url: str) -> AsyncIterator[App]:
    flights_app.configure(Settings(redis=RedisSettings(url=redis_url)))
    async with flights_app:
        yield flights_app


def stored_ids(client: redis.Redis) -> list[list[str]]:
    """The event ids of each partition."""
    partitions: list[Any] = [client.xrange(f"{flights.name}.{number}") for number in range(PARTITIONS)]
    return [[fields[b"id"].decode() for _, fields in entries] for entries in partitions]


def ids_in_file(limit: int) -> list[list[str]]:
    """The event ids that belong on each partition: those of one carrier and flight number lie together."""
    ids: list[list[str]] = [[] for _ in range(PARTITIONS)]
    for event_id, event in read_events(limit=limit):
        ids[zlib.crc32(event.flight.encode()) % PARTITIONS].append(event_id)
    return ids


async def test_events_are_stored_on_each_partition_in_the_order_of_the_file(app: App, client: redis.Redis) -> None:
    heard: list[int] = []
    published = await publish_file(app, limit=1_234, progress=heard.append)
    assert (published.stored, published.duplicates) == (1_234, 0)
    assert heard == [500, 1_000, 1_234]
    assert stored_ids(client) == ids_in_file(1_234)


async def test_publishing_the_file_twice_changes_nothing(app: App, client: redis.Redis) -> None:
    await publish_file(app, limit=700)
    again = await publish_file(app, limit=1_000)
    assert (again.stored, again.duplicates) == (1_000, 700)
    assert stored_ids(client) == ids_in_file(1_000)
