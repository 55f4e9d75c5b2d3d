"""Servers that speak TLS, under certificates of an authority made for the test run."""

import asyncio
import ssl
import subprocess
import threading
from collections.abc import Callable
from datetime import datetime
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

import trustme
from msgspec import Struct

from tests.helpers.servers import HOST, RedisProc, available_kinds, free_port, server_binary

Servers = Callable[..., RedisProc]


class Certificate(Struct, frozen=True):
    """What a server shows, in PEM: the chain and the key."""

    chain: bytes
    key: bytes

    @classmethod
    def issued(cls, name: str, **validity: datetime) -> Self:
        """For a host, by the authority of the test run."""
        leaf = AUTHORITY.issue_cert(name, **validity)  # type: ignore[arg-type]
        return cls(leaf.cert_chain_pems[0].bytes(), leaf.private_key_pem.bytes())

    @classmethod
    def self_signed(cls) -> Self:
        authority = trustme.CA()
        return cls(authority.cert_pem.bytes(), authority.private_key_pem.bytes())

    def write(self, directory: Path) -> tuple[Path, Path]:
        """The files of chain and key; those of the one before are gone."""
        chain, key = directory / "cert.pem", directory / "key.pem"
        chain.write_bytes(self.chain)
        key.write_bytes(self.key)
        return chain, key


class TlsFront:
    """TLS in front of a server that has none: what arrives on `port` goes on to the server in the clear.

    Its answers name other servers as `named` says: plain port to port under TLS, of as many digits.
    """

    def __init__(self, server: RedisProc, context: ssl.SSLContext) -> None:
        self.named: dict[int, int] = {}
        self.port = 0
        self._upstream = (HOST, server.port)
        self._context = context
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
                [
                    asyncio.ensure_future(_pump(reader, to_server, {})),
                    asyncio.ensure_future(_pump(from_server, writer, self.named)),
                ],
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


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter, named: dict[int, int]) -> None:
    while chunk := await source.read(65_536):
        for plain, port in named.items():
            chunk = chunk.replace(b"%d" % plain, b"%d" % port)
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


def server_context(certificate: Certificate, directory: Path, *, client_certificates: bool = False) -> ssl.SSLContext:
    """What a server under TLS works with; `client_certificates` asks for those of the authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate.write(directory))
    if client_certificates:
        context.verify_mode = ssl.CERT_REQUIRED
        AUTHORITY.configure_trust(context)
    return context


class Tls:
    """Servers that speak TLS under given certificates."""

    def __init__(self, own_server: Servers, where: str, directory: Path) -> None:
        self._own_server = own_server
        self._where = where
        self._directory = directory
        self._fronts: list[TlsFront] = []
        self._context: ssl.SSLContext | None = None
        self.ca_file = str(directory / "ca.pem")
        AUTHORITY.cert_pem.write_to_path(self.ca_file)

    def port(self, name: str) -> int:
        """The port of a server whose certificate is for `name`."""
        return self.serve(Certificate.issued(name))[1]

    def serve(self, certificate: Certificate, *, client_certificates: bool = False) -> tuple[RedisProc, int]:
        """A server and its port under TLS."""
        if self._where == "front":
            self._context = server_context(certificate, self._directory, client_certificates=client_certificates)
            server = self._own_server()
            self._fronts.append(TlsFront(server, self._context).__enter__())
            return server, self._fronts[-1].port
        chain, key = certificate.write(self._directory)
        conf = {"tls-cert-file": str(chain), "tls-key-file": str(key), "tls-ca-cert-file": self.ca_file}
        conf |= {"tls-port": str(free_port()), "tls-auth-clients": "yes" if client_certificates else "no"}
        return self._own_server(kind=self._where, conf=conf), int(conf["tls-port"])

    def renew(self, server: RedisProc, certificate: Certificate) -> None:
        """The server goes on under another certificate; connections that stand stay as they are."""
        chain, key = certificate.write(self._directory)
        if self._context is not None:
            self._context.load_cert_chain(chain, key)
            return
        with server.client() as client:
            client.config_set("tls-cert-file", str(chain), "tls-key-file", str(key))

    def close(self) -> None:
        for front in self._fronts:
            front.__exit__(None, None, None)
