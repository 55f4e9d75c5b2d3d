"""Handshakes that must fail, with a message that names server, cause and way out; certificates that are renewed."""

import asyncio
import contextlib
import json
import logging
import re
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from streamlib import App
from streamlib.errors import ConfigError, RedisUnavailable
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.failures import CLIENT_ERRORS, ErrorClass, classify, translate
from streamlib.settings import RedisSettings, Settings
from tests.cli.conftest import SHOP, command_line, environment
from tests.helpers.publishing import open_door
from tests.helpers.servers import HOST
from tests.helpers.tls import AUTHORITY, Certificate, Tls, server_context


async def refused(door: RedisDoor) -> list[str]:
    """What a user is told, by the loop's client and by a thread's."""
    thread, found = door.sync_client(), []
    for ping in (door.execute("PING"), asyncio.to_thread(thread.execute, "PING")):
        with pytest.raises(CLIENT_ERRORS) as raised:
            await ping
        error = translate(raised.value, door.settings.url)
        assert isinstance(error, RedisUnavailable)
        found.append(str(error))
    thread.close()
    return found


def said(texts: list[str], port: int, words: str) -> None:
    for text in texts:
        assert re.search(rf"Redis at rediss?://{HOST}:{port}\S* .*{words}", text), text


async def test_an_expired_certificate_is_refused(tls: Tls) -> None:
    yesterday = datetime.now(UTC) - timedelta(days=1)
    old = Certificate.issued(HOST, not_before=yesterday - timedelta(days=9), not_after=yesterday)
    _, port = tls.serve(old)
    async with open_door(f"rediss://{HOST}:{port}", ca_file=tls.ca_file) as door:
        said(await refused(door), port, "that we do not trust: .*expired.*; renew it, or set the clock")


async def test_a_self_signed_certificate_is_refused(tls: Tls) -> None:
    _, port = tls.serve(Certificate.self_signed())
    async with open_door(f"rediss://{HOST}:{port}", ca_file=tls.ca_file) as door:
        said(await refused(door), port, "that we do not trust: .*self.signed.*; check redis.ca_file")


async def test_a_server_that_wants_a_certificate_of_ours_gets_it_or_is_told_of(tls: Tls, tmp_path: Path) -> None:
    _, port = tls.serve(Certificate.issued(HOST), client_certificates=True)
    async with open_door(f"rediss://{HOST}:{port}", ca_file=tls.ca_file) as door:
        said(await refused(door), port, "(wants|without) a certificate of ours.*ssl_certfile=")
    mine = tmp_path / "mine.pem"
    AUTHORITY.issue_cert("worker.example").private_key_and_cert_chain_pem.write_to_path(str(mine))
    url = f"rediss://{HOST}:{port}?ssl_certfile={mine}&ssl_keyfile={mine}"
    async with open_door(url, ca_file=tls.ca_file) as door:
        thread = door.sync_client()
        assert await door.execute("PING") == await asyncio.to_thread(thread.execute, "PING") == b"PONG"
        thread.close()


@contextlib.contextmanager
def handshakes_only(context: ssl.SSLContext) -> Iterator[int]:
    """The port of a server that tells, as OpenSSL does, why it takes no handshake; then it hangs up."""
    listening = socket.create_server((HOST, 0))

    def answer() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return  # closed
            with connection, contextlib.suppress(OSError):
                wrapped = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
                with wrapped:
                    with contextlib.suppress(ssl.SSLError):
                        wrapped.do_handshake()
                    wrapped.shutdown(socket.SHUT_WR)
                    while socket.socket.recv(wrapped, 4096):
                        """Unread bytes would turn the end into a reset, which can overtake the alert."""

    thread = threading.Thread(target=answer, name="handshakes", daemon=True)
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(5)


async def test_a_refusal_by_the_server_is_final_and_told(tmp_path: Path) -> None:
    context = server_context(Certificate.issued(HOST), tmp_path, client_certificates=True)
    AUTHORITY.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with handshakes_only(context) as port:
        async with open_door(f"rediss://{HOST}:{port}", ca_file=str(tmp_path / "ca.pem")) as door:
            with pytest.raises(CLIENT_ERRORS) as raised:
                await door.execute("PING")
    assert classify(raised.value) is ErrorClass.CONFIG, "no retry mends it"
    said([str(translate(raised.value, door.settings.url))], port, "wants a certificate of ours: .*ssl_keyfile=")


async def test_tls_older_than_1_2_is_not_spoken(tmp_path: Path) -> None:
    context = server_context(Certificate.issued(HOST), tmp_path)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="deprecated"):
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    AUTHORITY.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with handshakes_only(context) as port:
        async with open_door(f"rediss://{HOST}:{port}", ca_file=str(tmp_path / "ca.pem")) as door:
            clients: list[Any] = [door._shared, door.sync_client()._client]
            for client in clients:
                assert client.connection_pool.connection_kwargs["ssl_min_version"] is ssl.TLSVersion.TLSv1_2
            said(await refused(door), port, "do not agree on TLS: .*older than TLS 1.2")


async def test_neither_side_falls_back_to_the_clear(tls: Tls) -> None:
    """TLS to a port without it, and the other way round: an error in bounded time, and nothing was carried out."""
    server, port = tls.serve(Certificate.issued(HOST))
    started = time.monotonic()
    async with open_door(f"rediss://{HOST}:{server.port}", ca_file=tls.ca_file, timeout_s=1) as door:
        said(await refused(door), server.port, "does that port speak TLS")
    async with open_door(f"redis://{HOST}:{port}", timeout_s=1) as door:
        said(await refused(door), port, re.escape("does that port want TLS (rediss://"))
    assert time.monotonic() - started < 20, "four connections, a second each"
    with server.client() as client:
        assert "cmdstat_get" not in client.info("commandstats")


async def test_a_certificate_is_renewed_under_a_running_client(tls: Tls) -> None:
    """New connections look at the new one, and nobody is restarted."""
    server, port = tls.serve(Certificate.issued(HOST))

    async def ping_anew() -> bytes:
        with server.client() as client:
            client.client_kill_filter(_type="normal", skipme=True)
        pong: bytes = await door.persist(lambda: door.execute("PING"), give_up_s=10)
        return pong

    async with open_door(f"rediss://{HOST}:{port}", ca_file=tls.ca_file) as door:
        assert await door.execute("PING") == b"PONG"
        tls.renew(server, Certificate.issued(HOST))
        assert await ping_anew() == b"PONG"
        tls.renew(server, Certificate.issued("redis.example"))
        with pytest.raises(CLIENT_ERRORS) as raised:
            await ping_anew()
        assert "not valid for '127.0.0.1'" in str(raised.value) or "IP address mismatch" in str(raised.value)
        tls.renew(server, Certificate.issued(HOST))
        assert await door.execute("PING") == b"PONG"


@pytest.mark.parametrize(
    ("option", "text", "says"),
    [
        ("", None, "redis.ca_file.*cannot load .*absent.pem: No such file"),
        ("", "no certificate", "redis.ca_file.*cannot load .*file.pem: .*no certificate or crl found"),
        ("ssl_ca_certs", None, "ssl_ca_certs in redis.url.*cannot load .*absent.pem: No such file"),
        ("ssl_ca_path", None, "ssl_ca_path in redis.url: cannot load .*absent.pem: No such file"),
        ("ssl_certfile", "no certificate", "ssl_certfile.*cannot load .*file.pem: .*PEM"),
        ("ssl_keyfile", None, "ssl_keyfile without ssl_certfile; name the certificate too"),
    ],
)
@pytest.mark.parametrize("url", ["rediss://127.0.0.1:1", "cluster://127.0.0.1:1?tls=1"])
def test_a_file_that_cannot_be_loaded_is_named_before_anything_is_sent(
    tmp_path: Path, url: str, option: str, text: str | None, says: str
) -> None:
    path = tmp_path / ("absent.pem" if text is None else "file.pem")
    if text is not None:
        path.write_text(text)
    asked = f"{url}{'&' if '?' in url else '?'}{option}={path}" if option else url
    with pytest.raises(ConfigError, match=says):
        RedisDoor.open(RedisSettings(url=asked, ca_file="" if option else str(path)))


@pytest.mark.parametrize("option", ["ssl_cert_reqs=none", "ssl_check_hostname=0"])
async def test_who_turns_verification_off_is_warned_at_each_start(
    tls: Tls, tmp_path: Path, caplog: pytest.LogCaptureFixture, option: str
) -> None:
    _, port = tls.serve(Certificate.issued("redis.example"))
    url = f"rediss://{HOST}:{port}?{option}"
    settings = RedisSettings(url=url, ca_file=tls.ca_file, allow_eviction=True)
    with caplog.at_level(logging.WARNING):
        async with App("shop", settings=Settings(redis=settings)):
            """It opens: that is what they asked for."""
    assert [record.message for record in caplog.records] == ["tls_not_verified"]
    (tmp_path / "shop.py").write_text(SHOP.replace("{partitions}", "1"))
    own = {"STREAMLIB_REDIS_URL": url, "STREAMLIB_REDIS_CA_FILE": tls.ca_file, "STREAMLIB_REDIS_TIMEOUT_S": "20"}
    checked = subprocess.run(
        command_line(["check", "shop:app", "--json"]), cwd=tmp_path, capture_output=True, text=True, check=False,
        env=environment(own), timeout=60,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stderr
    assert "tls_not_verified" in checked.stderr
    [finding] = [one for one in json.loads(checked.stdout) if one["check"] == "tls"]
    assert finding["warning"]
    assert "leave ssl_cert_reqs and ssl_check_hostname out of redis.url" in finding["detail"]
