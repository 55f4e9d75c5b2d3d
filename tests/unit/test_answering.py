"""What refused and answered scripts say of a worker: for all partitions of one server, for each of many."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
import redis.exceptions

from streamlib.errors import Fenced
from streamlib.settings import WorkerSettings
from streamlib.worker.answering import Answering
from streamlib.worker.inflight import InFlight
from streamlib.worker.renewer import Renewer

GONE = redis.exceptions.ConnectionError("the node is gone")
DENIED = redis.exceptions.NoPermissionError("NOPERM no right to evalsha")
BOTH = ("orders.0", "orders.1")


def ask(answering: Answering, stream: str, error: BaseException | None = None) -> None:
    with contextlib.suppress(type(error or GONE)), answering.at(stream):
        if error is not None:
            raise error


def refused(answering: Answering) -> list[str]:
    return [stream for stream in BOTH if answering.refuses(stream, 0)]


def test_on_one_server_an_answer_for_any_partition_counts_for_all() -> None:
    answering = Answering()
    ask(answering, "orders.0", GONE)
    assert refused(answering) == [*BOTH]
    assert not answering.refuses("orders.0", 60), "not for so long"
    ask(answering, "orders.1")
    assert refused(answering) == []
    assert answering.takes("orders.0", 60)


@pytest.mark.row(56)
def test_where_partitions_lie_apart_one_that_is_not_reached_says_nothing_of_the_others() -> None:
    answering = Answering(apart=True)
    ask(answering, "orders.0", GONE)
    assert refused(answering) == ["orders.0"]
    ask(answering, "orders.1")
    assert refused(answering) == ["orders.0"]
    assert [answering.takes(stream, 60) for stream in BOTH] == [False, True]
    ask(answering, "orders.0")
    assert refused(answering) == []


@pytest.mark.row(29)
def test_rights_are_refused_everywhere_until_anything_is_answered() -> None:
    answering = Answering(apart=True)
    ask(answering, "orders.0", DENIED)
    assert refused(answering) == [*BOTH]
    ask(answering, "orders.1")
    assert refused(answering) == []


@pytest.mark.parametrize("error", [Fenced("another owner"), redis.exceptions.ResponseError("WRONGTYPE a list")])
def test_what_concerns_one_key_only_is_an_answer(error: Exception) -> None:
    answering = Answering(apart=True)
    ask(answering, "orders.0", GONE)
    ask(answering, "orders.0", error)
    assert refused(answering) == []


def test_what_was_cancelled_is_no_answer() -> None:
    answering = Answering()
    ask(answering, "orders.0", GONE)
    ask(answering, "orders.0", asyncio.CancelledError())
    assert refused(answering) == [*BOTH]


@pytest.mark.parametrize("one_node", [True, False])
async def test_a_renewal_that_failed_counts_no_more_once_nothing_is_left_to_renew(one_node: bool) -> None:
    class Door:
        pass

    def gone(client: Any) -> None:
        raise GONE

    due: list[Any] = [("{orders.0}:owner:email", gone)]
    door: Any = Door()
    door.one_node = one_node
    renewer = Renewer(
        door, InFlight(), WorkerSettings(), consumer="c", worker_id="w", window_ms=1, owned=lambda: due,
        loop=asyncio.get_running_loop(), on_error=lambda kind, error: None,
    )  # fmt: skip
    client: Any = None
    with pytest.raises(redis.exceptions.ConnectionError):
        renewer.run_once(client)
    assert refused(renewer.answering) == ([*BOTH] if one_node else ["orders.0"])
    due.clear()
    renewer.run_once(client)
    assert refused(renewer.answering) == []
