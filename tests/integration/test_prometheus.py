"""A real Prometheus scrapes real workers: every event counted once, no scrape error, every alert rule in force."""

import json
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
import yaml

from tests.cli.conftest import Cli, Result, command_line, environment
from tests.helpers.processes import end_process
from tests.helpers.servers import HOST, RedisProc, free_port
from tests.helpers.source_tree import ROOT
from tests.helpers.waiting import wait_until
from tests.helpers.workers import WorkerProc

PROMETHEUS = shutil.which("prometheus")
pytestmark = pytest.mark.skipif(PROMETHEUS is None, reason="the prometheus server is not on PATH")

EVENTS = 137
REJECTED = 5
COUNTED = 'streamlib_events_processed_total{topic="orders", group="email"}'
SHOP = """
from streamlib import App, Context, Event, Reject

app = App("shop")

class OrderCreated(Event):
    order_id: str
    total: int = 0

orders = app.topic("orders", OrderCreated, key="order_id")

@app.handler(orders, group="email")
async def send(event: OrderCreated, ctx: Context) -> None:
    if event.total < 0:
        raise Reject("negative total")
"""


class Prometheus:
    """One `prometheus` that scrapes workers at `targets`, with the project's configuration but for where they are."""

    def __init__(self, directory: Path, *targets: str) -> None:
        self.port = free_port()
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir()
        config = yaml.safe_load((ROOT / "config/prometheus.yml").read_text())
        config["global"] |= {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"}
        [job] = [job for job in config["scrape_configs"] if job["job_name"] == "streamlib"]
        del job["dns_sd_configs"], job["relabel_configs"]
        job["static_configs"] = [{"targets": list(targets), "labels": {"service": "worker"}}]
        config["scrape_configs"] = [job]
        (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
        shutil.copy(ROOT / "config/alerts.yml", directory)

    def ask(self, path: str, **query: str) -> Any:
        """The `data` of an answer of its HTTP API."""
        url = f"http://{HOST}:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                found = json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{url} answered {error.code}: {error.read().decode()[:500]}") from None
        assert found["status"] == "success", found
        return found["data"]

    def value(self, expression: str) -> float | None:
        """The value of an expression that gives one series, None while there is none."""
        found = self.ask("query", query=expression)["result"]
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else None

    def wait_for(self, expression: str, expected: float) -> None:
        wait_until(lambda: self.value(expression) == expected, 30, every=0.1, what=f"{expression} is {expected}")

    def scraped(self) -> list[dict[str, Any]]:
        """Its targets, each scraped at least once."""
        found: list[dict[str, Any]] = self.ask("targets")["activeTargets"]
        assert all(target["health"] == "up" and not target["lastError"] for target in found), found
        return found

    def __enter__(self) -> Self:
        log_path = self._directory / "prometheus.log"
        with log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    str(PROMETHEUS), "--config.file=prometheus.yml", "--storage.tsdb.path=data",
                    f"--web.listen-address={HOST}:{self.port}", "--enable-feature=exemplar-storage",
                ],
                cwd=self._directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        wait_until(
            lambda: self.ask("status/buildinfo"), 30, what=f"prometheus answers, see {log_path}",
            ignore=(AssertionError, OSError),
        )  # fmt: skip
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            end_process(self._process)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(SHOP)
    return tmp_path


@pytest.fixture
def cli(shop: Path) -> Cli:
    def run(*args: str, stdin: str = "") -> Result:
        done = subprocess.run(
            command_line(args), cwd=shop, env=environment(), input=stdin, capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip
        return Result(done.returncode, done.stdout, done.stderr)

    return run


def publish(cli: Cli, redis_url: str, first: int, count: int, total: int = 1) -> None:
    orders = [{"order_id": f"o-{number}", "total": total} for number in range(first, first + count)]
    lines = "".join(json.dumps({"type": "OrderCreated", "data": order}) + "\n" for order in orders)
    done = cli("publish", "shop:app", "orders", "--redis", redis_url, "--json", stdin=lines)
    assert (done.code, done.json["published"]) == (0, count), done.err


def address(worker: WorkerProc) -> str:
    return worker.http_url().removeprefix("http://")


def test_one_worker_is_scraped_without_error_and_every_event_is_counted_once(
    cli: Cli, shop: Path, redis_url: str
) -> None:
    with WorkerProc("shop:app", redis_url, cwd=shop) as worker:
        worker.wait_ready()
        with Prometheus(shop / "prometheus", address(worker)) as prometheus:
            prometheus.wait_for("up", 1)
            publish(cli, redis_url, 0, EVENTS)
            publish(cli, redis_url, EVENTS, REJECTED, total=-1)
            prometheus.wait_for(f"sum({COUNTED})", EVENTS + REJECTED)
            assert prometheus.value(f'sum({COUNTED[:-1]}, outcome="ok"}})') == EVENTS
            assert prometheus.value('sum(streamlib_dead_letters_total{reason="rejected"})') == REJECTED
            assert prometheus.value("sum(streamlib_handler_duration_seconds_count)") == EVENTS + REJECTED
            assert prometheus.value("streamlib_worker_ready") == 1
            prometheus.wait_for("streamlib_group_dead", REJECTED)
            [target] = prometheus.scraped()
            assert target["labels"]["service"] == "worker"


def test_types_and_help_arrive_as_the_catalogue_has_them(shop: Path, redis_url: str) -> None:
    with WorkerProc("shop:app", redis_url, cwd=shop) as worker:
        worker.wait_ready()
        with Prometheus(shop / "prometheus", address(worker)) as prometheus:
            prometheus.wait_for("up", 1)
            told = prometheus.ask("metadata")
            # Without its suffix: only OpenMetrics, which Prometheus asks for, names a counter's family so.
            [counter] = told["streamlib_events_processed"]
            assert (counter["type"], counter["help"]) == ("counter", "Deliveries by how they ended; each ends once.")
            assert told["streamlib_handler_duration_seconds"][0]["type"] == "histogram"
            assert told["streamlib_worker_ready"][0]["type"] == "gauge"
            prometheus.scraped()


def test_every_alert_rule_is_loaded_and_can_be_evaluated(shop: Path, redis_url: str) -> None:
    written = yaml.safe_load((ROOT / "config/alerts.yml").read_text())["groups"]
    wanted = {rule["alert"] for group in written for rule in group["rules"]}
    with WorkerProc("shop:app", redis_url, cwd=shop) as worker:
        worker.wait_ready()
        with Prometheus(shop / "prometheus", address(worker)) as prometheus:
            prometheus.wait_for("up", 1)

            def rules() -> list[dict[str, Any]]:
                groups = prometheus.ask("rules")["groups"]
                found = [rule for group in groups for rule in group["rules"]]
                return found if all(rule["health"] != "unknown" for rule in found) else []

            loaded = wait_until(rules, 30, what="every rule has been evaluated")
            assert {rule["name"] for rule in loaded} == wanted
            assert [rule for rule in loaded if rule["health"] != "ok" or rule.get("lastError")] == []
            wait_until(
                lambda: prometheus.value('absent(ALERTS{alertname="StreamlibNoReadyWorker"})') == 1,
                what="no alert about a missing worker",
            )


def test_a_full_redis_raises_the_alert(shop: Path, own_server: Callable[..., RedisProc]) -> None:
    server = own_server()
    with WorkerProc("shop:app", server.url, cwd=shop) as worker, server.client() as client:
        worker.wait_ready()
        with Prometheus(shop / "prometheus", address(worker)) as prometheus:
            prometheus.wait_for("up", 1)
            order = {"id": "e-1", "type": "OrderCreated", "v": "1", "key": "o-1", "data": '{"order_id":"o-1"}'}
            with client.pipeline() as at_once:  # full before the worker can read it
                at_once.xadd("orders", dict(order))
                at_once.config_set("maxmemory", "1")
                at_once.execute()
            prometheus.wait_for('count(ALERTS{alertname="StreamlibRedisFull", alertstate="firing"})', 1)
            client.config_set("maxmemory", "0")
            prometheus.wait_for(f'sum({COUNTED[:-1]}, outcome="ok"}})', 1)


def test_processes_of_one_worker_are_told_apart_by_slot_and_add_up(cli: Cli, shop: Path, redis_url: str) -> None:
    with WorkerProc("shop:app", redis_url, "-p", "2", cwd=shop) as worker:
        worker.wait_ready()
        with Prometheus(shop / "prometheus", address(worker)) as prometheus:
            prometheus.wait_for("up", 1)
            prometheus.wait_for("count(streamlib_worker_ready == 1)", 2)
            publish(cli, redis_url, 0, EVENTS)
            prometheus.wait_for(f'sum without(slot) ({COUNTED[:-1]}, outcome="ok"}})', EVENTS)
            by_slot = prometheus.ask("query", query=f"sum by (slot) ({COUNTED})")["result"]
            slots = {series["metric"]["slot"] for series in by_slot}
            assert slots <= {"0", "1"}
            assert sum(float(series["value"][1]) for series in by_slot) == EVENTS
            ready = prometheus.ask("query", query="streamlib_worker_ready")["result"]
            assert {series["metric"]["slot"] for series in ready} == {"0", "1"}
            prometheus.scraped()


def test_a_worker_that_is_gone_is_seen_as_down(shop: Path, redis_url: str) -> None:
    with WorkerProc("shop:app", redis_url, cwd=shop) as worker:
        worker.wait_ready()
        with Prometheus(shop / "prometheus", address(worker)) as prometheus:
            prometheus.wait_for("up", 1)
            worker.kill9()
            prometheus.wait_for("up", 0)
            prometheus.wait_for("absent(streamlib_worker_ready == 1)", 1)
