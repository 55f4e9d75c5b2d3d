"""Servers that speak TLS, under certificates of an authority made for the test run."""

import asyncio
import ssl
import subprocess
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

import trustme

from tests.helpers.servers import HOST, RedisProc, available_kinds, free_port, server_binary

Servers = Callable[..., RedisProc]


class TlsFront:
    """TLS in front of a server that has none: what arrives on `port` goes on to the server in the clear."""

    def __init__(self, server: RedisProc, certificate: trustme.LeafCert) -> None:
        self.port = 0
        self._upstream = (HOST, server.port)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(self._context)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tls-front", daemon=True)
        self._listening: asyncio.Server | None = None

    async def _listen(self) -> None:
        self._listening = await asyncio.start_server(self._serve, HOST, 0, ssl=self._context)
        self.port = self._listening.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection(*self._upstream)
        try:
            await asyncio.wait(
                [asyncio.ensure_future(_pump(reader, to_server)), asyncio.ensure_future(_pump(from_server, writer))],
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            to_server.close()
            writer.close()

    async def _end(self) -> None:
        if self._listening is not None:
            self._listening.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while chunk := await source.read(65_536):
        target.write(chunk)
        await target.drain()


@cache
def speaks_tls(kind: str) -> bool:
    """Was this server built with TLS? Without a certificate it ends at once either way, and says why."""
    command = [str(server_binary(kind)), "--port", "0", "--tls-port", str(free_port()), "--save", ""]
    told = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False, cwd="/").stdout
    return "tls-cert-file" in told


AUTHORITY = trustme.CA()
TLS_SERVERS = ["front", *(kind for kind in available_kinds() if speaks_tls(kind))]


class Tls:
    """Servers that speak TLS under certificates for a given name."""

    def __init__(self, own_server: Servers, where: str, directory: Path) -> None:
        self._own_server = own_server
        self._where = where
        self._directory = directory
        self._fronts: list[TlsFront] = []
        self.ca_file = str(directory / "ca.pem")
        AUTHORITY.cert_pem.write_to_path(self.ca_file)

    def port(self, name: str) -> int:
        """The port of a server whose certificate is for `name`."""
        certificate = AUTHORITY.issue_cert(name)
        if self._where == "front":
            self._fronts.append(TlsFront(self._own_server(), certificate).__enter__())
            return self._fronts[-1].port
        chain, key, port = self._directory / "cert.pem", self._directory / "key.pem", free_port()
        certificate.cert_chain_pems[0].write_to_path(chain)
        certificate.private_key_pem.write_to_path(key)
        conf = {"tls-cert-file": str(chain), "tls-key-file": str(key), "tls-ca-cert-file": self.ca_file}
        self._own_server(kind=self._where, conf=conf | {"tls-port": str(port), "tls-auth-clients": "no"})
        return port

    def close(self) -> None:
        for front in self._fronts:
            front.__exit__(None, None, None)
