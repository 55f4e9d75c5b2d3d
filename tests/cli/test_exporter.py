"""`streamlib exporter`: a backlog is seen whatever happens to the workers, and what nobody confirms is not told."""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from streamlib.keys import Keys
from streamlib.metrics.backlog import MAX_AGE_S
from streamlib.metrics.exporter import Exporter
from tests.cli.conftest import Cli
from tests.helpers.cluster import ClusterTopology
from tests.helpers.proxy import ChaosProxy
from tests.helpers.publishing import open_door
from tests.helpers.servers import RedisProc
from tests.helpers.waiting import wait_until
from tests.helpers.workers import WorkerProc

Servers = Callable[..., RedisProc]
EVENTS = "\n".join(f'{{"type":"OrderCreated","data":{{"order_id":"o-{n}","total":{n}}}}}' for n in range(-2, 5))
SUCCESS = "streamlib_exporter_last_success_timestamp_seconds"


@contextmanager
def exporting(shop: Path, url: str) -> Iterator[WorkerProc]:
    options = ["--http", "127.0.0.1:0", "--every", "0.5", "--redis", url]
    with WorkerProc("-", url, cwd=shop, command=[sys.executable, "-m", "streamlib", "exporter", *options]) as exporter:
        wait_until(exporter.http_url, what="it listens")
        yield exporter


def backlog(exporter: WorkerProc, name: str = "backlog") -> float:
    return exporter.metric(f"streamlib_group_{name}", topic="orders", group="email")


def test_it_tells_of_a_backlog_before_and_after_any_worker_lives(cli: Cli, shop: Path, redis_url: str) -> None:
    assert cli("publish", "shop:app", "orders", "--redis", redis_url, stdin=EVENTS).code == 0
    with exporting(shop, redis_url) as exporter:
        exporter.wait_ready()
        assert backlog(exporter) == 7
        assert exporter.metric("streamlib_topic_length", topic="orders") == 7
        assert cli("run", "shop:app", "--burst", "--no-http", "--redis", redis_url).code == 0
        wait_until(lambda: (backlog(exporter), backlog(exporter, "dead")) == (0, 2), what="it sees what was done")
        assert exporter.metric("streamlib_exporter_look_seconds") > 0
        assert exporter.get("/livez") == (200, "exporting\n")
        exporter.term()
        assert exporter.wait() == 0


def test_it_waits_for_redis_and_says_that_it_sees_nothing(own_server: Servers, shop: Path) -> None:
    server = own_server()
    server.terminate()
    with exporting(shop, server.url) as exporter:
        wait_until(lambda: "look_failed" in exporter.log(), what="it has tried")
        status, why = exporter.get("/readyz")
        assert (status, "is not reachable" in why) == (503, True)
        assert exporter.get("/livez")[0] == 200
        assert exporter.metric(SUCCESS) == 0
        server.start()
        exporter.wait_ready()
        assert exporter.metric(SUCCESS) > 0
        assert exporter.log().count("look_failed") == 1, "the same reason is told once"


def test_a_port_that_is_taken_is_told(cli: Cli, redis_url: str) -> None:
    port = redis_url.rsplit(":", 1)[1].partition("/")[0]
    done = cli("exporter", "--http", f"127.0.0.1:{port}", "--redis", redis_url)
    assert done.code == 2
    assert "choose another --http" in done.err


async def test_a_topic_that_cannot_be_read_hides_no_other(redis_url: str, client: redis.Redis) -> None:
    client.hset("streamlib:topics", mapping={"a": "1", "a:g": "handler", "orders": "1", "orders:email": "handler"})
    client.set("a", "no stream")
    client.xadd("orders", {"x": "y"})
    client.xgroup_create("orders", "email", "0")
    async with open_door(redis_url) as door:
        exporter = Exporter(door, Keys())
        await exporter.look()
        text = exporter.render("")[1].decode()
        assert 'streamlib_group_backlog{group="email",topic="orders"} 1.0' in text
        assert 'topic="a"' not in text
        well, why = exporter.ready()
        assert not well
        assert "holds another type" in why
        client.delete("a")
        await exporter.look()
        assert exporter.ready() == (True, "exporting")


async def test_a_lost_node_of_a_cluster_hides_only_what_lies_there(tmp_path: Path, server_kind: str) -> None:
    with ClusterTopology(tmp_path, kind=server_kind, full_coverage=False) as cluster:
        registry = cluster.node_of(Keys().topics())
        names = [f"t{n}" for n in range(40)]
        lost = next(node for node in map(cluster.node_of, names) if node is not registry)
        there = {name for name in names if cluster.node_of(name) is not lost}
        async with open_door(cluster.url, timeout_s=0.3) as door:
            for name in names:
                await door.execute("HSET", Keys().topics(), name, "1")
            exporter = Exporter(door, Keys())
            lost.stop()
            try:
                for _ in range(2):  # the lost one may have been the one whose clock was asked for
                    await exporter.look()
            finally:
                lost.cont()
            text = exporter.render("")[1].decode()
            assert set(re.findall(r'^streamlib_topic_length{topic="(\w+)"}', text, re.MULTILINE)) == there
            assert not exporter.ready()[0]


async def test_numbers_that_nobody_confirms_any_more_go_away(
    own_server: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = own_server()
    with server.client() as client, ChaosProxy(server.url) as proxy:
        client.hset("streamlib:topics", mapping={"orders": "1"})
        async with open_door(proxy.url, timeout_s=0.2) as door:
            exporter = Exporter(door, Keys())
            await exporter.look()
            assert b"streamlib_topic_length{" in exporter.render("")[1]
            proxy.blackhole()
            await exporter.look()
            assert exporter.ready()[0], "one look that fails is no news yet"
            monkeypatch.setattr("streamlib.metrics.backlog.MAX_AGE_S", -1.0)
            monkeypatch.setattr("streamlib.metrics.exporter.MAX_AGE_S", -1.0)
            assert b"streamlib_topic_length{" not in exporter.render("")[1]
            well, why = exporter.ready()
            assert not well
            assert "is not reachable" in why
    assert MAX_AGE_S == 30
