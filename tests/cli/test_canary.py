"""No output, log, metric, key or command line shows the password, whichever way it was given and whatever fails."""

import contextlib
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis

from tests.cli.conftest import Cli, command_line, environment
from tests.helpers.canary import (
    PASSWORD,
    USER,
    WRONG,
    Given,
    add_user,
    assert_hidden,
    command_lines,
    give,
    stored,
    with_login,
)
from tests.helpers.cluster import ClusterTopology
from tests.helpers.sentinel import SentinelTopology
from tests.helpers.servers import HOST, RedisProc, free_port
from tests.helpers.waiting import wait_until
from tests.helpers.workers import WorkerProc

APP = """
import logging
from streamlib import App, Event, ReadModel, Reject, Retry

app = App("bank")

class Moved(Event):
    account: str
    n: int = 0

moves = app.topic("moves", Moved, key="account")

def fail() -> None:
    # As careless as a handler can be.
    url = app.settings.redis.url
    extra = {"settings": app.settings, "url": url, "password": url, "nested": {"urls": [url]}}
    logging.getLogger("bank").warning("asked %r at %s", app.redis, url, extra=extra)
    raise ValueError(f"cannot reach {url} with {app.settings} by {app.redis._shared!r}")

@app.handler(moves, group="audit", retry=Retry(max_attempts=1))
async def look(event: Moved) -> None:
    if event.n < 0:
        fail()

@app.handler(moves, group="ledger", ordering="key", on_dead="block", retry=Retry(max_attempts=1))
async def book(event: Moved) -> None:
    if event.n < 0:
        fail()

@app.handler(moves, group="later", retry=Retry(max_attempts=5, base=3600, cap=3600))
async def later(event: Moved) -> None:
    if event.n < 0:
        fail()

class Balance(ReadModel):
    account: str
    total: int

balances = app.projection("balances", moves, Balance, key="account")

@balances.on(Moved)
def add(row: Balance | None, event: Moved) -> Balance:
    return Balance(account=event.account, total=(row.total if row else 0) + event.n)
"""
EVENTS = "\n".join(f'{{"type": "Moved", "data": {{"account": "a{n}", "n": {n}}}}}' for n in range(-2, 3))

LOOKS = [
    "info", "info --json", "info moves", "ps", "ps --json", "groups ls", "groups ls --json", "keys ls",
    "keys ls --json", "dlq ls", "dlq ls --json", "dlq groups", "dlq groups --json", "check bank:app",
    "check bank:app --json", "doctor", "doctor --json", "acl --role worker --app bank:app",
    "replay --topic moves --from begin --group audit --dry-run", "rebuild bank:app balances --dry-run",
    "schema export bank:app", "--help", "run --help", "bench --help",
]  # fmt: skip
FEWER_LOOKS = ["info --json", "dlq ls --json", "check bank:app", "doctor"]
ACTS = [
    "dlq replay --yes", "dlq purge --yes", "groups pause moves later", "groups resume moves later",
    "groups rm moves later --force --yes --archive owed.jsonl", "replay --topic moves --from begin --out range.jsonl",
    "rebuild bank:app balances --yes",
]  # fmt: skip
LOG_FORMATS = {True: "json", False: "console"}
LOGGED: tuple[list[str], ...] = (["--log-format", "json", "-v"], ["-v"], [])


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "bank.py").write_text(APP)
    return tmp_path


def place(kind: str, directory: Path, server_kind: str, stack: contextlib.ExitStack) -> tuple[str, RedisProc]:
    """The address of a server, sentinels or a cluster whose user has the password; and where the keys lie."""
    if kind == "sentinel":
        rig = stack.enter_context(SentinelTopology(directory / "rig", kind=server_kind, replicas=0, sentinels=1))
        for server in (*rig.servers, *rig.sentinels):
            with server.client() as client:
                add_user(client)
        return rig.url, rig.servers[0]
    if kind == "cluster":
        cluster = stack.enter_context(ClusterTopology(directory / "rig", kind=server_kind, primaries=1))
        with cluster.nodes[0].client() as client:
            add_user(client)
        return cluster.url, cluster.nodes[0]
    server = stack.enter_context(RedisProc(server_kind, directory / "server"))
    with server.client() as client:
        add_user(client)
    return server.url, server


def patient(given: Given) -> dict[str, str]:
    """Many commands start at once here."""
    return environment(given.environment | {"STREAMLIB_REDIS_TIMEOUT_S": "20"})


def run_all(verbs: Sequence[str], given: Given, directory: Path) -> dict[str, str]:
    """What these commands print, beside one another; each must have done its work."""
    started = {
        verb: subprocess.Popen(
            command_line([*verb.split(), *LOGGED[at % len(LOGGED)]] if "--help" not in verb else verb.split()),
            cwd=directory, env=patient(given),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for at, verb in enumerate(verbs)
    }  # fmt: skip
    texts = {verb: process.communicate(timeout=100)[0] for verb, process in started.items()}
    for verb, process in started.items():
        assert process.returncode in ((0, 1) if "doctor" in verb else (0, 6)), texts[verb]
    return texts


def dead_letters(client: redis.Redis) -> list[str]:
    """Their ids, as the command line writes them."""
    entries: Any = client.xrange("{moves}:dead:audit")
    return [f"moves/0/audit/{entry_id.decode()}" for entry_id, _ in entries]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("kind", "way"),
    [
        ("server", "environment"),
        ("server", "option"),
        ("sentinel", "settings file"),
        ("cluster", "password file"),
    ],
)
def test_a_whole_run_shows_the_password_nowhere(kind: str, way: str, directory: Path, server_kind: str) -> None:
    with contextlib.ExitStack() as stack:
        url, server = place(kind, directory, server_kind, stack)
        if kind == "sentinel":
            url += f"?sentinel_username={USER}&sentinel_password={quote(PASSWORD, safe='')}"
        given = give(way, url, directory)
        whole = (kind, way) == ("server", "environment")
        published = subprocess.run(
            command_line(["publish", "bank:app", "moves", "-v"]), input=EVENTS, cwd=directory, capture_output=True,
            env=patient(given), text=True, check=False, timeout=100,
        )  # fmt: skip
        assert published.returncode == 0, published.stderr
        run = ["run", "bank:app", "-p", "2", "--http", f"{HOST}:0", "-v", "--log-format", LOG_FORMATS[whole]]
        with (
            WorkerProc("bank:app", "", cwd=directory, env=given.environment, command=command_line(run)) as worker,
            server.client() as client,
        ):
            worker.wait_ready()
            wait_until(lambda: client.xlen("{moves}:dead:audit") == 2, 60, what="dead letters")
            wait_until(lambda: client.hlen("{moves}:keys:ledger") == 2, 60, what="halted keys")
            wait_until(lambda: client.zcard("{moves}:retry:later") == 2, 60, what="retries")
            letter = f"dlq show {dead_letters(client)[0]}"
            texts = run_all([*(LOOKS if whole else FEWER_LOOKS), letter, f"{letter} --json"], given, directory)
            texts |= {path: worker.get(path)[1] for path in ("/metrics", "/livez", "/readyz")}
            texts["CLIENT LIST"] = str(client.execute_command("CLIENT", "LIST"))
            texts["command lines"] = command_lines(worker.pid)
            worker.term()
            worker.wait(60)
            texts["log"] = worker.log()
            texts |= {"publish": published.stdout + published.stderr, "stored": stored(client)}
        if whole:
            for act in ACTS:
                texts |= run_all([act], given, directory)
            texts |= {path.name: path.read_text() for path in directory.glob("*.jsonl")}
            assert {"owed.jsonl", "range.jsonl"} <= set(texts)
    assert "-p 2" in texts["command lines"]
    assert texts["command lines"].count("streamlib run") == 3, "the parent and its two"
    assert "cannot reach" in texts["stored"], "the handlers did tell"
    assert "cannot reach" in texts["log"]
    assert "streamlib_events_received_total" in texts["/metrics"]
    assert_hidden(texts)


@pytest.mark.parametrize("way", ["environment", "password file", "option"])
def test_what_fails_before_it_begins_does_not_show_it_either(way: str, directory: Path, server_kind: str) -> None:
    with contextlib.ExitStack() as stack:
        url, server = place("server", directory, server_kind, stack)
        nobody = f"redis://{HOST}:{free_port()}"
        cases = {
            "wrong password": (url, WRONG, "info", 3, "refused our credentials"),
            "a worker's wrong password": (url, WRONG, "run bank:app --no-http", 3, "refused our credentials"),
            "nobody there": (nobody, PASSWORD, "run bank:app --no-http", 3, "is not reachable"),
            "no address": (f"redis://{HOST}:{server.port}/x", PASSWORD, "check bank:app", 2, "database is a number"),
            "no sentinel": (f"sentinel://{HOST}:{server.port}/x", PASSWORD, "info", 2, "is no sentinel"),
            "no cluster": (f"cluster://{HOST}:{server.port}", PASSWORD, "doctor", 2, "is no node of a cluster"),
        }
        texts = {}
        for at, (name, (address, password, verb, code, says)) in enumerate(cases.items()):
            given = give(way, address, directory, password)
            done = subprocess.run(
                command_line([*verb.split(), *LOGGED[at % 2]]), cwd=directory, env=patient(given),
                capture_output=True, text=True, check=False, timeout=60,
            )  # fmt: skip
            assert done.returncode == code, done.stderr
            assert says in done.stderr
            texts[name] = done.stdout + done.stderr
    assert_hidden(texts)


def test_a_password_in_the_arguments_is_warned_of(cli: Cli, server_kind: str, tmp_path: Path) -> None:
    """Everybody on the machine reads them. A child of `run -p` would have them too."""
    with RedisProc(server_kind, tmp_path / "server") as server, server.client() as client:
        add_user(client)
        for flag in (["--redis", with_login(server.url)], ["--redis", give("option", server.url, tmp_path).url]):
            done = cli("info", *flag)
            assert done.code == 0
            assert "password_in_arguments" in done.err
            assert "STREAMLIB_REDIS_PASSWORD_FILE" in done.err
            assert_hidden({"out": done.out, "err": done.err})
        assert "password_in_arguments" not in cli("info", "--redis", server.url).err
