"""The queues of an ordered group: whose turn it is, among the keys of a partition and among partitions."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from streamlib.keys import Keys
from streamlib.redisio.delivery import Delivery
from streamlib.redisio.reader import Received
from streamlib.redisio.settler import done, retry
from streamlib.worker.key_inbox import KeyInbox
from streamlib.worker.work import Ended

EPOCH, PARTITIONS = 7, 3


def entry(partition: int, n: int, key: str, *, epoch: int = EPOCH) -> Received:
    delivery = Delivery(
        keys=Keys().stream("moves", partition, PARTITIONS),
        partition=partition,
        again=False,
        entry_id=f"{n}-0",
        origin_id=f"{n}-0",
        event_id=f"e-{n}",
        fields=[b"data", b"{}"],
        how="new",
        epoch=epoch,
        key=key,
    )
    return Received(delivery, None)


@pytest.fixture
def inbox() -> Iterator[KeyInbox]:
    found = KeyInbox(lambda: None, lambda partition: True)
    for partition in range(PARTITIONS):
        found.open(partition, EPOCH, {})
    yield found
    for partition in range(PARTITIONS):
        found.close(partition)


def take(inbox: KeyInbox, room: int) -> list[Delivery]:
    """What is given away when there is room for so many."""
    taken: list[Delivery] = []

    def wanted(received: Received) -> bool:
        if len(taken) == room:
            return False
        taken.append(received.delivery)
        return True

    inbox.take(wanted, set())
    return taken


def test_a_partition_with_a_backlog_leaves_the_others_their_turn(inbox: KeyInbox) -> None:
    for n in range(60):
        inbox.add(entry(0, n, f"a{n}"))
    for n in range(3):
        inbox.add(entry(1, n, f"b{n}"))
        inbox.add(entry(2, n, f"c{n}"))
    turns = [one.partition for _ in range(12) for one in take(inbox, 1)]
    assert turns == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 0, 0]


def test_keys_of_a_partition_take_turns(inbox: KeyInbox) -> None:
    for n in range(12):
        inbox.add(entry(0, n, f"a{n % 3}"))
    turns: list[int] = []
    for _ in range(12):
        (one,) = take(inbox, 1)
        turns.append(int(one.entry_id.partition("-")[0]))
        inbox.settled(Ended(done(one), "ok"), True)
    assert turns == list(range(12))


async def test_what_failed_keeps_the_turn_of_its_key_and_no_other(inbox: KeyInbox) -> None:
    for n in range(4):
        inbox.add(entry(0, n, f"a{n % 2}"))
    first, second = take(inbox, 9)
    inbox.settled(Ended(retry(first, delay_ms=60_000, attempts=1), "retry"), True)
    inbox.settled(Ended(done(second), "ok"), True)
    assert [one.entry_id for one in take(inbox, 9)] == ["3-0"]
    assert (inbox.parked, len(inbox)) == (2, 3)


def test_nothing_of_another_epoch_comes_in_or_goes_on(inbox: KeyInbox) -> None:
    inbox.add(entry(0, 1, "a", epoch=EPOCH - 1))
    assert take(inbox, 9) == []
    inbox.add(entry(0, 1, "a"))
    inbox.settled(Ended(done(entry(0, 1, "a", epoch=EPOCH - 1).delivery), "ok"), True)
    assert [one.epoch for one in take(inbox, 9)] == [EPOCH]


def test_nothing_is_given_away_of_what_is_given_up_or_in_doubt() -> None:
    fresh = {0: True, 1: False}
    inbox = KeyInbox(lambda: None, fresh.__getitem__)
    for partition in fresh:
        inbox.open(partition, EPOCH, {})
        inbox.add(entry(partition, 1, "a"))
    inbox.shut(0)
    assert take(inbox, 9) == []
    fresh[1] = True
    assert [one.partition for one in take(inbox, 9)] == [1]
