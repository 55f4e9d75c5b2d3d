"""The HTTP server for metrics and probes: what it answers, and that no client can hold it up."""

import contextlib
import http.client
import socket
import threading
from collections.abc import Iterator

import pytest

from streamlib.errors import ConfigError
from streamlib.metrics import http as probes
from streamlib.metrics.exposition import render
from streamlib.metrics.http import MAX_CONNECTIONS, ProbeServer, parse_address
from streamlib.metrics.worker import WorkerMetrics
from tests.helpers.servers import HOST, free_port
from tests.helpers.waiting import wait_until


class Rig:
    """A running server whose probes the test sets."""

    def __init__(self) -> None:
        self.metrics = WorkerMetrics()
        self.live = (True, "alive")
        self.ready = (False, "connecting")
        self.fail = False
        self.server = ProbeServer(f"{HOST}:0", self._render, lambda: self.live, lambda: self.ready)
        self.url = self.server.start()
        self.port = int(self.url.rpartition(":")[2])

    def _render(self, accept: str) -> tuple[str, bytes]:
        if self.fail:
            raise RuntimeError("no metrics today")
        return render(self.metrics.registry, accept)

    def get(self, path: str, *, method: str = "GET", accept: str = "") -> tuple[int, str, str]:
        """Status, content type and body."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=10)
        with contextlib.closing(connection):
            connection.request(method, path, headers={"Accept": accept})
            answer = connection.getresponse()
            return answer.status, answer.headers["Content-Type"], answer.read().decode()


@pytest.fixture
def rig() -> Iterator[Rig]:
    running = Rig()
    yield running
    running.server.close()


def test_metrics_are_served_in_the_format_asked_for(rig: Rig) -> None:
    rig.metrics.group("t", "g").received("new", 3)
    status, content_type, body = rig.get("/metrics")
    assert status == 200
    assert content_type.startswith("text/plain")
    assert 'streamlib_events_received_total{delivery="new",group="g",topic="t"} 3.0' in body
    status, content_type, body = rig.get("/metrics", accept="application/openmetrics-text;version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith("# EOF\n")


def test_probes_answer_200_or_503_with_the_reason(rig: Rig) -> None:
    assert rig.get("/livez")[::2] == (200, "alive\n")
    assert rig.get("/readyz?verbose")[::2] == (503, "connecting\n")
    rig.ready, rig.live = (True, "ready"), (False, "the event loop has hung for 70 s")
    assert rig.get("/readyz")[0] == 200
    assert rig.get("/livez")[::2] == (503, "the event loop has hung for 70 s\n")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/metrics/x", 404),
        ("POST", "/metrics", 405),
        ("HEAD", "/livez", 405),
        ("TRACE", "/livez", 501),
    ],
)
def test_nothing_else_is_served(rig: Rig, method: str, path: str, status: int) -> None:
    assert rig.get(path, method=method)[0] == status


@pytest.mark.parametrize(
    ("request_line", "headers", "status"),
    [
        (f"GET /{'x' * 65_540} HTTP/1.1", [], 414),
        ("GET /livez HTTP/1.1", [f"X: {'x' * 65_540}"], 431),
        ("GET /livez HTTP/1.1", [f"X-{n}: y" for n in range(200)], 431),
        ("GET /livez HTTP/9.9", [], 505),
        ("nonsense", [], 400),
    ],
    ids=["long path", "long header", "many headers", "another HTTP", "no HTTP"],
)
def test_what_is_too_large_or_no_request_is_refused_and_harms_nobody(
    rig: Rig, request_line: str, headers: list[str], status: int
) -> None:
    with socket.create_connection((HOST, rig.port), timeout=10) as client:
        client.sendall("\r\n".join([request_line, *headers, "", ""]).encode())
        answer = b""
        while more := client.recv(65_536):
            answer += more
    assert f"Error code: {status}".encode() in answer
    assert rig.get("/livez")[0] == 200


def test_a_failing_scrape_is_told_and_does_not_end_the_server(rig: Rig) -> None:
    rig.fail = True
    assert rig.get("/metrics")[0] == 500
    assert rig.get("/livez")[0] == 200


@pytest.mark.row(77)
def test_hanging_clients_do_not_block_a_probe(rig: Rig) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS // 2):
            silent = stack.enter_context(socket.create_connection((HOST, rig.port)))
            silent.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-")
        assert rig.get("/livez")[0] == 200
        assert rig.get("/metrics")[0] == 200


def test_a_client_that_drips_is_cut_off(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes before the idle limit: only the age of the connection ends it."""
    monkeypatch.setattr(probes, "CONNECTION_S", 0.5)
    with socket.create_connection((HOST, rig.port), timeout=10) as dripping:
        dripping.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
        dripping.settimeout(0.05)

        def cut_off() -> bool:
            try:
                dripping.sendall(b"y")
                return dripping.recv(100) == b""
            except TimeoutError:
                return False
            except OSError:
                return True

        assert wait_until(cut_off)
    assert rig.get("/livez")[0] == 200


def test_too_many_connections_are_refused_until_some_end(rig: Rig) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS):
            stack.enter_context(socket.create_connection((HOST, rig.port)))
        with pytest.raises((OSError, http.client.HTTPException)):
            rig.get("/livez")
    not_yet = (OSError, http.client.HTTPException)
    assert wait_until(lambda: rig.get("/livez")[0] == 200, ignore=not_yet)


@pytest.mark.row(77)
def test_many_scrapers_render_one_after_another(rig: Rig) -> None:
    """Handlers keep their processor: however many scrape, one thread renders."""
    running, most, lock = [0], [0], threading.Lock()
    inner = rig.server._render

    def watched(accept: str) -> tuple[str, bytes]:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        answer = inner(accept)
        with lock:
            running[0] -= 1
        return answer

    rig.server._render = watched
    statuses: list[int] = []
    scrapers = [threading.Thread(target=lambda: statuses.append(rig.get("/metrics")[0])) for _ in range(20)]
    for scraper in scrapers:
        scraper.start()
    for scraper in scrapers:
        scraper.join()
    assert statuses == [200] * 20
    assert most == [1]


def test_a_port_in_use_is_named_with_the_way_out(rig: Rig) -> None:
    second = ProbeServer(f"{HOST}:{rig.port}", rig._render, lambda: rig.live, lambda: rig.ready)
    with pytest.raises(ConfigError, match=rf"{HOST}:{rig.port}.*in use.*--http HOST:PORT.*{HOST}:0.*--no-http"):
        second.start()
    second.close()


def test_a_closed_server_frees_its_port() -> None:
    port = free_port()
    for _ in range(2):
        server = ProbeServer(f"{HOST}:{port}", lambda accept: ("", b""), lambda: (True, ""), lambda: (True, ""))
        assert server.start() == f"http://{HOST}:{port}"
        server.close()
        server.close()


def test_the_default_host_is_loopback() -> None:
    assert parse_address(":9464") == ("127.0.0.1", 9464)
    assert parse_address("[::1]:9464") == ("::1", 9464)
    assert parse_address("0.0.0.0:9464") == ("0.0.0.0", 9464)


@pytest.mark.parametrize("address", ["", "localhost", "localhost:", "localhost:http", "x:70000", "x:-1"])
def test_an_address_that_is_none_is_explained(address: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        parse_address(address)
