"""Order per key: one event of a key at a time, in stream order, other keys beside it; what fails blocks its own key."""

import asyncio
from collections import defaultdict
from typing import Any

import pytest
import redis

from streamlib import App, Context, Event, Reject, Retry
from streamlib.errors import DeclarationError
from streamlib.keys import Keys
from streamlib.redisio.key_states import key_states, resume, skip
from tests.helpers.delivering import counted, dead_letters, outcomes, running, settings
from tests.helpers.waiting import eventually

GROUP = "ledger"


class Moved(Event):
    account: str
    n: int


class Noted(Event):
    account: str
    n: int


def make(url: str, **worker: Any) -> App:
    return App("bank", settings=settings(url, **worker))


class Seen:
    """What handlers did: per key the numbers in the order in which they ended, and whether two of a key overlapped."""

    def __init__(self) -> None:
        self.done: dict[str, list[int]] = defaultdict(list)
        self.running: dict[str, int] = defaultdict(int)
        self.overlapped: set[str] = set()
        self.most = 0

    async def run(self, event: Moved, seconds: float = 0.0) -> None:
        self.running[event.account] += 1
        self.most = max(self.most, sum(self.running.values()))
        if self.running[event.account] > 1:
            self.overlapped.add(event.account)
        try:
            await asyncio.sleep(seconds)
        finally:
            self.running[event.account] -= 1
        self.done[event.account].append(event.n)

    @property
    def total(self) -> int:
        return sum(map(len, self.done.values()))


async def test_events_of_a_key_run_in_stream_order_and_other_keys_beside_them(redis_url: str) -> None:
    app, seen = make(redis_url, concurrency=8), Seen()
    moves = app.topic("moves", Moved, key="account", partitions=3)

    @app.handler(moves, group=GROUP, ordering="key")
    async def move(event: Moved) -> None:
        await seen.run(event, 0.001)

    async with app:
        await moves.publish_many([Moved(account=f"a{n % 16}", n=n) for n in range(800)])
        async with running(app):
            await eventually(lambda: seen.total == 800)
    assert not seen.overlapped
    assert seen.most > 1, "keys run beside each other"
    assert all(numbers == sorted(numbers) and len(numbers) == 50 for numbers in seen.done.values())


async def test_a_failing_event_keeps_its_own_key_waiting_and_no_other(redis_url: str, client: redis.Redis) -> None:
    app, seen = make(redis_url), Seen()
    moves = app.topic("moves", Moved, key="account")
    attempts: list[int] = []

    @app.handler(moves, group=GROUP, ordering="key", retry=Retry(max_attempts=20, base=0.02, cap=0.1))
    async def move(event: Moved, ctx: Context) -> None:
        if event.account == "bad" and event.n == 0:
            attempts.append(ctx.attempt)
            if seen.total < 20:
                raise ValueError("not yet")
        await seen.run(event)

    async with app:
        await moves.publish_many([Moved(account="bad", n=n) for n in range(3)])
        await moves.publish_many([Moved(account="good", n=n) for n in range(20)])
        async with running(app):
            await eventually(lambda: seen.total == 23)
    assert seen.done == {"good": list(range(20)), "bad": [0, 1, 2]}
    assert attempts == list(range(1, len(attempts) + 1))
    assert len(attempts) > 1
    assert outcomes(app, GROUP) == {"ok": 23, "retry": len(attempts) - 1}
    assert not client.exists("{moves}:keys:ledger"), "nothing is noted about a key that goes on"


async def test_after_the_last_attempt_the_key_goes_on(redis_url: str, client: redis.Redis) -> None:
    app, seen = make(redis_url), Seen()
    moves = app.topic("moves", Moved, key="account")

    @app.handler(moves, group=GROUP, ordering="key", retry=Retry(max_attempts=2, base=0.01, cap=0.01))
    async def move(event: Moved) -> None:
        if event.n == 1:
            raise ValueError("never")
        await seen.run(event)

    async with app:
        await moves.publish_many([Moved(account="a", n=n) for n in range(4)])
        async with running(app):
            await eventually(lambda: seen.total == 3)
    assert seen.done == {"a": [0, 2, 3]}
    (letter,) = dead_letters(client, "moves", GROUP)
    assert (letter["dl-reason"], letter["dl-attempts"]) == ("max_attempts", "2")


@pytest.mark.parametrize("verb", ["resume", "skip"])
async def test_a_halted_key_waits_for_an_operator(redis_url: str, client: redis.Redis, verb: str) -> None:
    app, seen = make(redis_url), Seen()
    moves = app.topic("moves", Moved, key="account")
    mended = False

    @app.handler(moves, group=GROUP, ordering="key", on_dead="block")
    async def move(event: Moved) -> None:
        if event.account == "bad" and event.n == 0 and not mended:
            raise Reject("cannot be")
        await seen.run(event)

    keys = Keys().stream("moves", 0, 1)
    async with app:
        await moves.publish_many([Moved(account=key, n=n) for n in range(3) for key in ("bad", "good")])
        async with running(app):
            await eventually(lambda: seen.total == 3)
            (state,) = await key_states(app.redis, keys, GROUP)
            assert (state.key, state.halted, state.attempts) == ("bad", True, 1)
            assert "cannot be" in state.error
        assert seen.done == {"good": [0, 1, 2]}
        async with running(app):  # another worker, another owner: the key stays halted
            await eventually(lambda: counted(app, "parked_events", group=GROUP) == 3)
            mended = True
            if verb == "resume":
                assert await resume(app.redis, keys, GROUP, "bad")
            else:
                assert await skip(app.redis, keys, GROUP, "bad", window_ms=60_000)
            await eventually(lambda: len(seen.done["bad"]) == (3 if verb == "resume" else 2))
            assert await key_states(app.redis, keys, GROUP) == []
    letters = [letter["dl-reason"] for letter in dead_letters(client, "moves", GROUP)]
    assert letters == ([] if verb == "resume" else ["rejected"])


async def test_what_is_parked_is_bounded_and_a_metric_says_so(redis_url: str) -> None:
    app, seen = make(redis_url, parked=50), Seen()
    moves = app.topic("moves", Moved, key="account")
    stuck = True

    @app.handler(moves, group=GROUP, ordering="key", retry=Retry(max_attempts=1_000, base=0.05, cap=0.05))
    async def move(event: Moved) -> None:
        if stuck and event.account == "bad":
            raise ValueError("not yet")
        await seen.run(event)

    async with app:
        await moves.publish_many([Moved(account="bad", n=n) for n in range(200)])
        await moves.publish(Moved(account="good", n=0))
        async with running(app):
            await eventually(lambda: counted(app, "full_partitions", group=GROUP) == 1)
            assert 50 <= counted(app, "parked_events", group=GROUP) <= 100
            stuck = False
            await eventually(lambda: seen.total == 201)
            await eventually(lambda: counted(app, "full_partitions", group=GROUP) == 0)
    assert seen.done["bad"] == list(range(200))


async def test_several_workers_share_the_partitions_and_hand_them_over(redis_url: str) -> None:
    apps, seen = [make(redis_url) for _ in range(3)], Seen()
    for app in apps:
        moves = app.topic("moves", Moved, key="account", partitions=4)

        @app.handler(moves, group=GROUP, ordering="key")
        async def move(event: Moved) -> None:
            await seen.run(event, 0.002)

    def owned() -> list[int]:
        return sorted(int(counted(app, "partitions_owned", group=GROUP)) for app in apps)

    first, *others = apps
    published = 0

    async def publish() -> None:
        nonlocal published
        moves = first.topics["moves"]
        await moves.publish_many([Moved(account=f"a{n % 16}", n=published + n) for n in range(160)])
        published += 160

    async with first, running(first):
        await publish()
        await eventually(lambda: owned() == [0, 0, 4])
        async with others[0], others[1], running(others[0]):
            await publish()
            await eventually(lambda: owned() == [0, 2, 2])
            async with running(others[1]):
                await publish()
                await eventually(lambda: owned() == [1, 1, 2])
            await publish()
            await eventually(lambda: owned() == [0, 2, 2])
        await eventually(lambda: owned() == [0, 0, 4])
        await eventually(lambda: seen.total == published)
    assert not seen.overlapped
    assert all(numbers == sorted(numbers) for numbers in seen.done.values())
    assert sum(outcomes(app, GROUP).get("ok", 0) for app in apps) == published


async def test_a_type_that_only_another_worker_handles_is_left_to_it(redis_url: str) -> None:
    old, new, seen = make(redis_url), make(redis_url), Seen()
    moves = old.topic("moves", Moved, Noted, key="account", partitions=4)
    newer = new.topic("moves", Moved, Noted, key="account", partitions=4)
    accounts = [f"a{n}" for n in range(24)]

    @old.handler(moves, group=GROUP, ordering="key")
    async def move(event: Moved) -> None:
        await seen.run(event)

    @new.handler(newer, group=GROUP, ordering="key")
    async def both(event: Moved | Noted) -> None:
        await seen.run(Moved(account=event.account, n=event.n))

    async with old, running(old):
        await moves.publish_many([Moved(account=account, n=0) for account in accounts])
        await eventually(lambda: seen.total == 24)
        async with new, running(new):
            await newer.publish_many([Noted(account=account, n=1) for account in accounts])
            await newer.publish_many([Moved(account=account, n=2) for account in accounts])
            await eventually(lambda: seen.total == 72)
    assert seen.done == {account: [0, 1, 2] for account in accounts}


def test_what_cannot_be_ordered_is_refused_by_name_and_cause() -> None:
    app = App("bank")
    keyed = app.topic("keyed", Moved, Noted, key="account")
    loose = app.topic("loose", Moved)

    async def one(event: Moved) -> None: ...
    async def other(event: Noted) -> None: ...
    async def batch(events: list[Moved]) -> None: ...

    with pytest.raises(DeclarationError, match="declared without key="):
        app.handler(loose, group=GROUP, ordering="key")(one)
    with pytest.raises(DeclarationError, match="a batch handler gets many at once"):
        app.handler(keyed, group=GROUP, ordering="key")(batch)
    with pytest.raises(DeclarationError, match="choose 'none' or 'key'"):
        app.handler(keyed, group=GROUP, ordering="partition")(one)  # type: ignore[arg-type]
    with pytest.raises(DeclarationError, match="without ordering='key'"):
        app.handler(keyed, group=GROUP, on_dead="block")(one)
    app.handler(keyed, group=GROUP, ordering="key")(one)
    with pytest.raises(DeclarationError, match=r"ordering='none' and one.* ordering='key'|it belongs to the group"):
        app.handler(keyed, group=GROUP)(other)
    with pytest.raises(DeclarationError, match="it belongs to the group"):
        app.handler(keyed, group=GROUP, ordering="key", on_dead="block")(other)
