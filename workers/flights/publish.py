"""Publishes a file of flight records: rows become events, in the file's order, many per round trip."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

from msgspec import Struct

from streamlib import App
from streamlib.errors import PublishError
from workers.flights.app import flights
from workers.flights.records import DATA_FILE, read_events

_PER_ROUND_TRIP = 500


class Published(Struct, frozen=True):
    """How many events are stored now, and how many of them had been there before under the same id."""

    stored: int
    duplicates: int


async def publish_file(
    app: App,
    path: Path = DATA_FILE,
    *,
    limit: int | None = None,
    progress: Callable[[int], None] = lambda stored: None,
) -> Published:
    """Publish the events of a file, `limit` at most; `app` must be open. A second time changes nothing.

    `progress` hears after each round trip how many are stored. Raises RecordError for a broken file and
    PublishError for the first event that was refused: publishing the file again carries on there.
    """
    events = read_events(path, limit)
    stored = duplicates = 0
    while chunk := list(islice(events, _PER_ROUND_TRIP)):
        messages = [flights.spec.message(event, event_id=event_id) for event_id, event in chunk]
        for answer in await app.publisher.send(flights.spec, messages):
            if isinstance(answer, PublishError):
                raise answer
            stored += 1
            duplicates += answer.duplicate
        progress(stored)
    return Published(stored, duplicates)
