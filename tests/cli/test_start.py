"""The root command: fast help, options before and behind a verb, where settings come from, errors in short."""

import subprocess
import sys
from pathlib import Path

import pytest

from streamlib.cli.exits import Exit, exit_code
from streamlib.cli.root import COMMANDS
from streamlib.errors import (
    AppImportError,
    ConfigError,
    NotFound,
    PublishError,
    RedisUnavailable,
    RedisUnfit,
    Refused,
    SettingsError,
    StreamlibError,
    TopicMismatch,
    WrongKeyType,
)
from tests.cli.conftest import Cli, environment

HEAVY = (
    "redis", "rich", "prometheus_client", "asyncio", "msgspec", "streamlib.app", "streamlib.redisio",
    "streamlib.settings", "streamlib.logs", "traceback", "logging", "ssl", "http",
)  # fmt: skip


@pytest.mark.parametrize("args", [["--help"], ["--version"]])
def test_help_imports_nothing_but_click(args: list[str]) -> None:
    script = (
        "import sys\nfrom streamlib.cli import main\n"
        f"try:\n    main({args})\nexcept SystemExit as end:\n    assert end.code == 0\n"
        f"heavy = [name for name in {HEAVY} if name in sys.modules]\nassert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_help_lists_every_command_and_the_exit_codes(cli: Cli) -> None:
    done = cli("--help")
    assert done.code == 0
    assert [name for name in COMMANDS if f"  {name} " not in done.out] == []
    assert "7 drain" in done.out


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "demo"])
def test_every_command_has_help_with_the_shared_options(cli: Cli, name: str) -> None:
    done = cli(name, "--help")
    assert (done.code, done.err) == (0, "")
    assert "--redis URL" in done.out


def test_an_unknown_command_is_a_usage_error_with_a_hint(cli: Cli) -> None:
    done = cli("dql", "ls")
    assert done.code == 2
    assert "no command 'dql'; did you mean 'dlq'?" in done.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StreamlibError, Exit.FAILED),
        (RedisUnfit, Exit.FAILED),
        (WrongKeyType, Exit.FAILED),
        (PublishError, Exit.FAILED),
        (ConfigError, Exit.USAGE),
        (SettingsError, Exit.USAGE),
        (AppImportError, Exit.USAGE),
        (TopicMismatch, Exit.USAGE),
        (RedisUnavailable, Exit.NO_REDIS),
        (NotFound, Exit.NOT_FOUND),
        (Refused, Exit.REFUSED),
    ],
)
def test_every_error_has_its_exit_code(error: type[StreamlibError], code: Exit) -> None:
    assert exit_code(error("why")) is code


def test_options_stand_before_or_behind_the_verb(cli: Cli, redis_url: str) -> None:
    for args in (("--redis", redis_url, "info", "--json"), ("info", "--json", "--redis", redis_url)):
        done = cli(*args)
        assert (done.code, done.json) == (0, []), done.err
    both = cli("--redis", "redis://127.0.0.1:1", "dlq", "--redis", "redis://127.0.0.1:2", "ls", "--redis", redis_url)
    assert both.code == 0, both.err


def test_flags_win_over_the_environment_over_the_file(cli: Cli, shop: Path, redis_url: str) -> None:
    (shop / "streamlib.toml").write_text('[redis]\nurl = "redis://127.0.0.1:1"\n')
    (shop / "other.toml").write_text(f'[redis]\nurl = "{redis_url}"\n')
    assert cli("info").code == 3
    assert cli("info", "--config", "other.toml").code == 0
    assert cli("info", env={"STREAMLIB_REDIS_URL": redis_url}).code == 0
    assert cli("info", "--redis", "redis://127.0.0.1:1", env={"STREAMLIB_REDIS_URL": redis_url}).code == 3


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ({"STREAMLIB_WORKER_CONCURENCY": "3"}, "worker.concurency; known in worker:"),
        ({"STREAMLIB_WORKER_LEASE_MS": "soon"}, "worker.lease_ms = 'soon'"),
        ({"STREAMLIB_WORKER_LEASE_MS": "1"}, "worker.lease_ms = 1: allowed are 200 to"),
        ({"STREAMLIB_REDIS_URL": "http://here"}, "use redis://host:port/db"),
    ],
)
def test_wrong_settings_are_named_and_exit_with_2(cli: Cli, env: dict[str, str], named: str) -> None:
    done = cli("info", env=env)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert named in done.err
    assert "Traceback" not in done.err


def test_errors_show_a_traceback_only_when_asked(cli: Cli) -> None:
    plain = cli("info", "--redis", "redis://127.0.0.1:1")
    assert plain.code == 3
    assert plain.out == ""
    assert "redis://127.0.0.1:1 is not reachable" in plain.err
    assert "Traceback" not in plain.err
    for flags in (["-v"], ["--log-level", "debug"]):
        assert "Traceback" in cli("info", "--redis", "redis://127.0.0.1:1", *flags).err


def test_no_output_shows_a_password(cli: Cli) -> None:
    url = "redis://app:c%40nary-word@127.0.0.1:1/0"
    for args in (["info", "-v"], ["dlq", "ls", "-v", "--log-format", "json"], ["run", "shop:app", "-v", "--no-http"]):
        done = cli(*args, "--redis", url)
        assert done.code == 3, done.err
        assert "nary-word" not in done.err + done.out
        assert "app:***@127.0.0.1" in done.err
