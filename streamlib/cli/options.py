"""Options that every command takes, before or behind its name, and the settings they lead to."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import click

from streamlib.cli.exits import DEBUG, SECRETS

F = TypeVar("F", bound=Callable[..., Any])

_NAMES = ("redis_url", "config", "namespace", "log_level", "log_format", "verbose")
_SETTING_OF = {
    "redis_url": "redis.url",
    "namespace": "redis.namespace",
    "log_level": "log.level",
    "log_format": "log.format",
}


@dataclass(frozen=True)
class Given:
    """The shared options as they were given, before the command's name and behind it (which wins)."""

    ctx: click.Context
    values: dict[str, Any] = field(default_factory=dict)

    def settings(self, flags: Mapping[str, Any] | None = None) -> Any:
        """Settings under these options and the command's flags; sets logging up. Raises ConfigError."""
        import logging

        from streamlib.logs import forms_of, secrets_of, setup_logging
        from streamlib.redisio.login import read_password
        from streamlib.settings import load_settings

        shared = {setting: self.values.get(name) for name, setting in _SETTING_OF.items()}
        if self.values.get("verbose"):
            shared["log.level"] = "debug"
        loaded = load_settings(shared | dict(flags or {}), file=self.values.get("config"))
        secrets = secrets_of(loaded.redis.url)
        if loaded.redis.password_file:
            secrets += forms_of(read_password(loaded.redis.password_file))
        self.ctx.meta[SECRETS] = [secret for secret in secrets if len(secret) > 2]
        self.ctx.meta[DEBUG] = loaded.log.level == "debug"
        setup_logging(loaded.log, secrets=secrets)
        if secrets_of(str(shared["redis.url"] or "")):
            others = "STREAMLIB_REDIS_URL or STREAMLIB_REDIS_PASSWORD_FILE keeps it to this process"
            logging.getLogger("streamlib.cli").warning("password_in_arguments", extra={"advice": others})
        return loaded


_OPTIONS = (
    click.option("--redis", "redis_url", metavar="URL", help="Address of Redis. [env: STREAMLIB_REDIS_URL]"),
    click.option(
        "--config",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        envvar="STREAMLIB_CONFIG",
        help="Settings file, instead of streamlib.toml here. [env: STREAMLIB_CONFIG]",
    ),
    click.option("--namespace", help="Stands before every key. [env: STREAMLIB_REDIS_NAMESPACE]"),
    click.option(
        "--log-level",
        type=click.Choice(["debug", "info", "warning", "error"]),
        help="What is logged, to stderr. [env: STREAMLIB_LOG_LEVEL]",
    ),
    click.option(
        "--log-format",
        type=click.Choice(["console", "json"]),
        help="How it is logged. [env: STREAMLIB_LOG_FORMAT]",
    ),
    click.option("-v", "--verbose", is_flag=True, help="As --log-level debug; errors show a traceback."),
)  # fmt: skip


def shared_options(function: F) -> F:
    """Give a command the shared options; it receives them folded into one argument `given`."""

    @functools.wraps(function)
    def with_given(*args: Any, **kwargs: Any) -> Any:
        ctx = click.get_current_context()
        own = {name: kwargs.pop(name) for name in _NAMES}
        before = ctx.obj.values if isinstance(ctx.obj, Given) else {}
        ctx.obj = Given(ctx, before | {name: value for name, value in own.items() if value})
        if ctx.obj.values.get("verbose"):
            ctx.meta[DEBUG] = True
        return function(*args, given=ctx.obj, **kwargs)

    decorated: Any = with_given
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

partition_option = click.option("--partition", type=click.IntRange(min=0), help="Only this partition.")
