"""The rig itself: what the other tests rely on when they kill, cut and count."""

import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.helpers.oracle import assert_no_stray_keys, assert_nothing_lost, ledger
from tests.helpers.processes import is_alive
from tests.helpers.proxy import ChaosProxy
from tests.helpers.servers import RedisProc, available_kinds, connect
from tests.helpers.waiting import eventually, wait_until
from tests.helpers.wire import script_words
from tests.helpers.workers import WorkerProc

OwnServer = Callable[..., RedisProc]

WORKER = """
import http.server, signal, subprocess, sys, threading

child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path in ("/readyz", "/metrics") else 404)
        self.end_headers()
        self.wfile.write(b'done_total{group="a"} 2\\ndone_total{group="b"} 3\\n')
    def log_message(self, *args): pass

server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
print(f"child={child.pid};", file=sys.stderr)
print(f"metrics on http://127.0.0.1:{server.server_port}/metrics", file=sys.stderr)
server.serve_forever()
sys.exit(7)
"""


@pytest.mark.parametrize("kind", available_kinds())
def test_server_keeps_its_port_and_with_aof_its_data_through_a_kill(kind: str, own_server: OwnServer) -> None:
    server = own_server(aof=True, kind=kind)
    url = server.url
    with server.client() as client:
        client.set("kept", b"\xff")
        server.kill9()
        server.start()
        assert client.get("kept") == b"\xff"
        server.wipe()
        assert client.get("kept") is None
    assert server.url == url


def test_frozen_server_answers_nothing_until_it_goes_on(own_server: OwnServer) -> None:
    server = own_server()
    server.stop()
    with server.client(timeout_s=0.2) as client, pytest.raises(redis.exceptions.TimeoutError):
        client.ping()
    server.cont()
    with server.client() as client:
        assert client.ping()


def test_waiting_names_the_condition_that_never_held() -> None:
    with pytest.raises(AssertionError, match="the moon is blue; last answer: 0"):
        wait_until(lambda: 0, 0, what="the moon is blue")
    with pytest.raises(AssertionError, match=re.escape("len([]) > 1")):
        wait_until(lambda: len([]) > 1, 0)


async def test_eventually_takes_plain_and_coroutine_functions() -> None:
    answers = iter([0, 0, 5])

    async def next_answer() -> int:
        return next(answers)

    assert await eventually(next_answer, every=0) == 5
    assert await eventually(lambda: "yes") == "yes"


def test_proxy_loses_the_reply_but_not_the_request(proxy: ChaosProxy, client: redis.Redis) -> None:
    with connect(proxy.url) as far:
        assert far.ping()
        proxy.drop_next_reply(b"XADD")
        assert far.ping()
        with pytest.raises(redis.exceptions.ConnectionError):
            far.xadd("orders", {"id": "e1"})
        assert client.xlen("orders") == 1
        assert proxy.struck == 1
        assert far.ping()


@pytest.mark.allow_keys("blob")
def test_proxy_cuts_in_the_middle_of_a_reply(proxy: ChaosProxy, client: redis.Redis) -> None:
    client.set("blob", b"x" * 1_000_000)
    with connect(proxy.url) as far:
        assert far.ping()
        proxy.cut_replies_after(1000)
        with pytest.raises(redis.exceptions.ConnectionError):
            far.get("blob")
        assert far.get("blob") == b"x" * 1_000_000
        assert proxy.struck == 1


@pytest.mark.allow_keys("blob")
def test_proxy_lets_replies_pass_no_faster_than_it_is_told(proxy: ChaosProxy, client: redis.Redis) -> None:
    client.set("blob", b"x" * 100_000)
    with connect(proxy.url) as far:
        assert far.ping()
        proxy.throttle(200_000)
        started_s = time.monotonic()
        assert far.get("blob") == b"x" * 100_000
        assert time.monotonic() - started_s >= 0.5
        proxy.heal()
        assert far.get("blob") == b"x" * 100_000


def test_proxy_goes_silent_and_delivers_late(proxy: ChaosProxy, client: redis.Redis) -> None:
    with connect(proxy.url, timeout_s=0.2) as far:
        assert far.ping()
        proxy.blackhole()
        with pytest.raises(redis.exceptions.TimeoutError):
            far.xadd("orders", {"id": "e1"})
        assert client.exists("orders") == 0
        proxy.heal()
        wait_until(lambda: client.exists("orders") == 1)


def test_proxy_resets_open_connections_and_serves_new_ones(proxy: ChaosProxy, client: redis.Redis) -> None:
    errors: list[Exception] = []

    def block() -> None:
        with connect(proxy.url) as far:
            try:
                far.xread({"orders": "$"}, block=30_000)
            except redis.exceptions.ConnectionError as error:
                errors.append(error)

    reader = threading.Thread(target=block)
    reader.start()
    wait_until(lambda: int(client.info("clients")["blocked_clients"]) == 1)
    proxy.reset_all()
    reader.join(10)
    assert len(errors) == 1
    wait_until(lambda: proxy.connections == 0)
    with connect(proxy.url) as far:
        assert far.ping()


@contextmanager
def sending(proxy: ChaosProxy, send: Callable[[redis.Redis], Any]) -> Iterator[Future[Any]]:
    """Somebody sends something through the proxy, on a connection of its own; its answer."""
    with connect(proxy.url) as far, ThreadPoolExecutor(1) as thread:
        yield thread.submit(send, far)


def test_proxy_holds_a_request_and_delivers_it_late(proxy: ChaosProxy, client: redis.Redis) -> None:
    caught = proxy.catch({b"INCRBY"}, "before")
    with sending(proxy, lambda far: far.incr("n")) as answer, connect(proxy.url) as beside:
        assert caught.wait(10)
        assert beside.get("n") is None, "other connections go on, and the server has not seen it"
        proxy.deliver_caught()
        assert answer.result(10) == 1
    client.delete("n")


def test_proxy_holds_the_reply_to_a_request_that_was_carried_out(proxy: ChaosProxy, client: redis.Redis) -> None:
    caught = proxy.catch({b"INCRBY"}, "after", nth=2)
    with sending(proxy, lambda far: [far.incr("n"), far.incr("n")]) as answer:
        assert caught.wait(10)
        assert client.get("n") == b"2"
        assert not answer.done()
        proxy.lose_caught()
        with pytest.raises(redis.exceptions.ConnectionError):
            answer.result(10)
    client.delete("n")


def test_proxy_finds_a_request_behind_others_in_one_pipeline(proxy: ChaosProxy, client: redis.Redis) -> None:
    caught = proxy.catch({b"INCRBY"}, "after")

    def send(far: redis.Redis) -> Any:
        with far.pipeline(transaction=False) as pipe:
            pipe.set("big", "x" * 300_000)
            pipe.get("big")
            pipe.incr("n")
            return pipe.execute()

    with sending(proxy, send) as answers:
        assert caught.wait(10)
        assert client.get("n") == b"1"
        proxy.deliver_caught()
        assert answers.result(10)[2] == 1
    client.delete("n", "big")


def test_proxy_does_not_take_an_unknown_script_for_one_that_was_run(proxy: ChaosProxy, client: redis.Redis) -> None:
    sha, body = sorted(script_words("leave"), key=len)
    caught = proxy.catch({sha, body}, "after")
    client.script_flush()

    def send(far: redis.Redis) -> Any:
        with pytest.raises(redis.exceptions.NoScriptError):
            far.evalsha(sha.decode(), 1, "workers", "w")
        assert not caught.is_set()
        return far.eval(body.decode(), 1, "workers", "w")

    with sending(proxy, send) as answer:
        assert caught.wait(10)
        proxy.deliver_caught()
        assert answer.result(10) == 0


def test_proxy_outlives_its_server(own_server: OwnServer) -> None:
    server = own_server()
    with ChaosProxy(server.url) as proxy, connect(proxy.url) as far:
        assert far.ping()
        server.kill9()
        with pytest.raises(redis.exceptions.ConnectionError):
            far.ping()
        server.start()
        assert far.ping()


def test_worker_is_ready_then_answers_metrics_and_its_exit_code(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WORKER]
    with WorkerProc("fake", "", cwd=tmp_path, command=command) as worker:
        worker.wait_ready()
        assert worker.metrics() == {'done_total{group="a"}': 2, 'done_total{group="b"}': 3}
        assert (worker.metric("done_total"), worker.metric("done_total", group="b")) == (5, 3)
        worker.stop()
        worker.cont()
        worker.term()
        assert worker.wait() == 7


def test_worker_leaves_no_process_behind(tmp_path: Path) -> None:
    with WorkerProc("fake", "", cwd=tmp_path, command=[sys.executable, "-c", WORKER]) as worker:
        worker.wait_ready()
        found = re.search(r"child=(\d+);", worker.log())
        assert found is not None
        worker.kill9()
        assert is_alive(int(found[1]))
    wait_until(lambda: not is_alive(int(found[1])))
    assert not worker.running


def test_worker_that_ends_before_it_is_ready_shows_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such app')"]
    with (
        WorkerProc("fake", "", cwd=tmp_path, command=command) as worker,
        pytest.raises(AssertionError) as failure,
    ):
        worker.wait_ready()
    assert "no such app" in str(failure.value)


def test_ledger_finds_every_event_and_the_lost_one(client: redis.Redis) -> None:
    entries = {name: _add(client, name) for name in ("done", "pending", "retrying", "again", "dead", "lost")}
    client.xgroup_create("orders", "email", "0")
    client.xreadgroup("email", "one", {"orders": ">"}, count=100)
    _add(client, "ahead")
    client.xack("orders", "email", *(entry for name, entry in entries.items() if name != "pending"))
    client.set("{orders}:idem:email:done", "d", px=60_000)
    client.set("{orders}:idem:email:dead", "x", px=60_000)
    client.set("{orders}:idem:email:lost", "c123:w:1-1", px=60_000)
    client.zadd("{orders}:retry:email", {"retrying": 1})
    client.hset("{orders}:retrybody:email", "retrying", "blob")
    client.xadd("{orders}:again:email", {"id": "again"})
    client.xadd("{orders}:dead:email", {"id": "dead"})

    account = ledger(client, "orders", "email", [*entries, "ahead"])

    for name in ("done", "pending", "dead"):
        assert getattr(account, name) == {name}
    assert account.retrying == {"retrying", "again"}
    assert account.undelivered == {"ahead"}
    assert account.lost == {"lost"}
    assert not account.settled
    with pytest.raises(AssertionError, match="lost 1 events"):
        assert_nothing_lost(client, ["orders"], "email", ["done", "lost"])
    assert assert_nothing_lost(client, "orders", "email", ["done", "dead"]).settled


@pytest.mark.allow_keys("*")
@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("SET", "leak!", "1"), "unknown string"),
        (("SET", "orders", "1"), "a string where stream belongs"),
        (("SET", "{orders}:dedup:e1", "1"), "must have a time to live"),
        (("SET", "{shop:orders.0}:idem:email:e1", "d"), "must have a time to live"),
        (("HSET", "{orders}:retrybody:email", "e1", "blob"), "bodies of retries that do not exist"),
    ],
)
def test_stray_keys_are_named(client: redis.Redis, command: tuple[str, ...], reason: str) -> None:
    client.execute_command(*command)  # type: ignore[no-untyped-call]
    with pytest.raises(AssertionError, match=re.escape(f"{command[1]} (")) as failure:
        assert_no_stray_keys(client)
    assert reason in str(failure.value)
    assert_no_stray_keys(client, [command[1].replace("{", "[{]")])
    client.expire(command[1], 60)
    assert_no_stray_keys(client)


def _add(client: redis.Redis, event_id: str) -> bytes:
    entry = client.xadd("orders", {"id": event_id})
    assert isinstance(entry, bytes)
    return entry
