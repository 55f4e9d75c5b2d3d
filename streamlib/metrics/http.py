"""Serves /metrics, /livez and /readyz from threads, so that a blocked event loop is told and not felt."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

from streamlib.errors import ConfigError

MAX_CONNECTIONS = 64
IDLE_S = 5.0
CONNECTION_S = 15.0
_POLL_S = 0.25

Render = Callable[[str], tuple[str, bytes]]
"""Accept header -> content type and body."""
Probe = Callable[[], tuple[bool, str]]
"""Is it well, and a line that says why (not)."""

_log = logging.getLogger("streamlib.http")


class ProbeServer:
    """An HTTP server in a daemon thread. The callables run in its threads, `render` one call at a time."""

    def __init__(self, address: str, render: Render, live: Probe, ready: Probe) -> None:
        self._host, self._port = parse_address(address)
        self._render = render
        self._probes = {"/livez": live, "/readyz": ready}
        self._rendering = threading.Lock()
        self._server: _Server | None = None

    def start(self) -> str:
        """Listen, and return `http://HOST:PORT`. Raises ConfigError for an address that cannot be had."""
        try:
            server = self._server = _Server(self._host, self._port, self._answer)
        except OSError as error:
            raise ConfigError(
                f"cannot serve metrics on {self._host}:{self._port}: {error.strerror or error}; "
                "choose another --http HOST:PORT, a free port with --http 127.0.0.1:0, or --no-http"
            ) from error
        threading.Thread(target=server.serve_forever, args=(_POLL_S,), name="streamlib-http", daemon=True).start()
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{server.server_address[1]}"

    def close(self) -> None:
        """Stop listening; answers under way are dropped. Harmless when it does not run."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
            server.drop_older_than(0)

    def _answer(self, path: str, accept: str) -> tuple[int, str, bytes]:
        if path == "/metrics":
            # Many scrapers at once must not take the processor away from the handlers.
            with self._rendering:
                return 200, *self._render(accept)
        probe = self._probes.get(path)
        if probe is None:
            return 404, _PLAIN, b"not found; there are /metrics, /livez and /readyz\n"
        well, text = probe()
        return 200 if well else 503, _PLAIN, f"{text}\n".encode()


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`; without a host it is 127.0.0.1. Raises ConfigError."""
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ConfigError(f"--http {address!r}: write HOST:PORT, such as 127.0.0.1:9464, or use --no-http")
    return host or "127.0.0.1", int(port)


_PLAIN = "text/plain; charset=utf-8"
_Answer = Callable[[str, str], tuple[int, str, bytes]]


class _Server(ThreadingHTTPServer):
    """Threads that nobody waits for, and no connection that outlives its time."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, host: str, port: int, answer: _Answer) -> None:
        self.answer = answer
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._open: dict[socket.socket, float] = {}
        self._open_lock = threading.Lock()
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Without the look-up of the host's full name, which asks DNS and may take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Take the connection unless too many are open; refused ones are closed at once."""
        with self._open_lock:
            if len(self._open) >= MAX_CONNECTIONS:
                return False
            self._open[request] = time.monotonic()
            return True

    def shutdown_request(self, request: Any) -> None:
        with self._open_lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Runs a few times a second: a client that sends one byte now and then never idles, but gets old."""
        self.drop_older_than(CONNECTION_S)

    def drop_older_than(self, seconds: float) -> None:
        """End connections by shutdown only: closing belongs to their threads, which wake up from it."""
        oldest = time.monotonic() - seconds
        with self._open_lock:
            for request, since in self._open.items():
                if since <= oldest:
                    _shut(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is its own business; failures to answer are logged in the handler."""
        _log.debug("http_connection_failed", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = IDLE_S
    server_version = "streamlib"
    sys_version = ""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        try:
            status, content_type, body = self.server.answer(path, self.headers.get("Accept", ""))
        except Exception:  # noqa: BLE001 - logged, and told to the client
            _log.exception("http_answer_failed", extra={"path": path})
            status, content_type, body = 500, _PLAIN, b"failed; the log says why\n"
        self._send(status, content_type, body)

    def _refuse(self) -> None:
        self._send(405, _PLAIN, b"only GET\n")

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refuse  # noqa: N815

    def _send(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        if status == 405:
            self.send_header("Allow", "GET")
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are no news."""


def _shut(request: socket.socket) -> None:
    try:
        request.shutdown(socket.SHUT_RDWR)
    except OSError:
        _log.debug("http_connection_was_gone")
