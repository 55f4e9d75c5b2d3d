"""Done marks as members of sets: remembered for the whole window, by every worker, whatever the plan does meanwhile."""

import pytest

from streamlib import App, Context, Event, Topic
from streamlib.errors import DeclarationError
from streamlib.redisio.claims import claim
from streamlib.redisio.dead_letter import parse_dead_letter
from streamlib.redisio.dead_letters import Replay, replay
from streamlib.redisio.delivery import Delivery
from streamlib.redisio.marks import Marks, are_done, plan_of
from streamlib.redisio.settler import done, give_back, settle
from streamlib.settings import IdempotencySettings
from tests.helpers.delivering import GROUP, LEASE_MS, STREAM, WINDOW_MS, Partition, a_partition, burst, settings
from tests.helpers.settling import dead

COMPACT = {"idempotency": IdempotencySettings(store="compact")}


class Noted(Event):
    text: str = ""


class Worker:
    """A worker that keeps done marks as members, and has its own idea of the plan."""

    def __init__(self, p: Partition, name: str = "w1") -> None:
        self.p = p
        self.name = name
        self.marks = Marks()

    async def claim(self, deliveries: list[Delivery]) -> list[str]:
        found = await claim(
            self.p.door, deliveries, group=GROUP, worker_id=self.name, lease_ms=LEASE_MS, window_ms=WINDOW_MS,
            marks=self.marks,
        )  # fmt: skip
        return [one.verdict.name for one in found]

    async def settle(self, settlements: list, *, resent: bool = False) -> list[int]:  # type: ignore[type-arg]
        found = await settle(
            self.p.door, settlements, group=GROUP, worker_id=self.name, window_ms=WINDOW_MS, resent=resent,
            marks=self.marks,
        )  # fmt: skip
        return [int(one) for one in found]

    async def handle(self, *event_ids: str) -> list[Delivery]:
        """Events from publish to done."""
        for event_id in event_ids:
            self.p.add(event_id)
        deliveries = await self.p.take(self.name)
        assert await self.claim(deliveries) == ["RUN"] * len(event_ids)
        assert await self.settle([done(one) for one in deliveries]) == [1] * len(event_ids)
        return deliveries


def age(p: Partition, ms: int) -> None:
    """Let the segments have been opened so much earlier; their sets keep up."""
    plan = p.client.hget(p.keys.marks(GROUP), "plan").decode()
    older = []
    for segment in plan.split():
        opened, shards = segment.split(".")
        older.append(f"{int(opened) - ms}.{shards}")
        for name in p.client.keys(f"*:done:{GROUP}:{opened}:*"):
            p.client.rename(name, name.replace(opened.encode(), str(int(opened) - ms).encode()))
    p.client.hset(p.keys.marks(GROUP), "plan", " ".join(older))


async def test_what_is_done_leaves_a_member_and_no_key(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        await Worker(p).handle("e-1", "e-2")
        assert await are_done(p.door, p.keys, GROUP, ["e-1", "e-3", "e-2"]) == [True, False, True]
        assert not p.client.keys("*:idem:*")
        for name in [p.keys.marks(GROUP), *p.client.keys("*:done:*:*:*")]:
            assert WINDOW_MS < p.client.pttl(name) <= WINDOW_MS * 1.25
        assert p.pending() == {}


async def test_a_copy_is_a_duplicate_for_a_worker_that_knows_no_plan(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        await Worker(p).handle("e-1")
        p.add("e-1")
        assert await Worker(p, "w2").claim(await p.take("w2")) == ["DUPLICATE"]


@pytest.mark.row(68)
async def test_marks_are_found_over_segments_for_the_whole_window_and_no_longer_kept_in_the_plan(
    redis_url: str,
) -> None:
    async with a_partition(redis_url) as p:
        first, second = Worker(p), Worker(p, "w2")
        for n in range(6):
            await (first, second)[n % 2].handle(f"e-{n}")
            age(p, WINDOW_MS // 4)
        segments = (await plan_of(p.door, p.keys, GROUP)).segments
        assert 4 <= len(segments) <= 6
        for n in range(2, 6):  # what was settled within the window
            p.add(f"e-{n}")
        assert await Worker(p, "w3").claim(await p.take("w3")) == ["DUPLICATE"] * 4


async def test_a_full_segment_is_followed_by_a_wider_one_and_nothing_is_forgotten(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        worker, ids = Worker(p), [f"e-{n}" for n in range(3_000)]
        for start in range(0, 3_000, 500):
            await worker.handle(*ids[start : start + 500])
        segments = (await plan_of(p.door, p.keys, GROUP)).segments
        assert len(segments) == 2
        assert segments[0].shards < segments[1].shards <= segments[0].shards * 16
        assert all(await are_done(p.door, p.keys, GROUP, ids))


async def test_a_settle_sent_twice_counts_once_also_when_the_segment_was_followed_meanwhile(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        worker = Worker(p)
        deliveries = await worker.handle("e-1", "e-2")
        assert await worker.settle([done(one) for one in deliveries]) == [0, 0], "a lease that is over"
        assert await worker.settle([done(one) for one in deliveries], resent=True) == [1, 1]
        age(p, WINDOW_MS // 4)
        assert await worker.settle([done(one) for one in deliveries], resent=True) == [1, 1]


async def test_a_copy_that_was_never_claimed_is_not_handed_back_once_the_event_is_done(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        p.add("e-1")
        p.add("e-1")
        one, copy = await p.take()
        worker = Worker(p)
        await worker.claim([one])
        await worker.settle([done(one)])
        assert await worker.settle([give_back(copy, claimed=False)]) == [1]
        assert p.client.xlen(p.again) == 0
        assert p.pending() == {}


async def test_a_dead_letter_whose_event_was_done_by_a_copy_is_not_replayed(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        p.add("e-1")
        [one] = await p.take()
        worker = Worker(p)
        await worker.claim([one])
        await worker.settle([dead(one)])
        p.client.delete(p.keys.idem(GROUP, "e-1"))  # a window goes by
        await worker.handle("e-1")
        [(dead_id, fields)] = await p.door.execute("XRANGE", p.keys.dead(GROUP), "-", "+")
        letter = parse_dead_letter(fields)
        assert letter is not None
        answer = await replay(
            p.door, p.keys, group=GROUP, dead_id=dead_id.decode(), event_id="e-1", letter=letter, window_ms=WINDOW_MS
        )
        assert answer is Replay.DONE


async def test_marks_that_were_keys_go_on_counting(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        p.client.set(p.keys.idem(GROUP, "e-1"), "d", px=WINDOW_MS)
        p.add("e-1")
        assert await Worker(p).claim(await p.take()) == ["DUPLICATE"]


async def test_who_would_not_see_the_members_claims_nothing(redis_url: str) -> None:
    async with a_partition(redis_url) as p:
        await Worker(p).handle("e-1")
        p.add("e-2")
        taken = await p.take("w2")
        with pytest.raises(DeclarationError, match="compact store"):
            await claim(p.door, taken, group=GROUP, worker_id="w2", lease_ms=LEASE_MS, window_ms=WINDOW_MS)
        assert not p.client.exists(p.keys.idem(GROUP, "e-2"))


async def test_a_worker_of_the_other_store_refuses_to_start(redis_url: str) -> None:
    seen: list[str] = []

    def app(sections: dict[str, IdempotencySettings]) -> tuple[App, Topic]:
        made = App("shop", settings=settings(redis_url, sections=sections))
        notes = made.topic(STREAM, Noted)

        @made.handler(notes, group=GROUP)
        async def read(event: Noted, ctx: Context) -> None:
            seen.append(ctx.event_id)

        return made, notes

    compact, notes = app(COMPACT)
    async with compact:
        await notes.publish(Noted(), id="e-1")
        assert await burst(compact) == 0
    keys, notes = app({"idempotency": IdempotencySettings()})
    async with keys:
        await notes.publish(Noted(), id="e-1")
        with pytest.raises(DeclarationError, match="set idempotency"):
            await burst(keys)
    compact, _ = app(COMPACT)
    async with compact:
        assert await burst(compact) == 0
    assert seen == ["e-1"]
