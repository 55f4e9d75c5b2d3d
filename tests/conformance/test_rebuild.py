"""A view is rebuilt, switched, rolled back and its old generation deleted, in every place, while events come."""

import asyncio
from collections import Counter

from streamlib import Exact, ReadModel
from streamlib.ops.comparing import Difference
from streamlib.ops.dropping import drop
from streamlib.ops.rebuild import Rebuild, roll_back
from streamlib.ops.views import View
from tests.conformance.places import Place
from tests.conformance.rig import TOPIC, Note, make_app
from tests.helpers.waiting import eventually

AUTHORS = [f"author-{n}" for n in range(12)]


class Written(ReadModel):
    author: str
    notes: int


async def switch_if_equal(difference: Difference) -> bool:
    return difference.equal


async def test_a_view_is_rebuilt_and_its_generations_come_and_go(place: Place) -> None:
    app = make_app(place.url)
    notes = app.topic(TOPIC, Note, key="author", partitions=4)
    authors = app.projection("authors", notes, Written, key="author", indexes=[Exact("notes")])

    @authors.on(Note)
    def _(row: Written | None, event: Note) -> Written:
        return Written(author=event.author, notes=(row.notes if row else 0) + 1)

    stop, counted = asyncio.Event(), Counter[str]()

    async def publish(count: int) -> None:
        events = [Note(number=n, author=AUTHORS[n % 12]) for n in range(count)]
        for position in [await notes.publish(event) for event in events][-12:]:
            await authors.wait_for(position, timeout=60)
        counted.update(event.author for event in events)
        assert {row.author: row.notes for row in await authors.rows()} == counted

    async with app:
        view = View(projection=authors, redis=app.redis, keys=app.keys, settings=app.settings)
        running = asyncio.create_task(app.worker().run(stop))
        await publish(300)
        rebuilding = asyncio.create_task(Rebuild(view).run(switch_if_equal, lambda done, total: None))
        await publish(60)
        done = await rebuilding
        assert (done.live, done.kept, done.difference.equal, done.difference.rows_new) == (2, 1, True, 12)
        await publish(24)
        assert (await roll_back(view)).live == 1
        await publish(24)
        assert await drop(view, await view.standing(), 2) >= 12
        await publish(12)
        with place.client() as client:
            streams = [f"{TOPIC}.{number}" for number in range(4)]
            left = [f"{{{s}}}:view:authors:2:row:{author}" for s in streams for author in AUTHORS]
            assert not any(client.exists(key) for key in left)
            assert client.hgetall("streamlib:views") == {f"{TOPIC}:authors".encode(): b"1"}
            await eventually(lambda: not any(client.exists(f"{{{s}}}:owner:authors.g2") for s in streams))
        stop.set()
        assert await running == 0
