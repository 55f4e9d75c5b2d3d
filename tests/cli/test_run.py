"""`streamlib run` and `server`: probes, signals, exit codes, processes, reload."""

import re
import signal
import subprocess
from pathlib import Path

import pytest
import redis

from tests.cli.conftest import Cli, command_line, environment
from tests.helpers.processes import end_process
from tests.helpers.waiting import wait_until
from tests.helpers.workers import WorkerProc

HANGS = '{"type":"OrderCreated","data":{"order_id":"o-1","total":1000000}}'
BLOCKS = '{"type":"OrderCreated","data":{"order_id":"o-1","total":2000000}}'
SHORT_DRAIN = {"STREAMLIB_WORKER_DRAIN_S": "1"}


def publish(cli: Cli, redis_url: str, text: str) -> None:
    done = cli("publish", "shop:app", "orders", "--redis", redis_url, stdin=text)
    assert done.code == 0, done.err


def inflight(worker: WorkerProc) -> bool:
    return worker.metric("streamlib_inflight_events", group="email") == 1


def test_serves_probes_and_drains_on_the_first_signal(shop: Path, redis_url: str) -> None:
    with WorkerProc("shop:app", redis_url, cwd=shop) as worker:
        worker.wait_ready()
        assert worker.get("/livez")[0] == 200
        assert worker.metrics()["streamlib_worker_ready"] == 1
        worker.term()
        assert worker.wait() == 0
        assert "draining" in worker.log()


@pytest.mark.row(14)
def test_the_second_signal_cancels_handlers(cli: Cli, shop: Path, redis_url: str) -> None:
    publish(cli, redis_url, HANGS)
    with WorkerProc("shop:app", redis_url, cwd=shop) as worker:
        worker.wait_ready()
        wait_until(lambda: inflight(worker), what="the handler runs")
        worker.term()
        wait_until(lambda: "draining" in worker.log(), what="it drains")
        worker.term()
        assert worker.wait() == 0
        assert "cancelling_handlers" in worker.log()
    [group] = cli("info", "orders", "--json", "--redis", redis_url).json[0]["groups"]
    assert group["backlog"] == 1


@pytest.mark.row(14)
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_third_signal_ends_at_once_even_while_a_handler_blocks_the_loop(
    cli: Cli, shop: Path, redis_url: str, signum: signal.Signals, code: int
) -> None:
    publish(cli, redis_url, BLOCKS)
    command = command_line(["run", "shop:app", "--no-http", "--redis", redis_url])
    with subprocess.Popen(command, cwd=shop, env=environment(), stderr=subprocess.DEVNULL) as process:
        try:
            wait_until((shop / "blocked").exists, what="the handler blocks")
            # Signals of one kind do not queue: the next one is sent until the process has had three.

            def sent_and_ended() -> bool:
                process.send_signal(signum)
                return process.poll() is not None

            wait_until(sent_and_ended, what="it ends")
            assert process.wait(10) == code
        finally:
            process.kill()


@pytest.mark.row(14)
def test_a_handler_that_outlives_the_drain_gives_7_and_its_event_stays(cli: Cli, shop: Path, redis_url: str) -> None:
    (shop / "shop.py").write_text((shop / "shop.py").read_text().replace("asyncio.sleep(600)", "stubborn()") + STUBBORN)
    publish(cli, redis_url, HANGS)
    with WorkerProc("shop:app", redis_url, cwd=shop, env=SHORT_DRAIN) as worker:
        worker.wait_ready()
        wait_until(lambda: inflight(worker), what="the handler runs")
        worker.term()
        assert worker.wait() == 7
    [group] = cli("info", "orders", "--json", "--redis", redis_url).json[0]["groups"]
    assert group["backlog"] == 1


STUBBORN = """
async def stubborn() -> None:
    while True:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            pass
"""


def test_a_signal_while_redis_is_waited_for_ends_cleanly(shop: Path) -> None:
    with WorkerProc("shop:app", "redis://127.0.0.1:1", cwd=shop) as worker:
        wait_until(worker.http_url, what="it listens")
        wait_until(lambda: worker.get("/readyz") == (503, "connecting to Redis\n"), what="it has begun to connect")
        worker.term()
        assert worker.wait() == 0


def test_usr2_writes_stacks(shop: Path, redis_url: str) -> None:
    with WorkerProc("shop:app", redis_url, cwd=shop) as worker:
        worker.wait_ready()
        subprocess.run(["kill", "-USR2", str(worker.pid)], check=True)
        wait_until(lambda: "most recent call first" in worker.log(), what="stacks are written")
        assert worker.running


def test_burst_with_group_and_concurrency(cli: Cli, redis_url: str) -> None:
    publish(cli, redis_url, '{"type":"OrderCreated","data":{"order_id":"o-1"}}')
    args = ("run", "shop:app", "--burst", "--no-http", "--group", "email", "-c", "2", "--redis", redis_url)
    done = cli(*args, "--log-format", "json")
    assert done.code == 0, done.err
    assert "http_listening" not in done.err
    assert done.out == ""
    assert all(text.startswith('{"ts": "') for text in done.err.splitlines())
    [group] = cli("info", "orders", "--json", "--redis", redis_url).json[0]["groups"]
    assert (group["backlog"], group["dead"]) == (0, 0)


def test_several_processes(shop: Path, redis_url: str) -> None:
    with WorkerProc("shop:app", redis_url, "-p", "2", cwd=shop) as worker:
        worker.wait_ready()
        assert {f'streamlib_worker_ready{{slot="{slot}"}}' for slot in (0, 1)} <= worker.metrics().keys()
        worker.term()
        assert worker.wait() == 0


def test_a_wrong_app_ends_several_processes_with_2(cli: Cli, redis_url: str) -> None:
    done = cli("run", "shop:nothing", "-p", "2", "--no-http", "--redis", redis_url)
    assert done.code == 2
    assert "has no attribute 'nothing'" in done.err


def test_reload_starts_again_when_a_file_changes(cli: Cli, shop: Path, redis_url: str) -> None:
    with WorkerProc("shop:app", redis_url, "--reload", cwd=shop) as worker:
        worker.wait_ready()
        (shop / "shop.py").write_text(
            (shop / "shop.py").read_text().replace("if event.total < 0:", 'open("new", "w").close()\n    if False:')
        )
        wait_until(lambda: worker.log().count("worker_started") == 2, what="it has started again")
        publish(cli, redis_url, '{"type":"OrderCreated","data":{"order_id":"o-1","total":-1}}')
        wait_until((shop / "new").exists, what="the new code runs")
        worker.term()
        assert worker.wait() == 0


def test_server_runs_until_a_signal_and_keeps_its_data(shop: Path) -> None:
    directory = shop / "data"
    command = command_line(["server", "--dir", str(directory)])
    for visit in (1, 2):
        with subprocess.Popen(
            command, cwd=shop, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            assert process.stdout is not None
            url = process.stdout.readline().decode().strip()
            assert re.fullmatch(r"unix://.*\.sock", url)
            with redis.Redis.from_url(url) as client:
                assert client.incr("visits") == visit
            assert end_process(process) == 0
        with redis.Redis.from_url(url) as client, pytest.raises(redis.exceptions.ConnectionError):
            client.ping()


def test_commands_share_an_embedded_server(cli: Cli, shop: Path) -> None:
    url = f"embedded://{shop}/data"
    done = cli("publish", "shop:app", "orders", "--redis", url, stdin='{"type":"OrderPaid","data":{"order_id":"o-1"}}')
    assert done.code == 0, done.err
    assert cli("run", "shop:app", "--burst", "--no-http", "--redis", url).code == 0
    [topic] = cli("info", "--json", "--redis", url).json
    assert (topic["length"], topic["groups"][0]["backlog"]) == (1, 0)
