"""The primary behind sentinels: found by name, found again after a failover; what is set up wrongly is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from streamlib import App, Event
from streamlib.errors import ConfigError, RedisUnavailable
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.failures import CLIENT_ERRORS
from streamlib.settings import RedisSettings, Settings
from tests.helpers.publishing import open_door
from tests.helpers.sentinel import SentinelTopology
from tests.helpers.servers import HOST, RedisProc, free_port
from tests.helpers.waiting import eventually, wait_until


class Placed(Event):
    n: int


@pytest.fixture(scope="module")
def topology(server_kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelTopology]:
    with SentinelTopology(tmp_path_factory.mktemp("sentinel"), kind=server_kind) as running:
        yield running


@pytest.fixture
async def door(topology: SentinelTopology) -> AsyncIterator[RedisDoor]:
    async with open_door(topology.url) as opened:
        yield opened


async def port_of(door: RedisDoor) -> int:
    info: bytes = await door.execute("INFO", "server")
    return int(info.split(b"tcp_port:")[1].split(b"\r\n")[0])


async def test_commands_reach_the_primary_before_and_after_a_failover(
    topology: SentinelTopology, door: RedisDoor
) -> None:
    assert door.one_node
    lane, sync = door.lane(), door.sync_client()
    assert await port_of(door) == topology.primary_server().port
    await lane.execute("SET", "before", "1")
    old = topology.primary_server().port
    await asyncio.to_thread(topology.failover)

    async def written() -> bool:
        await door.execute("SET", "after", "1")
        return await port_of(door) != old

    await eventually(lambda: door.persist(written, give_up_s=20), what="the shared pool writes to the new primary")

    async def of_the_lane() -> Any:
        return await lane.execute("ROLE")

    assert (await door.persist(of_the_lane, give_up_s=20))[0] == b"master"
    await eventually(
        lambda: sync.execute("GET", "after") == b"1", what="the thread's client follows", ignore=CLIENT_ERRORS
    )
    await lane.close()
    sync.close()


# --- set up wrongly


async def refused(url: str, kind: type[Exception]) -> str:
    app = App("orders", settings=Settings(redis=RedisSettings(url=url, retry_s=0.2, timeout_s=1.0)))
    app.topic("orders", Placed)
    with pytest.raises(kind) as raised:
        await app.open()
    return str(raised.value)


async def test_a_name_that_the_sentinels_do_not_know(topology: SentinelTopology) -> None:
    said = await refused(topology.url.replace("/streams", "/orders"), ConfigError)
    assert "know no primary by the name 'orders'; they know: streams" in said


async def test_a_server_is_no_sentinel(own_server: Callable[..., RedisProc]) -> None:
    url = own_server().url.replace("redis://", "sentinel://").removesuffix("/0") + "/streams"
    assert "is no sentinel" in await refused(url, ConfigError)


async def test_no_sentinel_answers() -> None:
    said = await refused(f"sentinel://{HOST}:{free_port()}/streams", RedisUnavailable)
    assert "no sentinel answers" in said


# --- one sentinel


def by_the_first(topology: SentinelTopology) -> str:
    """A URL with two sentinels that are gone for good, and one that answers."""
    first = topology.sentinels[0]
    return f"sentinel://{HOST}:{free_port()},{HOST}:{free_port()},{HOST}:{first.port}/{topology.name}"


async def test_one_of_the_sentinels_is_enough_to_find_the_primary(topology: SentinelTopology) -> None:
    """Those that are gone for good must not keep a new process from starting."""
    topology.wait_until_whole()
    async with open_door(by_the_first(topology)) as opened:
        assert await opened.execute("PING") == b"PONG"
        assert await port_of(opened) == topology.primary_server().port


async def test_the_sentinel_that_leads_a_failover_names_the_new_primary_before_it_is_over(
    topology: SentinelTopology,
) -> None:
    """Until all replicas follow, SENTINEL MASTER tells the old address with the new epoch: that server is writable
    still, and what it takes then is lost."""
    topology.wait_until_whole()
    old = topology.primary_server()
    with topology.sentinels[0].client() as leader:

        def named_port() -> int:
            answer: Any = leader.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", topology.name)
            return int(answer[1])

        leader.execute_command("SENTINEL FAILOVER", topology.name)
        wait_until(lambda: named_port() != old.port, 20, every=0.002, what="the leader promotes another server")
        async with open_door(by_the_first(topology)) as opened:
            assert await port_of(opened) == named_port()
            with closing(opened.sync_client()) as client:
                info = client.execute("INFO", "server")
            assert f"tcp_port:{named_port()}\r\n".encode() in info


def _found_down_after(topology: SentinelTopology, ms: int) -> None:
    for watcher in topology.sentinels[1:]:
        with watcher.client() as client:
            client.execute_command("SENTINEL SET", topology.name, "down-after-milliseconds", ms)


async def test_a_sentinel_that_turns_silent_may_be_replacing_the_primary_until_the_others_find_it_down(
    topology: SentinelTopology,
) -> None:
    topology.wait_until_whole()
    async with open_door(topology.url) as opened:
        await opened.execute("PING")
        settled = opened.settled
        assert settled is not None
        await eventually(settled)
        _found_down_after(topology, 60_000)
        topology.sentinels[0].stop()
        try:
            assert not await settled()
            _found_down_after(topology, topology.down_after_ms)
            await eventually(settled, what="a host that is off keeps nobody from publishing")
        finally:
            topology.sentinels[0].cont()
            _found_down_after(topology, topology.down_after_ms)
        await eventually(settled)
        topology.sentinels[0].kill9()
        try:
            assert await settled(), "one that is gone replaces nothing, and the others are a majority"
        finally:
            topology.sentinels[0].start()
            topology.wait_until_whole()
