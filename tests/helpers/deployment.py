"""Reads the deployment files: image, compose file, alert rules, dashboard, and the commands in them."""

import json
import re
import shlex
from collections.abc import Iterator
from typing import Any

import yaml

from tests.helpers.source_tree import ROOT

OUR_IMAGE = "streamlib:local"

YamlMap = dict[str, Any]


def load_yaml(path: str) -> YamlMap:
    loaded = yaml.safe_load((ROOT / path).read_text())
    assert isinstance(loaded, dict), f"{path} is not a mapping"
    return loaded


def compose_services() -> dict[str, YamlMap]:
    return dict(load_yaml("docker-compose.yml")["services"])


def our_services() -> dict[str, YamlMap]:
    """The services that run the streamlib image."""
    return {name: service for name, service in compose_services().items() if service.get("image") == OUR_IMAGE}


def dockerfile() -> list[tuple[str, str]]:
    """The image's instructions in order, continuation lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [(name.upper(), rest.strip()) for name, _, rest in (line.partition(" ") for line in lines if line)]


def alert_rules() -> list[YamlMap]:
    return [rule for group in load_yaml("config/alerts.yml")["groups"] for rule in group["rules"]]


def dashboard() -> YamlMap:
    loaded = json.loads((ROOT / "deploy/grafana/dashboards/streamlib.json").read_text())
    assert isinstance(loaded, dict)
    return loaded


def dashboard_expressions() -> list[str]:
    """The PromQL of every panel and annotation, with the dashboard's variables filled in."""
    board = dashboard()
    found = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    found += [annotation["expr"] for annotation in board["annotations"]["list"]]
    filled = [expression.replace("$__rate_interval", "1m") for expression in found]
    return [re.sub(r"\$(topic|group|handler)\b", ".*", expression) for expression in filled]


def metrics_in(expression: str) -> set[str]:
    """The streamlib metrics that PromQL reads, a histogram's series under the histogram's name."""
    names = set(re.findall(r"\bstreamlib_[a-z0-9_]+", expression))
    return {re.sub(r"_(bucket|count|sum)$", "", name) for name in names}


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every `streamlib ...` command line of the repository: where it stands, and its arguments."""
    entry = [rest for name, rest in dockerfile() if name == "ENTRYPOINT"]
    assert entry == ['["streamlib"]'], "the commands below are arguments of streamlib"
    yield from (("Dockerfile", json.loads(rest)) for name, rest in dockerfile() if name == "CMD")
    for name, service in our_services().items():
        where = f"docker-compose.yml: {name}"
        if service.get("entrypoint") == ["sh", "-c"]:
            yield from ((where, arguments) for arguments in _commands_in(service["command"][0]))
        else:
            yield where, service["command"]
    for rule in alert_rules():
        line = re.sub(r"\{\{.*?\}\}", "x", rule["annotations"]["command"])
        yield f"config/alerts.yml: {rule['alert']}", _arguments(line)


def _commands_in(script: str) -> Iterator[list[str]]:
    """The arguments of each `streamlib ...` in shell lines, also behind a pipe, `&&` or a folder."""
    for line in script.splitlines():
        if found := re.search(r"(?:^\s*|&& |\| |\.venv/bin/|^\$ )(streamlib .*)", line):
            yield _arguments(found.group(1))


def _arguments(line: str) -> list[str]:
    """The words after `streamlib`, up to a comment, a pipe, a redirection or the next command."""
    words = shlex.split(line, comments=True)
    assert words[0] == "streamlib", line
    end = next((at for at, word in enumerate(words) if word in {"|", "&&", "&", ";"} or word[0] in "<>"), len(words))
    return words[1:end]
