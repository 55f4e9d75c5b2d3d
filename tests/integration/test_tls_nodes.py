"""TLS behind sentinels and in a cluster: who is named by another server is verified as the one in the address is."""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.failures import CLIENT_ERRORS, ErrorClass, classify, translate
from tests.helpers.cluster import ClusterTopology
from tests.helpers.publishing import open_door
from tests.helpers.sentinel import SentinelTopology
from tests.helpers.servers import HOST, RedisProc
from tests.helpers.tls import AUTHORITY, Certificate, TlsFront, server_context

OURS, ANOTHERS = HOST, "redis.example"


class Fronts:
    """A front before each server, under a certificate for our host or for another."""

    def __init__(self, directory: Path) -> None:
        self.ca_file = str(directory / "ca.pem")
        AUTHORITY.cert_pem.write_to_path(self.ca_file)
        self._directory = directory
        self.stack = contextlib.ExitStack()

    def before(self, server: RedisProc, host: str) -> TlsFront:
        context = server_context(Certificate.issued(host), self._directory)
        return self.stack.enter_context(TlsFront(server, context))


@pytest.fixture
def fronts(tmp_path: Path) -> Iterator[Fronts]:
    made = Fronts(tmp_path)
    with made.stack:
        yield made


async def assert_refused(door: RedisDoor, *command: str) -> None:
    thread = door.sync_client()
    for sent in (door.execute(*command), asyncio.to_thread(thread.execute, *command)):
        with pytest.raises(CLIENT_ERRORS) as raised:
            await sent
        assert classify(raised.value) is ErrorClass.CONFIG, raised.value
        assert "has a certificate that we do not trust" in str(translate(raised.value, door.settings.url))
    thread.close()


async def test_sentinels_and_the_primary_that_they_name_are_verified(
    tmp_path: Path, server_kind: str, fronts: Fronts
) -> None:
    with SentinelTopology(tmp_path / "rig", kind=server_kind, replicas=0, sentinels=1) as rig:
        [primary], [sentinel] = rig.servers, rig.sentinels
        for of_sentinel, of_primary, fine in ((OURS, OURS, True), (ANOTHERS, OURS, False), (OURS, ANOTHERS, False)):
            asked = fronts.before(sentinel, of_sentinel)
            asked.named[primary.port] = fronts.before(primary, of_primary).port
            url = f"sentinel://{HOST}:{asked.port}/{rig.name}?tls=1"
            async with open_door(url, ca_file=fronts.ca_file) as door:
                if fine:
                    assert await door.execute("PING") == b"PONG"
                    thread = door.sync_client()
                    assert await asyncio.to_thread(thread.execute, "PING") == b"PONG"
                    thread.close()
                else:
                    await assert_refused(door, "PING")


async def test_every_node_of_a_cluster_is_verified(tmp_path: Path, server_kind: str, fronts: Fronts) -> None:
    with ClusterTopology(tmp_path / "rig", kind=server_kind, primaries=2) as rig:
        keys = {rig.node_of(key).port: key for key in ("a", "b", "c", "d", "e")}
        first, second = rig.nodes
        for of_second, fine in ((OURS, True), (ANOTHERS, False)):
            seed, other = fronts.before(first, OURS), fronts.before(second, of_second)
            seed.named |= {first.port: seed.port, second.port: other.port}
            async with open_door(f"cluster://{HOST}:{seed.port}?tls=1", ca_file=fronts.ca_file) as door:
                assert await door.execute("SET", keys[first.port], "1") == b"OK"
                if fine:
                    assert await door.execute("SET", keys[second.port], "1") == b"OK"
                else:
                    await assert_refused(door, "SET", keys[second.port], "1")
