"""TLS: whom we trust, whom we refuse, and what the user hears; in front of a server and, where built in, its own."""

import asyncio
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
import trustme

from streamlib.errors import RedisUnavailable
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.failures import ErrorClass, classify, translate
from tests.cli.conftest import SHOP, command_line, environment
from tests.helpers.publishing import open_door
from tests.helpers.servers import HOST, RedisProc
from tests.helpers.tls import Tls

Servers = Callable[..., RedisProc]


async def test_tls_under_an_authority_of_ones_own(tls: Tls) -> None:
    port = tls.port(HOST)
    async with open_door(f"rediss://{HOST}:{port}/0", ca_file=tls.ca_file) as door:
        assert await door.execute("SET", "k", "x" * 300_000) == b"OK"
        assert len(await door.execute("GET", "k")) == 300_000
        lane, client = door.lane(), door.sync_client()
        assert await lane.execute("PING") == client.execute("PING") == b"PONG"
        await lane.close()
        client.close()
        async with door.beside((HOST, port)) as beside:
            assert await beside.execute("PING") == b"PONG"


async def test_a_threads_connection_is_ready_whatever_the_handshake_leaves_to_be_read(tls: Tls) -> None:
    async with open_door(f"rediss://{HOST}:{tls.port(HOST)}", ca_file=tls.ca_file) as door:
        for _ in range(30):  # session tickets come when they come
            client = door.sync_client()
            assert await asyncio.to_thread(client.execute, "PING") == b"PONG"
            client.close()


async def test_a_server_beside_it_is_trusted_no_more_than_it_is(tls: Tls) -> None:
    url, other = f"rediss://{HOST}:{tls.port(HOST)}", tls.port("redis.example")
    async with open_door(url, ca_file=tls.ca_file) as door, door.beside((HOST, other)) as beside:
        with pytest.raises(redis.exceptions.ConnectionError) as raised:
            await beside.execute("PING")
    assert classify(raised.value) is ErrorClass.CONFIG


@pytest.mark.parametrize("trusted", ["another authority", "the system's"])
async def test_a_certificate_of_an_unknown_authority_is_refused(tls: Tls, tmp_path: Path, trusted: str) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    ca_file = str(other) if trusted == "another authority" else ""
    async with open_door(f"rediss://{HOST}:{tls.port(HOST)}", ca_file=ca_file) as door:
        await assert_certificate_refused(door, "unable to get local issuer certificate|self.signed certificate")


async def test_a_certificate_for_another_host_is_refused(tls: Tls) -> None:
    async with open_door(f"rediss://{HOST}:{tls.port('redis.example')}", ca_file=tls.ca_file) as door:
        await assert_certificate_refused(door, "not valid for '127.0.0.1'|IP address mismatch")


async def assert_certificate_refused(door: RedisDoor, reason: str) -> None:
    """On both kinds of client; the error says why, and what the user is told does too."""
    thread = door.sync_client()
    for refused in (door.execute("PING"), asyncio.to_thread(thread.execute, "PING")):
        with pytest.raises(redis.exceptions.ConnectionError) as raised:
            await refused
        assert classify(raised.value) is ErrorClass.CONFIG, "no retry mends it"
        found = translate(raised.value, door.settings.url)
        assert isinstance(found, RedisUnavailable)
        assert re.search(f"certificate that we do not trust: .*({reason}).*; check redis.ca_file", str(found)), found
    thread.close()


def test_a_worker_over_tls(tls: Tls, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP.replace("{partitions}", "1"))
    url = f"rediss://{HOST}:{tls.port(HOST)}/0"

    def run(command: str, ca_file: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command_line([*command.split(), "--redis", url]), cwd=tmp_path, capture_output=True, text=True, check=False,
            env=environment({"STREAMLIB_REDIS_CA_FILE": ca_file, "STREAMLIB_REDIS_RETRY_S": "30"}), timeout=60,
        )  # fmt: skip

    worked = run("run shop:app --burst --no-http", tls.ca_file)
    assert worked.returncode == 0, worked.stderr
    assert '"email"' in run("info --json", tls.ca_file).stdout
    refused = run("run shop:app --burst --no-http", "")
    assert refused.returncode == 3
    assert "check redis.ca_file" in refused.stderr
