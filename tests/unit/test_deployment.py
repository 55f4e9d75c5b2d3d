"""The deployment files: they parse, keep their rules, and name only commands and metrics that exist."""

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import click
import pytest
import yaml

from streamlib.cli import main
from streamlib.metrics.catalogue import METRIC_NAMES
from streamlib.settings import Settings, load_settings
from tests.helpers import deployment
from tests.helpers.source_tree import ROOT
from workers.flights.jsonl import lines

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not on PATH")

# Metrics that are for alerts of one's own or for autoscalers, not for the first dashboard.
NOT_SHOWN = {"streamlib_group_consumers", "streamlib_exporter_look_seconds"}

COMMANDS = list(deployment.commands())


# --- the README's one-liners and .ci/run


def test_ci_runs_the_readmes_very_test_command() -> None:
    one_liner = re.search(r"^python3 -m venv \.venv .*pytest.*$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert one_liner
    assert one_liner.group() in (ROOT / "README.md").read_text().splitlines()


def test_readme_starts_the_demo_on_a_fresh_machine() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert any(re.fullmatch(r"python3 -m venv \.venv && .*\.venv/bin/streamlib demo.*", line) for line in lines)


def test_wheel_carries_both_packages_and_their_entry_points() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["streamlib", "workers"]
    assert project["project"]["scripts"] == {"streamlib": "streamlib.cli:main"}
    assert project["project"]["entry-points"]["pytest11"] == {"streamlib": "streamlib.testing.plugin"}
    assert (ROOT / "streamlib/py.typed").exists()


# --- settings


def test_settings_file_lists_every_setting_with_its_default() -> None:
    path = ROOT / "config/streamlib.toml"
    listed = {f"{section}.{field}" for section, fields in tomllib.loads(path.read_text()).items() for field in fields}
    known = {
        f"{section}.{field}"
        for section in Settings.__struct_fields__
        for field in getattr(Settings(), section).__struct_fields__
    }
    assert listed == known
    assert load_settings(file=path, environ={}) == Settings()


# --- the image


def test_image_is_built_in_stages_and_runs_without_root() -> None:
    instructions = deployment.dockerfile()
    stages = [rest.split()[0] for name, rest in instructions if name == "FROM"]
    assert stages == ["python:3.13-slim", "python:3.13-slim"]
    assert [rest for name, rest in instructions if name == "USER"] == ["10001:10001"]


def test_image_gets_signals_itself_and_writes_nowhere() -> None:
    instructions = dict(deployment.dockerfile())
    assert isinstance(json.loads(instructions["ENTRYPOINT"]), list)
    assert isinstance(json.loads(instructions["CMD"]), list)
    assert "PYTHONDONTWRITEBYTECODE=1" in instructions["ENV"]


def test_image_copies_only_what_exists_and_is_sent() -> None:
    copies = [rest.split() for name, rest in deployment.dockerfile() if name == "COPY"]
    sources = {word for words in copies if not words[0].startswith("--") for word in words[:-1]}
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert sources == sent
    assert not [source for source in sources if not (ROOT / source).exists()]


# --- compose


@pytest.mark.parametrize("name", ["worker", "projector"])
def test_service_scales_to_any_number_of_replicas(name: str) -> None:
    service = deployment.our_services()[name]
    assert "container_name" not in service
    assert "ports" not in service
    assert service["healthcheck"]["test"][0] == "CMD"
    assert "/readyz" in service["healthcheck"]["test"][-1]


@pytest.mark.parametrize("name", deployment.our_services())
def test_service_is_confined_and_has_time_to_drain(name: str) -> None:
    service = deployment.our_services()[name]
    grace = float(service["stop_grace_period"].removesuffix("s"))
    drain = float(service["environment"]["STREAMLIB_WORKER_DRAIN_S"])
    assert grace > drain
    assert service["init"] is True
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["depends_on"]["redis"]["condition"] == "service_healthy"
    assert load_settings(environ=service["environment"], file=ROOT / "config/streamlib.toml").redis.url


def test_redis_keeps_what_it_confirmed() -> None:
    redis = deployment.compose_services()["redis"]
    arguments = dict(zip(redis["command"][1::2], redis["command"][2::2], strict=True))
    assert arguments["--appendonly"] == "yes"
    assert arguments["--maxmemory-policy"] == "noeviction"
    assert redis["volumes"] == ["redis:/data"]
    assert redis["healthcheck"]["test"] == ["CMD", "redis-cli", "ping"]


def test_services_write_only_where_a_volume_is() -> None:
    environment = next(rest for name, rest in deployment.dockerfile() if name == "ENV")
    assert "FLIGHTS_DB=/data/" in environment
    assert [rest for name, rest in deployment.dockerfile() if name == "VOLUME"] == ['["/data"]']
    for service in deployment.our_services().values():
        assert service["volumes"] == ["effects:/data"]


def test_producer_prints_the_lines_that_publish_reads() -> None:
    printed = [json.loads(line) for line in lines(limit=100)]
    assert len(printed) == 100
    assert all(set(line) == {"type", "data", "id"} for line in printed)
    assert len({line["id"] for line in printed}) == 100
    assert {line["type"] for line in printed} <= {"FlightDeparted", "FlightArrived", "FlightCancelled"}


def test_services_run_every_group_of_the_app_once() -> None:
    groups = [
        argument
        for service in deployment.our_services().values()
        for option, argument in zip(service["command"], service["command"][1:], strict=False)
        if option == "--group"
    ]
    assert sorted(groups) == [
        "airport-board", "alerts", "carrier-board", "delays", "flights-by-carrier", "flights-by-origin",
    ]  # fmt: skip


def test_ports_are_open_to_this_machine_only() -> None:
    ports = [port for service in deployment.compose_services().values() for port in service.get("ports", [])]
    assert ports
    assert not [port for port in ports if not port.startswith("127.0.0.1:")]


def test_mounted_files_exist() -> None:
    mounts = [m for service in deployment.compose_services().values() for m in service.get("volumes", [])]
    local = [mount.split(":")[0] for mount in mounts if mount.startswith("./")]
    assert local
    assert not [path for path in local if not (ROOT / path).exists()]


# --- commands


@pytest.mark.parametrize(("where", "arguments"), COMMANDS, ids=[where for where, _ in COMMANDS])
def test_command_is_one_that_the_command_line_knows(where: str, arguments: list[str]) -> None:
    command: click.Command = main
    context = click.Context(main, info_name="streamlib")
    rest = list(arguments)
    while isinstance(command, click.Group):
        child = command.get_command(context, rest[0])
        assert child is not None, f"{where}: streamlib has no command {rest[0]!r}"
        command, context = child, click.Context(child, parent=context, info_name=rest.pop(0))
    parsed = command.make_context(context.info_name, rest, parent=context.parent)
    assert parsed.command is command


# --- Prometheus


def test_prometheus_finds_every_replica_by_name() -> None:
    config = deployment.load_yaml("config/prometheus.yml")
    job = next(job for job in config["scrape_configs"] if job["job_name"] == "streamlib")
    [discovery] = job["dns_sd_configs"]
    served = [name for name, service in deployment.our_services().items() if "--http" in service["command"]]
    assert discovery["type"] == "A"
    assert sorted(discovery["names"]) == sorted(served)
    for name in served:
        assert f"0.0.0.0:{discovery['port']}" in deployment.our_services()[name]["command"]
    assert config["rule_files"] == ["alerts.yml"]


def test_alerts_read_only_metrics_that_exist() -> None:
    read = {name for rule in deployment.alert_rules() for name in deployment.metrics_in(rule["expr"])}
    assert read
    assert not read - METRIC_NAMES


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    for rule in deployment.alert_rules():
        assert rule["labels"]["severity"] in {"page", "warn", "info"}
        assert set(rule["annotations"]) == {"summary", "action", "command"}


@needs_promtool
@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "config", "config/prometheus.yml"],
        ["check", "rules", "config/alerts.yml"],
        ["test", "rules", "tests/unit/alerts_test.yml"],
    ],
    ids=["config", "rules", "alerts"],
)
def test_promtool_accepts(arguments: list[str]) -> None:
    done = _promtool(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr


# --- Grafana


def test_dashboard_reads_only_metrics_that_exist() -> None:
    read = {name for text in deployment.dashboard_expressions() for name in deployment.metrics_in(text)}
    variables = {
        name
        for variable in deployment.dashboard()["templating"]["list"]
        for name in deployment.metrics_in(str(variable["query"]))
    }
    assert read
    assert not (read | variables) - METRIC_NAMES


def test_dashboard_and_alerts_together_leave_no_metric_unseen() -> None:
    expressions = deployment.dashboard_expressions() + [rule["expr"] for rule in deployment.alert_rules()]
    seen = {name for text in expressions for name in deployment.metrics_in(text)}
    assert not METRIC_NAMES - seen - NOT_SHOWN


def test_dashboard_panels_have_their_own_place_and_say_what_they_show() -> None:
    panels = deployment.dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [cell for panel in panels for cell in _cells(panel["gridPos"])]
    assert len(set(cells)) == len(cells), "two panels overlap"
    assert not [panel["title"] for panel in panels if panel["type"] != "row" and not panel.get("description")]


@needs_promtool
def test_dashboard_speaks_valid_promql(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{at}", "expr": expression}
        for at, expression in enumerate(deployment.dashboard_expressions())
    ]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = _promtool("check", "rules", str(file))
    assert done.returncode == 0, done.stdout + done.stderr


def test_dashboard_is_provisioned_where_compose_mounts_it() -> None:
    [provider] = deployment.load_yaml("deploy/grafana/provisioning/dashboards/streamlib.yml")["providers"]
    [source] = deployment.load_yaml("deploy/grafana/provisioning/datasources/prometheus.yml")["datasources"]
    grafana = deployment.compose_services()["grafana"]
    mounts = {mount.split(":")[1]: mount.split(":")[0] for mount in grafana["volumes"]}
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert mounts[provider["options"]["path"]] == "./deploy/grafana/dashboards"
    assert home.parent == Path(provider["options"]["path"])
    assert (ROOT / "deploy/grafana/dashboards" / home.name).exists()
    datasource = next(v for v in deployment.dashboard()["templating"]["list"] if v["name"] == "datasource")
    assert datasource["current"]["value"] == source["uid"]
    assert source["url"] == "http://prometheus:9090"


def _cells(place: dict[str, int]) -> list[tuple[int, int]]:
    return [
        (x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])
    ]


def _promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    assert PROMTOOL is not None
    return subprocess.run([PROMTOOL, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
