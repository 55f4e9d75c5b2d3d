"""Which events are claimed along with endings, and what becomes of those that were."""

from __future__ import annotations

from typing import Any, cast

import pytest

from streamlib.keys import Keys
from streamlib.redisio.delivery import Delivery
from streamlib.redisio.reader import Received
from streamlib.redisio.settler import done, retry
from streamlib.worker.key_inbox import KeyInbox
from streamlib.worker.lanes import Lanes
from streamlib.worker.successors import Successors
from streamlib.worker.suspects import Steps
from streamlib.worker.work import Ended

EPOCH = 7


def entry(n: int, key: str) -> Received:
    keys = Keys().stream("moves", 0, 1)
    event_id, entry_id = f"e-{n}", f"{n}-0"
    return Received(
        Delivery(
            keys=keys,
            partition=0,
            again=False,
            entry_id=entry_id,
            origin_id=entry_id,
            event_id=event_id,
            fields=[b"data", b"{}"],
            how="new",
            epoch=EPOCH,
            key=key,
        ),
        None,
    )


class Group:
    """One partition, one handler's lanes with so much room, and what was done with events."""

    def __init__(self, room: int = 100) -> None:
        self.fresh = self.open = True
        self.inbox = KeyInbox(lambda: None, lambda partition: self.fresh)
        self.entries = self.inbox.open(0, EPOCH, {})
        self.started: list[Delivery] = []
        self.handed_back: list[Delivery] = []
        self.strangers: set[str] = set()
        lanes = cast(Lanes, object())
        steps: Any = dict.fromkeys(Steps.__struct_fields__, _never)
        steps |= {
            "lanes_of": lambda received: None if received.delivery.ref in self.strangers else lanes,
            "leave": lambda received: None,
            "room": lambda lanes: room,
            "may_claim": lambda: self.open,
            "start": lambda received, lanes: self.started.append(received.delivery),
            "settle": self._settle,
        }
        self.successors = Successors(self.inbox, Steps(**steps))

    def _settle(self, delivery: Delivery, ended: Ended) -> None:
        assert (ended.outcome, ended.settlement.kind, ended.settlement.parts) == ("released", "hold", ())
        self.handed_back.append(delivery)

    def take(self, most: int) -> list[Ended]:
        """The endings of so many events that ran."""
        taken: list[Delivery] = []

        def wanted(received: Received) -> bool:
            if len(taken) < most:
                taken.append(received.delivery)
                return True
            return False

        self.inbox.take(wanted, set())
        return [ended(one) for one in taken]

    def refs(self, endings: list[Ended]) -> list[str | None]:
        return [one.delivery.ref if one is not None else None for one in self.successors.of(endings)]

    def settle(self, ending: Ended, successor: Received) -> None:
        """As the settling does once both are recorded."""
        self.inbox.settled(ending, True)
        self.successors.claimed(successor)


def ended(delivery: Delivery) -> Ended:
    return Ended(done(delivery), "ok")


def _never(*_: object) -> None:
    raise AssertionError("no step for a successor")


def test_the_next_event_of_each_key_follows() -> None:
    group = Group()
    for n, key in enumerate("abcabb"):
        group.inbox.add(entry(n, key))
    endings = group.take(3)
    assert group.refs(endings) == ["3-0", "4-0", None]


def test_what_starts_is_taken_until_it_has_ended() -> None:
    group = Group()
    for n in range(3):
        group.inbox.add(entry(n, "a"))
    (ending,) = group.take(1)
    (successor,) = group.successors.of([ending])
    assert successor is not None
    group.settle(ending, successor)
    assert group.started == [successor.delivery]
    assert not group.entries.quiet, "its partition is not given up while it runs"
    assert group.take(5) == [], "nothing of its key runs beside it"
    assert group.refs([ended(successor.delivery)]) == ["2-0"]


def test_keys_that_wait_for_a_claim_keep_their_room() -> None:
    group = Group(room=5)
    for n in range(4):
        group.inbox.add(entry(n, f"busy{n}"))
        group.inbox.add(entry(10 + n, f"busy{n}"))
    endings = group.take(4)
    for n in range(3):
        group.inbox.add(entry(20 + n, f"waits{n}"))
    assert group.refs(endings) == ["10-0", "11-0", None, None]


def test_what_holds_its_key_or_fails_or_needs_others_has_no_successor() -> None:
    group = Group()
    for n, key in enumerate("aabb"):
        group.inbox.add(entry(n, key))
    of_a, of_b = group.take(2)
    held = Ended(retry(of_a.settlement.delivery, delay_ms=0, attempts=1), "retry")
    group.strangers = {"3-0"}
    assert group.refs([held, of_b]) == [None, None]


@pytest.mark.parametrize("how", ["paused", "shut", "in doubt", "another epoch"])
def test_where_nothing_may_start_nothing_is_claimed(how: str) -> None:
    group = Group()
    for n in range(2):
        group.inbox.add(entry(n, "a"))
    endings = group.take(1)
    assert group.refs(endings) == ["1-0"]
    _stop(group, how)
    assert group.refs(endings) == [None]


@pytest.mark.parametrize("how", ["paused", "shut", "in doubt", "another epoch"])
def test_what_was_claimed_meanwhile_is_handed_back(how: str) -> None:
    group = Group()
    for n in range(2):
        group.inbox.add(entry(n, "a"))
    (ending,) = group.take(1)
    (successor,) = group.successors.of([ending])
    assert successor is not None
    _stop(group, how)
    group.settle(ending, successor)
    assert group.started == []
    assert group.handed_back == [successor.delivery]


def _stop(group: Group, how: str) -> None:
    if how == "paused":
        group.open = False
    elif how == "shut":
        group.inbox.shut(0)
    elif how == "in doubt":
        group.fresh = False
    else:
        group.inbox.close(0)
        group.inbox.open(0, EPOCH + 1, {})
