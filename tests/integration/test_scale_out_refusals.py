"""Apps that do not fit what is stored, and entries that fit no order: refused by name, and nothing is lost."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import redis

from streamlib import App, Event, PublishError
from streamlib.errors import DeclarationError, TopicMismatch
from tests.helpers.delivering import burst, dead_letters, settings

GROUP = "ledger"
Ordering = Literal["none", "key"]


class Moved(Event):
    account: str | None
    n: int


def ledger(url: str, done: list[int], *, ordering: Ordering = "key", partitions: int = 4) -> App:
    app = App("bank", settings=settings(url))
    moves = app.topic("moves", Moved, key="account", partitions=partitions)

    @app.handler(moves, group=GROUP, ordering=ordering)
    async def move(event: Moved) -> None:
        done.append(event.n)

    return app


async def publish(app: App, numbers: range) -> None:
    await app.topics["moves"].publish_many([Moved(account=f"a{n % 7}", n=n) for n in numbers])


@pytest.mark.parametrize(("was", "becomes"), [("none", "key"), ("key", "none")])
async def test_a_group_that_changes_its_ordering_is_refused_and_nothing_is_lost(
    redis_url: str, was: Ordering, becomes: Ordering
) -> None:
    done: list[int] = []
    async with (app := ledger(redis_url, done, ordering=was)):
        await publish(app, range(50))
        await burst(app)
        await publish(app, range(50, 100))
    with pytest.raises(DeclarationError, match=rf"'{GROUP}' of topic 'moves' is of kind .* streamlib groups rm moves"):
        await ledger(redis_url, done, ordering=becomes).open()
    async with (app := ledger(redis_url, done, ordering=was)):
        await burst(app)
    assert sorted(done) == list(range(100))


@pytest.mark.row(72)
@pytest.mark.parametrize("partitions", [1, 3, 8])
async def test_another_partition_count_is_refused_and_nothing_is_lost(
    redis_url: str, client: redis.Redis, partitions: int
) -> None:
    done: list[int] = []
    async with (app := ledger(redis_url, done)):
        await publish(app, range(100))
    before = sorted(client.keys())
    with pytest.raises(TopicMismatch, match=f"has 4 partitions in Redis, but partitions={partitions} is declared"):
        await ledger(redis_url, done, partitions=partitions).open()
    assert sorted(client.keys()) == before, "no stream was made"
    async with (app := ledger(redis_url, done)):
        await burst(app)
    assert sorted(done) == list(range(100))


async def test_a_key_of_none_is_refused_alone(redis_url: str) -> None:
    done: list[int] = []
    async with (app := ledger(redis_url, done)):
        moves = app.topics["moves"]
        with pytest.raises(PublishError, match=r"Moved\.account is None, but topic 'moves' is keyed by it"):
            await moves.publish(Moved(account=None, n=0))
        first, refused, last = await moves.publish_many([Moved(account=key, n=1) for key in ("a", None, "a")])
        assert isinstance(refused, PublishError)
        assert not isinstance(first, PublishError)
        assert not isinstance(last, PublishError)
        await burst(app)
    assert done == [1, 1]


async def test_entries_of_other_programs_without_a_key_harm_no_key(redis_url: str, client: Any) -> None:
    """One without the field is a dead letter with all it had; those with an empty one run one after another."""
    done: list[int] = []
    async with (app := ledger(redis_url, done, partitions=1)):
        for n in range(30):
            entry = {"id": f"e-{n}", "type": "Moved", "v": "1", "key": "a", "data": f'{{"account":"x","n":{n}}}'}
            if n % 3 == 0:
                del entry["key"]
            if n % 3 == 1:
                entry["key"] = ""
            client.xadd("moves", entry)
        await burst(app)
    letters = dead_letters(client, "moves", GROUP)
    assert {letter["id"]: letter["dl-reason"] for letter in letters} == {f"e-{n}": "decode" for n in range(0, 30, 3)}
    assert all("key" in letter["dl-error"] and letter["data"] for letter in letters)
    for rest in (1, 2):
        assert [n for n in done if n % 3 == rest] == list(range(rest, 30, 3))
