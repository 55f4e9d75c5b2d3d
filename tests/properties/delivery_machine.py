"""Delivery under random steps: workers that crash, hang, wake and send everything twice; retries and replays."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from streamlib.keys import Keys
from streamlib.ops.pace import Pace
from streamlib.ops.ranges import FIRST, Asked
from streamlib.ops.replay import Replay
from streamlib.redisio import dead_letters
from streamlib.redisio.dead_letter import parse_dead_letter
from streamlib.redisio.delivery import Delivery
from streamlib.redisio.retries import promote
from streamlib.redisio.settler import Settlement
from tests.helpers.delivering import STREAM
from tests.properties.delivery_hands import KINDS, Hands
from tests.properties.delivery_model import DONE, Entry, Held, Letter
from tests.properties.delivery_rig import LEASE_MS, WINDOW_S
from tests.properties.running import chosen, picks
from tests.properties.topic_machine import TopicMachine

T = TypeVar("T")

some = st.lists(picks, min_size=1, max_size=4)
kinds = st.lists(st.sampled_from(KINDS), min_size=1, max_size=4)
counts = st.sampled_from([1, 2, 500])


def somebody(has: str) -> Callable[[DeliveryMachine], bool]:
    """As a precondition: some worker has such deliveries."""
    return lambda machine: bool(machine.who(has))


class DeliveryMachine(TopicMachine):
    """Two workers for each of one or two groups."""

    def who(self, has: str) -> list[Hands]:
        """The workers that have deliveries: "read", "running", "unanswered", or "all" of them."""
        return [hands for hands in self.hands if getattr(hands, has)]

    def group(self, pick: int) -> str:
        return chosen(list(self.models), [pick])[0]

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
        self._take_over(chosen(self.hands, [who])[0], count, claims=claims)

    def _take_over(self, hands: Hands, count: int, *, claims: bool) -> None:
        wanted = self.models[hands.group].take_over(hands.name, count)
        found = self.run(self.rig.parts[hands.group].take_over(hands.name, count=count))
        self._received(hands, found, wanted)
        if claims and hands.read:
            self._claim(hands, list(hands.read.values()), suspects=True, twice=False)

    def _received(self, hands: Hands, deliveries: list[Delivery], wanted: list[Entry]) -> None:
        assert [Entry(d.event_id, d.again, d.attempts, d.entry_id) for d in deliveries] == wanted
        hands.read |= {d.ref: d for d in deliveries if d.ref not in hands.known}

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
        self._run_out(*chosen(self.held(), [pick])[0])

    @precondition(somebody("running"))
    @rule(who=picks, kinds=kinds, wakes=st.booleans())
    def freezes(self, who: int, kinds: list[str], wakes: bool) -> None:
        """A worker hangs for so long that another one runs all that it held; it wakes at once, or in a later step."""
        frozen = chosen(self.who("running"), [who])[0]
        for group, event_id, held in self.held():
            if held.worker == frozen.name:
                self._run_out(group, event_id, held)
        others = [hands for hands in self.hands if hands.group == frozen.group and hands is not frozen]
        self._take_over(chosen(others, [who])[0], 500, claims=True)
        if wakes:
            self._settle(frozen, list(frozen.running.values()), kinds, "comes")

    def _run_out(self, group: str, event_id: str, held: Held) -> None:
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
            found = self.run(part.settle([one for one, _ in told], hands.name, resent=True))
            assert all(second for first, second in zip(answers, found, strict=True) if first)
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
        """What had no answer, however long ago: nothing changes, which is compared after this step as after any.

        What was lost may be told to count now, where another worker has done the same: Redis cannot tell who did.
        """
        hands = chosen(self.who("unanswered"), [who])[0]
        group, model = hands.group, self.models[hands.group]
        for settlements, answers, states in hands.unanswered:
            found = self.run(self.rig.parts[group].settle(settlements, hands.name, resent=True))
            for settlement, answer, before in zip(settlements, found, answers, strict=True):
                event_id = settlement.delivery.event_id
                assert answer or not before or states[event_id] != model.state(event_id)
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
            self.due.add((group, event_id))
        for one in sorted(self.due):  # all at one time, so that they come in the same order whenever this is run again
            self.rig.make_due(*one)
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


def _entry(delivery: Delivery) -> Entry:
    return Entry(delivery.event_id, delivery.again, delivery.attempts, delivery.entry_id)
