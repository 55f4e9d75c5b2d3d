"""Makes redis-py's clients: RESP2, replies as the server sends them, nothing resent in secret."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any, TypeVar

import redis
import redis.asyncio
import redis.asyncio.retry
import redis.backoff
import redis.retry
from redis.asyncio.connection import parse_url

from streamlib.redisio.address import Address, Host
from streamlib.redisio.packing import TcpConnection, TlsConnection, packed_by_hiredis
from streamlib.redisio.plain_client import PlainClient, PlainPool
from streamlib.redisio.tls import check_files
from streamlib.settings import RedisSettings

MAX_CONNECTIONS = 256

_Client = TypeVar("_Client", redis.Redis, redis.asyncio.Redis)


class ClientMaker:
    """Makes clients of one address's options, for the loop and for threads.

    redis-py resends any command up to 10 times by default, also one that is not safe to repeat, and cuts reads at
    5 s; both are off here.
    """

    def __init__(self, settings: RedisSettings, address: Address) -> None:
        self._url = settings.url
        self._tls = address.tls
        self._common: dict[str, Any] = {"protocol": 2, "socket_connect_timeout": settings.timeout_s}
        # With driver_info each connection sends CLIENT SETINFO twice: a right more (whose lack redis-py passes over),
        # and nothing for anybody. But under TLS the answer brings in what the handshake left to be read, session
        # tickets, which redis-py's pool for threads takes for an answer that nobody asked for.
        if not self._tls:
            self._common["driver_info"] = None
        if address.scheme != "unix":
            self._common["socket_keepalive"] = True
        if self._tls:
            # Python's own default, unless whoever built it has left the choice to OpenSSL's settings.
            self._common["ssl_min_version"] = ssl.TLSVersion.TLSv1_2
            if settings.ca_file:
                self._common["ssl_ca_certs"] = settings.ca_file
            check_files(self._common | address.options)
        self._data = address.options
        self._sentinel = address.sentinel_options

    # -- of a URL that redis-py reads itself ----------------------------------------------------------------------

    def from_url(self, timeout_s: float) -> redis.asyncio.Redis:
        options = self._options({}, timeout_s, redis.asyncio.retry.Retry)
        pool = PlainPool.from_url(self._url, max_connections=MAX_CONNECTIONS, **options)
        return _raw(packed_by_hiredis(PlainClient.from_pool(pool)))

    def from_url_sync(self, timeout_s: float) -> redis.Redis:
        return _raw(redis.Redis.from_url(self._url, **self._options({}, timeout_s, redis.retry.Retry)))

    # -- of one node ----------------------------------------------------------------------------------------------

    def node(self, host: Host, timeout_s: float) -> redis.asyncio.Redis:
        """A client of a server that holds data."""
        return self.managed(self._kind, timeout_s, host=host[0], port=host[1])

    def beside(self, host: Host, timeout_s: float) -> redis.asyncio.Redis:
        """A client of another server that holds the same data as the one that the URL names."""
        own = ("host", "port", "path", "db", "connection_class")
        login = {name: value for name, value in parse_url(self._url).items() if name not in own}
        return self.managed(self._kind, timeout_s, host=host[0], port=host[1], **login)

    def node_sync(self, host: Host, timeout_s: float) -> redis.Redis:
        kind = redis.SSLConnection if self._tls else redis.Connection
        return self.managed_sync(kind, timeout_s, host=host[0], port=host[1])

    def sentinel(self, host: Host, timeout_s: float) -> redis.asyncio.Redis:
        """A client of a sentinel, which has users of its own."""
        options = self._options(self._sentinel, timeout_s, redis.asyncio.retry.Retry)
        options["socket_connect_timeout"] = timeout_s
        pool = PlainPool(connection_class=self._kind, host=host[0], port=host[1], **options)
        return _raw(PlainClient.from_pool(pool))

    def sentinel_sync(self, host: Host, timeout_s: float) -> redis.Redis:
        options = self._options(self._sentinel, timeout_s, redis.retry.Retry)
        kind = redis.SSLConnection if self._tls else redis.Connection
        options["socket_connect_timeout"] = timeout_s
        return _raw(redis.Redis.from_pool(redis.ConnectionPool(kind, host=host[0], port=host[1], **options)))

    # -- with connections of another class ------------------------------------------------------------------------

    def managed(self, kind: type[redis.asyncio.Connection], timeout_s: float, **more: Any) -> redis.asyncio.Redis:
        """A client whose connections are of `kind`, which is given `more`."""
        options = self._options(self._data, timeout_s, redis.asyncio.retry.Retry)
        pool = PlainPool(connection_class=kind, max_connections=MAX_CONNECTIONS, **{**options, **more})
        return _raw(PlainClient.from_pool(pool))

    def managed_sync(self, kind: type[redis.Connection], timeout_s: float, **more: Any) -> redis.Redis:
        options = self._options(self._data, timeout_s, redis.retry.Retry)
        return _raw(redis.Redis.from_pool(redis.ConnectionPool(kind, **{**options, **more})))

    @property
    def tls(self) -> bool:
        return self._tls

    @property
    def _kind(self) -> type[redis.asyncio.Connection]:
        return TlsConnection if self._tls else TcpConnection

    def _options(self, login: Mapping[str, Any], timeout_s: float, retry: type[Any]) -> dict[str, Any]:
        no_retry = retry(redis.backoff.NoBackoff(), 0)
        return {**self._common, **login, "socket_timeout": timeout_s, "retry": no_retry}


def _raw(client: _Client) -> _Client:
    """Without the callbacks that turn replies into objects of other shapes."""
    client.response_callbacks.clear()
    return client


class SingleClients:
    """Clients of one server."""

    one_node = True
    settled = None

    def __init__(self, maker: ClientMaker) -> None:
        self._maker = maker

    def client(self, timeout_s: float, key: str | None = None) -> redis.asyncio.Redis:
        return self._maker.from_url(timeout_s)

    def sync_client(self, timeout_s: float) -> redis.Redis:
        return self._maker.from_url_sync(timeout_s)

    async def nodes(self, timeout_s: float) -> Mapping[str, redis.asyncio.Redis]:
        return {"": self.client(timeout_s)}

    def beside(self, host: Host, timeout_s: float) -> redis.asyncio.Redis:
        return self._maker.beside(host, timeout_s)

    async def close(self) -> None:
        """Nothing is kept beside the clients."""
