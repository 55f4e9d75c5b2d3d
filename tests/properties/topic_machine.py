"""A topic of one partition under random steps: published to and trimmed; after each step it is as its model says."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import Any, ClassVar, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streamlib.errors import IdempotencyConflict, TopicFull
from streamlib.keys import Keys
from streamlib.redisio import retention
from streamlib.redisio.publisher import Sent
from streamlib.settings import RetentionSettings
from tests.helpers.delivering import STREAM
from tests.helpers.oracle import assert_no_stray_keys, assert_nothing_lost
from tests.helpers.publishing import made
from tests.properties.delivery_hands import Hands
from tests.properties.delivery_model import DEAD, DONE, Entry, GroupModel, Witness
from tests.properties.delivery_rig import GROUPS, TOPIC_LEN, Rig, expected
from tests.properties.running import Place, chosen, picks

T = TypeVar("T")

WORKERS = 2


class TopicMachine(RuleBasedStateMachine):
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

    @precondition(lambda self: self.rig.resending.sent)
    @rule(pick=picks)
    def an_old_batch_arrives(self, pick: int) -> None:
        """However late: nothing changes, which is compared after this step as after any."""
        self.run(self.rig.door.execute(*chosen(self.rig.resending.sent, [pick])[0]))

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


def _name(expected_: list[Entry], found: list[Entry]) -> None:
    """Give entries that have just come the ids that the server gave them."""
    for entry, named in zip(expected_, found, strict=False):
        entry.id = entry.id or named.id
