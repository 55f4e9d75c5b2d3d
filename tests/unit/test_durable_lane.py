"""A confirmation behind sentinels counts only if no replica has gone that may be the next primary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from streamlib.redisio.connection import Lane
from streamlib.redisio.durability import DurableLane


class Server:
    """A primary as the commands of a lane see it: these replicas are connected, so many confirm."""

    def __init__(self, connected: int, confirming: int) -> None:
        self.ports = list(range(connected))
        self.confirming = confirming
        self.name = b""
        self.waits: list[int] = []

    async def execute_command(self, *command: Any) -> Any:
        if command[:2] == ("CLIENT", "SETNAME"):
            self.name = command[2].encode()
        elif command[:2] == ("CLIENT", "GETNAME"):
            return self.name
        elif command[0] == "WAIT":
            self.waits.append(command[1])
            return self.confirming
        elif command[0] == "ROLE":
            return [b"master", 1, [[b"127.0.0.1", b"%d" % port, b"1"] for port in self.ports]]
        return None

    async def aclose(self) -> None: ...


class Sentinels:
    def __init__(self, answers: Sequence[bool]) -> None:
        self.answers = list(answers)

    async def settled(self) -> bool:
        return self.answers.pop(0)


def a_lane(server: Server, sentinels: Sentinels | None) -> DurableLane:
    settled = sentinels.settled if sentinels is not None else None
    return DurableLane(Lane(server), "replicas:1", 1_000, settled=settled)


async def test_all_connected_replicas_are_waited_for() -> None:
    server = Server(connected=2, confirming=2)
    lane = a_lane(server, Sentinels([True]))
    await lane.begin()
    assert await lane.confirm() == ""
    assert server.waits == [2]


async def test_a_replica_that_left_may_be_the_next_primary() -> None:
    server = Server(connected=2, confirming=2)
    lane = a_lane(server, Sentinels([True, False]))
    await lane.begin()
    server.ports, server.confirming = [1], 1
    with pytest.raises(ConnectionResetError, match="another server the primary"):
        await lane.confirm()


async def test_a_replica_that_came_and_is_promoted_at_once_is_missed_though_as_many_confirm() -> None:
    server = Server(connected=1, confirming=1)
    lane = a_lane(server, Sentinels([True, False]))
    await lane.begin()
    server.ports = [0, 1]
    assert await lane.confirm() == ""
    assert server.waits == [1, 2], "who has come is waited for, too"
    await lane.begin()
    server.ports = [0]
    with pytest.raises(ConnectionResetError, match="another server the primary"):
        await lane.confirm()


async def test_another_replica_in_the_place_of_one_that_left_hides_nothing() -> None:
    server = Server(connected=1, confirming=1)
    lane = a_lane(server, Sentinels([True, False]))
    await lane.begin()
    server.ports = [7]
    with pytest.raises(ConnectionResetError, match="another server the primary"):
        await lane.confirm()


async def test_a_replica_that_is_just_gone_is_not_waited_for_again() -> None:
    server = Server(connected=2, confirming=2)
    lane = a_lane(server, Sentinels([True, True]))
    await lane.begin()
    server.ports, server.confirming = [1], 1
    assert await lane.confirm() == ""
    assert await lane.confirm() == ""
    assert server.waits == [2, 1]


async def test_a_slow_replica_holds_up_nothing_that_others_confirm() -> None:
    server = Server(connected=2, confirming=1)
    lane = a_lane(server, Sentinels([True]))
    await lane.begin()
    assert await lane.confirm() == ""


async def test_a_connection_made_in_the_middle_of_a_failover_confirms_nothing() -> None:
    server = Server(connected=1, confirming=1)
    lane = a_lane(server, Sentinels([False, False, True]))
    for _ in range(2):
        with pytest.raises(ConnectionResetError):
            await lane.begin()
    await lane.begin()
    assert await lane.confirm() == ""


async def test_without_sentinels_as_many_as_were_asked_for_are_enough() -> None:
    server = Server(connected=2, confirming=1)
    lane = a_lane(server, None)
    await lane.begin()
    assert await lane.confirm() == ""
    assert server.waits == [1]


async def test_too_few_confirmations_are_told() -> None:
    server = Server(connected=2, confirming=0)
    lane = a_lane(server, Sentinels([True]))
    await lane.begin()
    assert "0 of 1 replicas confirmed it" in await lane.confirm()
    assert server.waits == [2, 1], "first all for a moment, then as many as were asked for"
