"""Publishing and delivery under random steps: two groups, workers that crash, hang, wake and send everything twice."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ClassVar, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streamlib.errors import IdempotencyConflict, TopicFull
from streamlib.keys import Keys
from streamlib.ops.pace import Pace
from streamlib.ops.ranges import FIRST, Asked
from streamlib.ops.replay import Replay
from streamlib.redisio import dead_letters, retention
from streamlib.redisio.dead_letter import parse_dead_letter
from streamlib.redisio.delivery import Delivery
from streamlib.redisio.publisher import Sent
from streamlib.redisio.retries import promote
from streamlib.redisio.settler import Settlement
from streamlib.settings import RetentionSettings
from tests.helpers.delivering import STREAM
from tests.helpers.oracle import assert_no_stray_keys, assert_nothing_lost
from tests.helpers.publishing import made
from tests.properties.delivery_hands import KINDS, Hands
from tests.properties.delivery_model import DEAD, DONE, Entry, GroupModel, Held, Letter, Witness
from tests.properties.delivery_rig import GROUPS, LEASE_MS, TOPIC_LEN, WINDOW_S, Rig, expected
from tests.properties.running import Place

T = TypeVar("T")

WORKERS = 2

picks = st.integers(0, 30)
some = st.lists(picks, min_size=1, max_size=4)
kinds = st.lists(st.sampled_from(KINDS), min_size=1, max_size=4)
counts = st.sampled_from([1, 2, 500])


def somebody(has: str) -> Callable[[DeliveryMachine], bool]:
    """As a precondition: some worker has such deliveries."""
    return lambda machine: bool(machine.who(has))


def chosen(many: Sequence[T], picked: Sequence[int]) -> list[T]:
    """As many of them as were picked, each once."""
    return [many[i] for i in dict.fromkeys(one % len(many) for one in picked)] if many else []


class DeliveryMachine(RuleBasedStateMachine):
    """Rules take a step on the server and in the model; what the server answers must be what the model says."""

    place: ClassVar[Place]
    met: ClassVar[Counter[str]]
    """How often each verdict and outcome came up."""

    @initialize(groups=st.sampled_from([1, 1, 2]), dedup=st.booleans(), full=st.booleans(), compact=st.booleans())
    def begin(self, groups: int, dedup: bool, full: bool, compact: bool) -> None:
        self.runner = asyncio.Runner()
        door, client = self.place.open()
        self.rig = Rig(door, client, GROUPS[:groups], dedup=dedup, full=full, compact=compact)
        self.run(self.rig.declare())
        self.dedup, self.full = dedup, full
        self.stream: list[Entry] = []
        self.models = {group: GroupModel(self.stream) for group in self.rig.parts}
        self.witnesses = {group: Witness() for group in self.rig.parts}
        self.hands = [Hands(group, n) for group in self.rig.parts for n in range(WORKERS)]
        self.confirmed: set[str] = set()
        self.published: dict[str, int] = {}
        """Event id -> the number in its payload; without the events that handlers emitted."""
        self.due: set[tuple[str, str]] = set()
        """Group and event of the retries whose time has come."""
        self.born = 0
        self.publish([0, 1, 2], other=False, twice=False)

    def who(self, has: str) -> list[Hands]:
        """The workers that have deliveries: "read", "running", "unanswered", or "all" of them."""
        return [hands for hands in self.hands if getattr(hands, has)]

    def group(self, pick: int) -> str:
        return chosen(list(self.models), [pick])[0]

    def run(self, work: Coroutine[Any, Any, T], *, twice: bool = False) -> T:
        self.rig.resending.twice = twice
        try:
            return self.runner.run(work)
        finally:
            self.rig.resending.twice = False

    def teardown(self) -> None:
        if hasattr(self, "rig"):
            try:
                assert_no_stray_keys(self.rig.client)
            finally:
                self.runner.run(self.rig.close())
                self.runner.close()

    # -- publishing ---------------------------------------------------------------------------------------------------

    @rule(numbers=st.lists(st.integers(0, 4), min_size=1, max_size=3), other=st.booleans(), twice=st.booleans())
    def publish(self, numbers: list[int], other: bool, twice: bool) -> None:
        """Events; a number that was there before makes a copy of that event, or another payload under its id."""
        contents = [number + 100 * other for number in numbers]
        messages = [
            made(content, self.rig.topic, event_id=f"e{number}")
            for number, content in zip(numbers, contents, strict=True)
        ]
        self._publish(messages, contents, twice)

    def _publish(self, messages: list[Any], numbers: list[int], twice: bool) -> None:
        answers = self.run(self.rig.publisher.send(self.rig.topic, messages), twice=twice)
        for message, number, answer in zip(messages, numbers, answers, strict=True):
            known = self.published.get(message.id) if self.dedup else None
            if known is not None and known != number:
                assert isinstance(answer, IdempotencyConflict)
            elif known is not None:
                assert isinstance(answer, Sent)
                assert answer.duplicate
            elif self.full and len(self.stream) >= TOPIC_LEN:
                assert isinstance(answer, TopicFull)
            else:
                assert isinstance(answer, Sent)
                assert not answer.duplicate
                self.published[message.id] = number
                self._added(message.id, answer.position.entry_id)

    def _added(self, event_id: str, entry_id: str = "") -> None:
        entry = Entry(event_id, id=entry_id)
        self.confirmed.add(event_id)
        self.stream.append(entry)
        for model in self.models.values():
            model.unread.append(entry)

    # -- delivery -----------------------------------------------------------------------------------------------------

    @precondition(lambda self: any(model.unread or model.unread_again for model in self.models.values()))
    @rule(who=picks, count=counts)
    def read(self, who: int, count: int) -> None:
        """Fetched ahead: it may lie there for long."""
        self._read(chosen(self.hands, [who])[0], count)

    @precondition(lambda self: any(model.unread or model.unread_again for model in self.models.values()))
    @rule(who=picks, count=counts, twice=st.booleans())
    def read_and_claim(self, who: int, count: int, twice: bool) -> None:
        hands = chosen(self.hands, [who])[0]
        self._read(hands, count)
        self._claim(hands, list(hands.read.values()), suspects=False, twice=twice)

    def _read(self, hands: Hands, count: int) -> None:
        wanted = self.models[hands.group].read(hands.name, count)
        self._received(hands, self.run(self.rig.parts[hands.group].take(hands.name, count)), wanted)

    @precondition(lambda self: any(model.pending for model in self.models.values()))
    @rule(who=picks, count=counts, claims=st.booleans())
    def take_over(self, who: int, count: int, claims: bool) -> None:
        """Reclaim, also from the living: an entry may be in many hands."""
        hands = chosen(self.hands, [who])[0]
        wanted = self.models[hands.group].take_over(hands.name, count)
        found = self.run(self.rig.parts[hands.group].take_over(hands.name, count=count))
        self._received(hands, found, wanted)
        if claims and hands.read:
            self._claim(hands, list(hands.read.values()), suspects=True, twice=False)

    def _received(self, hands: Hands, deliveries: list[Delivery], wanted: list[Entry]) -> None:
        assert [Entry(d.event_id, d.again, d.attempts, d.entry_id) for d in deliveries] == wanted
        hands.read |= {d.ref: d for d in deliveries if d.ref not in hands.all}

    @precondition(somebody("read"))
    @rule(who=picks, picked=some, suspects=st.booleans(), twice=st.booleans())
    def claim(self, who: int, picked: list[int], suspects: bool, twice: bool) -> None:
        hands = chosen(self.who("read"), [who])[0]
        self._claim(hands, chosen(list(hands.read.values()), picked), suspects=suspects, twice=twice)

    def _claim(self, hands: Hands, deliveries: list[Delivery], *, suspects: bool, twice: bool) -> None:
        group, part = hands.group, self.rig.parts[hands.group]
        if not deliveries:
            return
        asking = part.claim(deliveries, hands.name, lease_ms=LEASE_MS, suspects=suspects)
        answers = self.run(asking, twice=twice)
        for delivery, (verdict, number) in zip(deliveries, answers, strict=True):
            assert verdict != "BUSY" or 0 < number <= LEASE_MS
            wanted = self.models[group].claim(hands.name, _entry(delivery), suspects=suspects)
            assert (verdict, 0 if verdict == "BUSY" else number) == wanted
            self.met[verdict] += 1
            if verdict == "RUN":
                self.witnesses[group].begins(hands.name, delivery.event_id)
                hands.running[delivery.ref] = hands.read.pop(delivery.ref)
            elif verdict == "DUPLICATE":
                hands.copies[delivery.ref] = hands.read.pop(delivery.ref)

    def held(self) -> list[tuple[str, str, Held]]:
        """Group, event and claim of each that runs, or would if its worker lived."""
        every = [(group, *one) for group, model in self.models.items() for one in sorted(model.states.items())]
        return [(group, event_id, state) for group, event_id, state in every if isinstance(state, Held)]

    @precondition(lambda self: self.held())
    @rule(pick=picks)
    def lease_runs_out(self, pick: int) -> None:
        """Its worker hangs, and believes that it holds it, or is gone."""
        group, event_id, held = chosen(self.held(), [pick])[0]
        self.rig.parts[group].expire(event_id)
        self.models[group].run_out(event_id, ran_out=True)
        if held.worker in self.witnesses[group].running.get(event_id, ()):
            self.witnesses[group].lease(held.worker, event_id, holds=False)

    @precondition(somebody("running"))
    @rule(who=picks)
    def renew(self, who: int) -> None:
        hands = chosen(self.who("running"), [who])[0]
        group, model = hands.group, self.models[hands.group]
        lost = self.rig.renew(group, hands.name, list(hands.running.values()))
        for ref, delivery in list(hands.running.items()):
            held = model.holds(hands.name, _entry(delivery))
            assert (ref in lost) != held
            if held:
                model.run_out(delivery.event_id, ran_out=False)
                self.witnesses[group].lease(hands.name, delivery.event_id, holds=True)
                model.pending[ref] = (model.pending[ref][0], hands.name)
            else:
                self.witnesses[group].stops(hands.name, delivery.event_id)
                hands.forget(ref)

    @precondition(somebody("all"))
    @rule(who=picks)
    def crash(self, who: int) -> None:
        """The process is gone, and another one, of another name, takes its place."""
        gone = chosen(self.who("all"), [who])[0]
        for delivery in gone.running.values():
            self.witnesses[gone.group].stops(gone.name, delivery.event_id)
        self.born += 1
        self.hands[self.hands.index(gone)] = Hands(gone.group, gone.n, self.born)

    # -- outcomes -----------------------------------------------------------------------------------------------------

    @precondition(lambda self: any(model.unread or model.unread_again for model in self.models.values()))
    @rule(who=picks, count=counts, kinds=kinds)
    def work(self, who: int, count: int, kinds: list[str]) -> None:
        """As a worker does that nothing disturbs."""
        hands = chosen(self.hands, [who])[0]
        self._read(hands, count)
        self._claim(hands, list(hands.read.values()), suspects=False, twice=False)
        self._settle(hands, list(hands.running.values()), kinds, "comes")

    @precondition(somebody("all"))
    @rule(who=picks, picked=some, kinds=kinds, reply=st.sampled_from(["comes", "is lost once", "is lost"]))
    def settle(self, who: int, picked: list[int], kinds: list[str], reply: str) -> None:
        """Outcomes of what runs; copies are acknowledged, and what never ran is handed back."""
        hands = chosen(self.who("all"), [who])[0]
        self._settle(hands, chosen(list(hands.all.values()), picked), kinds, reply)

    def _settle(self, hands: Hands, deliveries: list[Delivery], kinds: list[str], reply: str) -> None:
        model, part = self.models[hands.group], self.rig.parts[hands.group]
        told = [hands.outcome(self.rig, *one) for one in zip(deliveries, itertools.cycle(kinds))]
        if not told:
            return
        answers = self.run(part.settle([one for one, _ in told], hands.name))
        for (settlement, kind), counts in zip(told, answers, strict=True):
            entry = _entry(settlement.delivery)
            assert model.settle(hands.name, entry, kind) == counts
            self.met[kind if counts else "lost"] += 1
            self._settled(hands, settlement, kind, counts=counts)
        if reply == "is lost once":
            assert self.run(part.settle([one for one, _ in told], hands.name, resent=True)) == answers
        elif reply == "is lost":
            states = {one.delivery.event_id: model.state(one.delivery.event_id) for one, _ in told}
            hands.unanswered.append(([one for one, _ in told], answers, states))

    def _settled(self, hands: Hands, settlement: Settlement, kind: str, *, counts: bool) -> None:
        """What follows from the answer, and that the worker forgets the delivery."""
        group, event_id = hands.group, settlement.delivery.event_id
        if counts and kind == "retry" and settlement.number == 0:
            self.due.add((group, event_id))
        if kind not in ("ack", "return"):
            self.witnesses[group].stops(hands.name, event_id)
        if counts and kind in ("done", "dead"):
            self.witnesses[group].ends(event_id, kind)
        if counts and kind == "done" and settlement.parts:
            self._added(f"{event_id}>{group}")
        hands.forget(settlement.delivery.ref)

    @precondition(somebody("unanswered"))
    @rule(who=picks)
    def send_again(self, who: int) -> None:
        """What had no answer, however long ago: nothing changes, which is compared after this step as after any."""
        hands = chosen(self.who("unanswered"), [who])[0]
        group, model = hands.group, self.models[hands.group]
        for settlements, answers, states in hands.unanswered:
            found = self.run(self.rig.parts[group].settle(settlements, hands.name, resent=True))
            for settlement, answer, before in zip(settlements, found, answers, strict=True):
                event_id = settlement.delivery.event_id
                assert answer == before or states[event_id] != model.state(event_id)
        hands.unanswered.clear()

    # -- retries, replays, retention ----------------------------------------------------------------------------------

    def retrying(self) -> list[tuple[str, str]]:
        return [(group, event_id) for group, model in self.models.items() for event_id in sorted(model.retries)]

    @precondition(lambda self: self.retrying())
    @rule(pick=picks, is_due=st.booleans(), twice=st.booleans())
    def promote(self, pick: int, is_due: bool, twice: bool) -> None:
        """What is due comes back; the time of one retry may just have come."""
        group, event_id = chosen(self.retrying(), [pick])[0]
        if is_due:
            self.rig.make_due(group, event_id)
            self.due.add((group, event_id))
        model, before = self.models[group], self.rig.again(group)
        moved, _ = self.run(promote(self.rig.door, self.rig.parts[group].keys, group), twice=twice)
        new = [entry.event_id for entry in self.rig.again(group)[len(before) :]]
        assert len(new) == moved or twice
        assert set(new) == {event_id for of, event_id in self.due if of == group}
        self.due -= {(group, event_id) for event_id in new}
        model.promote(new)

    def letters(self) -> list[tuple[str, Letter]]:
        return [(group, letter) for group, model in self.models.items() for letter in model.letters]

    @precondition(lambda self: self.letters())
    @rule(pick=picks, twice=st.booleans())
    def replay_letter(self, pick: int, twice: bool) -> None:
        group, letter = chosen(self.letters(), [pick])[0]
        wanted = self.models[group].replay_letter(letter)
        found = self.run(self._replay_letter(group, letter), twice=twice)
        if wanted == "REPLAYED":
            self.witnesses[group].replayed(letter.event_id)
            assert found == ("GONE" if twice else wanted)
        else:
            assert found == wanted

    async def _replay_letter(self, group: str, letter: Letter) -> str:
        keys = self.rig.parts[group].keys
        fields = await dead_letters.read(self.rig.door, keys, group, letter.id)
        parsed = parse_dead_letter(fields or [])
        assert parsed is not None
        outcome = await dead_letters.replay(
            self.rig.door, keys, group=group, dead_id=letter.id, event_id=letter.event_id, letter=parsed,
            window_ms=WINDOW_S * 1000,
        )  # fmt: skip
        return outcome.name

    @precondition(lambda self: any(DONE in model.states.values() for model in self.models.values()))
    @rule(pick=picks, twice=st.booleans())
    def replay_range(self, pick: int, twice: bool) -> None:
        """All that the stream still holds."""
        group = self.group(pick)
        fates = self.models[group].replay_range()
        for event_id in fates.get("replayed", ()):
            self.witnesses[group].replayed(event_id)
        totals = self.run(self._replay_range(group), twice=twice)
        assert {name: getattr(totals, name) for name in fates} == {name: len(ids) for name, ids in fates.items()}
        assert totals.entries == len(self.stream)

    async def _replay_range(self, group: str) -> Any:
        replay = Replay(self.rig.door, Keys(), Asked(topic=STREAM, start=FIRST), group, window_s=WINDOW_S)
        await replay.check()
        return await replay.run(Pace(), lambda n: None)

    @precondition(lambda self: len(self.stream) > 4)
    @rule(max_len=st.integers(1, 8), twice=st.booleans())
    def trim(self, max_len: int, twice: bool) -> None:
        settings = RetentionSettings(max_len=max_len, max_age_s=0)
        self.run(retention.trim_once(self.rig.door, Keys(), self.rig.topic, settings), twice=twice)
        needed = [first for model in self.models.values() if (first := model.needs_from()) is not None]
        while len(self.stream) > max_len and all(self.stream[0].order < first for first in needed):
            del self.stream[0]

    # -- after every step ---------------------------------------------------------------------------------------------

    @invariant()
    def holds(self) -> None:
        """Every key is as the model says, and every confirmed event is accounted for."""
        if not hasattr(self, "rig"):
            return
        _name(self.stream, self.rig.stream())
        assert self.rig.stream() == self.stream
        ids = sorted(self.confirmed)
        for group, model in self.models.items():
            _name(model.again, self.rig.again(group))
            for letter, (letter_id, _, _) in zip(model.letters, self.rig.letters(group), strict=False):
                letter.id = letter.id or letter_id
            assert self.rig.found(group, ids) == expected(model, ids)
            account = assert_nothing_lost(self.rig.client, STREAM, group, self.confirmed)
            assert account.done == {event_id for event_id in self.confirmed if model.state(event_id) == DONE}
            assert account.marked_dead == {one for one in self.confirmed if model.state(one) == DEAD}


def _entry(delivery: Delivery) -> Entry:
    return Entry(delivery.event_id, delivery.again, delivery.attempts, delivery.entry_id)


def _name(expected_: list[Entry], found: list[Entry]) -> None:
    """Give entries that have just come the ids that the server gave them."""
    for entry, named in zip(expected_, found, strict=False):
        entry.id = entry.id or named.id
