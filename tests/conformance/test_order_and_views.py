"""Order per key and read models, in every place: on one server, with sentinels, on a cluster."""

import asyncio
from collections import Counter

import pytest

from streamlib import Context, Exact, ReadModel, Retry
from tests.conformance.places import Place
from tests.conformance.rig import TOPIC, Note, Subscriber, make_app, publishing
from tests.helpers.waiting import eventually

KEYS = [f"author-{n}" for n in range(12)]


@pytest.mark.row(57, 71)
async def test_order_per_key_holds_while_events_fail_and_workers_come_and_go(place: Place) -> None:
    """600 events of 12 keys on 4 partitions, every tenth fails at first; a second worker joins, the first one leaves:
    the successful runs of each key are in stream order, each event once."""
    ran: list[tuple[str, int]] = []

    async def handle(event: Note, ctx: Context) -> None:
        if event.number % 10 == 0 and ctx.attempt == 1:
            raise ConnectionError("not now")
        ran.append((event.author, event.number))

    def subscriber() -> Subscriber:
        retry = Retry(base=0.01, cap=0.02)
        return Subscriber(place, handle, key="author", partitions=4, ordering="key", retry=retry)

    async with publishing(place, key="author", partitions=4) as notes:
        for n in range(300):
            await notes.publish(Note(number=n, author=KEYS[n % 12]))
        first = subscriber()
        await first.__aenter__()
        await eventually(lambda: len(ran) > 50, timeout=30)
        async with subscriber():
            for n in range(300, 600):
                await notes.publish(Note(number=n, author=KEYS[n % 12]))
            await first.__aexit__(None, None, None)
            await eventually(lambda: len(ran) >= 600, timeout=60)
    assert first.exit_code == 0
    by_key = {key: [number for author, number in ran if author == key] for key in KEYS}
    assert by_key == {key: list(range(n, 600, 12)) for n, key in enumerate(KEYS)}


class Written(ReadModel):
    author: str
    notes: int
    last: int


class Worded(ReadModel):
    text: str
    notes: int


async def test_read_models_answer_over_all_partitions_also_behind_a_rekey(place: Place) -> None:
    """400 events by 12 authors in 5 wordings: a view by author, and one by wording over a topic that is keyed so."""
    app = make_app(place.url)
    notes = app.topic(TOPIC, Note, key="author", partitions=4)
    by_text = app.rekey(notes, key="text", to="by-text")
    authors = app.projection("authors", notes, Written, key="author", indexes=[Exact("notes")])
    texts = app.projection("texts", by_text, Worded, key="text")

    @authors.on(Note)
    def _(row: Written | None, event: Note) -> Written:
        return Written(author=event.author, notes=(row.notes if row else 0) + 1, last=event.number)

    @texts.on(Note)
    def _(row: Worded | None, event: Note) -> Worded:
        return Worded(text=event.text, notes=(row.notes if row else 0) + 1)

    made = [Note(number=n, author=KEYS[n % 12], text=f"text {n % 5}") for n in range(400)]
    stop = asyncio.Event()
    async with app:
        running = asyncio.create_task(app.worker().run(stop))
        positions = [await notes.publish(note) for note in made]
        for position in positions[-12:]:
            await authors.wait_for(position, timeout=30)
        copied = Counter(note.text for note in made)

        async def all_copied() -> bool:
            return sum([row.notes for row in await texts.rows()]) == 400

        await eventually(all_copied, timeout=60)
        written = Counter(note.author for note in made)
        assert {row.author: row.notes for row in await authors.rows()} == written
        assert {row.text: row.notes for row in await texts.rows()} == copied
        assert await authors.get("author-3") == Written(author="author-3", notes=34, last=399)
        assert [row.author for row in await authors.find(notes=33)] == sorted(a for a, n in written.items() if n == 33)
        stop.set()
        assert await running == 0
