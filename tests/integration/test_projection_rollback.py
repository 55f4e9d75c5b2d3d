"""A failover may take back the last commits while the stream keeps its entries: they are made again, unasked."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import pytest
import redis

from streamlib.message import Position
from tests.helpers.projecting import TOPIC, Moved, Opened, Rig
from tests.helpers.waiting import eventually


def accounts_opened(rig: Rig, client: redis.Redis, numbers: Iterable[int]) -> Position:
    """An account for each number, with one move; where the last one lies."""
    for n in numbers:
        rig.publish(client, Opened(account=f"a{n}", owner="o"))
        last = rig.publish(client, Moved(account=f"a{n}", amount=Decimal(n)))
    return last


def committed(client: Any) -> dict[bytes, bytes]:
    """What commits of the view have written, serialized."""
    names = [name for part in ("view", "idem") for name in client.scan_iter(match="{" + TOPIC + "}:" + part + ":*")]
    return {name: client.dump(name) for name in names}


def roll_back(client: Any, before: dict[bytes, bytes]) -> None:
    with client.pipeline(transaction=True) as together:
        for name in committed(client):
            together.delete(name)
        for name, value in before.items():
            together.restore(name, 600_000 if b":idem:" in name else 0, value)
        together.execute()


@pytest.mark.row(49, 74)
async def test_commits_that_were_taken_back_are_made_again_without_a_new_event(
    redis_url: str, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    async with Rig(redis_url) as rig, rig.running() as (projector,):
        await rig.view.wait_for(accounts_opened(rig, client, range(10)), timeout=10)
        before = committed(client)
        last = accounts_opened(rig, client, range(10, 20))
        await rig.view.wait_for(last, timeout=10)
        await eventually(lambda: projector.idle, what="it waits for what comes next")
        roll_back(client, before)
        await rig.view.wait_for(last, timeout=10)
        assert await rig.stored(client) == rig.recomputed(client)
        assert len(await rig.stored(client)) == 20
    assert "source_rolled_back" in caplog.messages
