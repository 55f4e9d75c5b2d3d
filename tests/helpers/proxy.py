"""A bad network in front of one server: a TCP proxy that delays, throttles, cuts, loses replies and goes silent.

It runs an event loop in a thread of its own, so that blocking and asyncio tests use it alike. Every fault is
set from any thread and holds for open and new connections until `heal()` or until it has struck.
"""

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable, Collection
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import urlsplit

from tests.helpers import recovery
from tests.helpers.acl import LOGIN
from tests.helpers.wire import Catch, Moment, Watch

T = TypeVar("T")

CHUNK_BYTES = 65_536
HOST = "127.0.0.1"


class _Link:
    """One client connection and its connection to the server."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter, catch: Catch | None) -> None:
        self.client = client
        self.server = server
        self.swallow_reply = False
        self.watch = Watch(catch) if catch is not None else None

    def close(self) -> None:
        self.client.close()
        self.server.close()

    def reset(self) -> None:
        for writer in (self.client, self.server):
            # Linger 0 turns the close into a RST: the peer sees "connection reset", not an orderly end.
            sock = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


class ChaosProxy:
    """Forwards 127.0.0.1:`port` to the server of `upstream_url` (redis://host:port, or with the login of
    tests/helpers/acl.py), faults on demand."""

    def __init__(self, upstream_url: str) -> None:
        upstream = urlsplit(upstream_url)
        if upstream.hostname is None or upstream.port is None:
            raise ValueError(f"{upstream_url!r}: the proxy needs redis://HOST:PORT")
        self.upstream = (upstream.hostname, upstream.port)
        self._login = LOGIN if LOGIN in upstream_url else ""
        self.port = 0
        self.struck = 0
        """Lost and cut replies so far."""
        self._links: set[_Link] = set()
        self._delay_ms = self._jitter_ms = self._bytes_per_s = 0.0
        self._cut_budget: int | None = None
        self._drop_after: bytes | None = None
        self._catch: Catch | None = None
        self._open_road: asyncio.Event | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chaos-proxy", daemon=True)
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"redis://{self._login}{HOST}:{self.port}"

    @property
    def connections(self) -> int:
        """Connections open through the proxy now."""
        return self._do(lambda: len(self._links))

    def delay(self, ms: float, *, jitter_ms: float = 0) -> None:
        """Hold every reply chunk back by `ms` plus or minus up to `jitter_ms` (in order: TCP keeps it)."""

        def arm() -> None:
            self._delay_ms, self._jitter_ms = ms, jitter_ms

        self._do(arm)
        recovery.struck()

    def throttle(self, bytes_per_s: float) -> None:
        """Let replies pass no faster than this, each connection by itself."""

        def arm() -> None:
            self._bytes_per_s = bytes_per_s

        self._do(arm)
        recovery.struck()

    def cut_replies_after(self, n_bytes: int) -> None:
        """Let `n_bytes` more bytes of replies pass, over all connections, then close in mid-reply; once."""

        def arm() -> None:
            self._cut_budget = n_bytes

        self._do(arm)
        recovery.struck()

    def drop_next_reply(self, to_request_with: bytes = b"") -> None:
        """Lose one reply: the next request with these bytes reaches the server, its answer never comes back.

        The connection is closed only after the server has answered, so the request was carried out. Strikes
        once; `struck` tells when.
        """

        def arm() -> None:
            self._drop_after = to_request_with

        self._do(arm)
        recovery.struck()

    def catch(self, words: Collection[bytes], moment: Moment, nth: int = 1) -> threading.Event:
        """Hold one message, and with it its connection: see `Catch`. Connections opened from now on are watched.

        The event is set when it has been caught; then `deliver_caught` or `lose_caught`.
        """

        def arm() -> threading.Event:
            self._catch = Catch(words, moment, nth)
            return self._catch.happened

        return self._do(arm)

    def deliver_caught(self) -> None:
        """Let what is held go on now, or whatever is caught later at once."""
        self._do(self._caught().deliver)

    def lose_caught(self) -> None:
        """Close the connection: what is held never arrives."""
        self._do(self._caught().lose)

    def blackhole(self) -> None:
        """Go silent: connections stay open and are accepted, no byte moves; `heal()` delivers what was held.

        So a request that its sender gave up on may still be carried out late, as in a real network.
        """
        self._do(lambda: self._road().clear())
        recovery.struck()

    def reset_all(self) -> None:
        """Break every open connection with a RST; new ones are served as before."""

        def reset() -> None:
            for link in list(self._links):
                link.reset()

        self._do(reset)
        recovery.struck()

    def heal(self) -> None:
        """No faults any more; requests held by a blackhole go through now."""

        def clear() -> None:
            self._delay_ms = self._jitter_ms = self._bytes_per_s = 0.0
            self._cut_budget = self._drop_after = None
            if self._catch is not None:
                self._catch.deliver()
                self._catch = None
            self._road().set()

        self._do(clear)
        recovery.struck()

    def start(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        return self

    def close(self) -> None:
        """Break what is open and end the thread."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _do(self, action: Callable[[], T]) -> T:
        """Run `action` on the proxy's loop: when this returns, the fault is in force."""

        async def run() -> T:
            return action()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    def _road(self) -> asyncio.Event:
        if self._open_road is None:
            raise RuntimeError("the proxy has not been started")
        return self._open_road

    def _caught(self) -> Catch:
        if self._catch is None:
            raise RuntimeError("nothing is to be caught")
        return self._catch

    async def _listen(self) -> None:
        self._open_road = asyncio.Event()
        self._open_road.set()
        self._server = await asyncio.start_server(self._serve, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _end(self) -> None:
        if self._server is not None:
            self._server.close()
        for link in list(self._links):
            link.reset()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        try:
            from_server, to_server = await asyncio.open_connection(*self.upstream)
        except OSError:  # the server is down: the client sees its connection closed
            to_client.close()
            return
        link = _Link(to_client, to_server, self._catch)
        self._links.add(link)
        pumps = [
            asyncio.ensure_future(self._pump_requests(link, from_client)),
            asyncio.ensure_future(self._pump_replies(link, from_server)),
        ]
        try:
            with contextlib.suppress(
                asyncio.CancelledError
            ):  # of a server's task Python 3.11 prints it, with a traceback
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            link.close()
            self._links.discard(link)

    async def _pump_requests(self, link: _Link, source: asyncio.StreamReader) -> None:
        while chunk := await source.read(CHUNK_BYTES):
            await self._road().wait()
            if self._drop_after is not None and self._drop_after in chunk:
                self._drop_after = None
                link.swallow_reply = True
            if link.watch is not None and link.watch.sees_request(chunk) and not await link.watch.hold():
                return
            link.server.write(chunk)
            await link.server.drain()

    async def _pump_replies(self, link: _Link, source: asyncio.StreamReader) -> None:
        while chunk := await source.read(CHUNK_BYTES):
            if self._delay_ms:
                spread_ms = random.uniform(-self._jitter_ms, self._jitter_ms)
                await asyncio.sleep(max(0.0, self._delay_ms + spread_ms) / 1000)
            if self._bytes_per_s:
                await asyncio.sleep(len(chunk) / self._bytes_per_s)
            await self._road().wait()
            if link.watch is not None and link.watch.sees_reply(chunk) and not await link.watch.hold():
                return
            if link.swallow_reply:
                self.struck += 1
                return
            passing = self._cut(chunk)
            link.client.write(passing)
            await link.client.drain()
            if len(passing) < len(chunk):
                self.struck += 1
                return

    def _cut(self, chunk: bytes) -> bytes:
        """What of this chunk may pass; shorter than the chunk when the cut falls here."""
        if self._cut_budget is None:
            return chunk
        if len(chunk) <= self._cut_budget:
            self._cut_budget -= len(chunk)
            return chunk
        passing, self._cut_budget = chunk[: self._cut_budget], None
        return passing
