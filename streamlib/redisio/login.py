"""The password of redis.url when it lies in a file of its own, as orchestrators mount secrets."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import msgspec

from streamlib.errors import ConfigError
from streamlib.redisio.address import read_address
from streamlib.settings import RedisSettings

_MOST_BYTES = 64 * 1024


def with_password(settings: RedisSettings) -> RedisSettings:
    """The settings with the password in `url`, for whoever connects and nobody else.

    Raises ConfigError, which names the file and never shows what is in it.
    """
    if not settings.password_file:
        return settings
    read_address(settings.url)  # refuses what is none, without its words
    parts = urlsplit(settings.url)
    user, _, hosts = parts.netloc.rpartition("@")
    if ":" in user or "password" in parse_qs(parts.query):
        raise ConfigError("redis.url has a password, and redis.password_file names another; leave one of them out")
    login = f"{user}:{quote(read_password(settings.password_file), safe='')}@{hosts}"
    return msgspec.structs.replace(settings, url=parts._replace(netloc=login).geturl(), password_file="")


def read_password(path: str) -> str:
    """What is in the file, without the line feed at its end. Raises ConfigError."""
    try:
        with Path(path).open("rb") as file:
            password = file.read(_MOST_BYTES).decode().removesuffix("\n").removesuffix("\r")
    except (OSError, UnicodeDecodeError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or "no text in UTF-8"
        raise ConfigError(
            f"redis.password_file {path}: {why}; it must be there, readable for this process, with the password alone"
        ) from None
    if not password or "\n" in password:
        raise ConfigError(f"redis.password_file {path} must hold the password, and nothing else, on one line")
    return password
