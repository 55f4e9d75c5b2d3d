"""Where a password may stand in memory, and that no text about it shows it: objects, errors, logs, dead letters."""

import asyncio
import io
import logging
import re
import traceback
from pathlib import Path
from typing import Any

import pytest

from streamlib import App
from streamlib.errors import ConfigError, RedisUnavailable
from streamlib.logs import secrets_of, setup_logging
from streamlib.redisio.address import read_address
from streamlib.redisio.connection import RedisDoor, clients_of
from streamlib.redisio.dead_letter import Failure
from streamlib.redisio.failures import CLIENT_ERRORS, translate
from streamlib.redisio.login import with_password
from streamlib.settings import LogSettings, RedisSettings, load_settings
from tests.helpers.canary import FRAGMENT, PASSWORD, assert_hidden, give, leaks
from tests.helpers.servers import HOST

NOWHERE = (
    f"redis://{HOST}:1",
    f"rediss://{HOST}:1",
    f"sentinel://{HOST}:1/x",
    f"cluster://{HOST}:1",
    "unix:///nowhere",
)


@pytest.mark.parametrize("way", ["environment", "settings file", "password file", "option"])
@pytest.mark.parametrize("url", NOWHERE)
async def test_no_object_and_no_error_shows_the_password(url: str, way: str, tmp_path: Path) -> None:
    environ = give(way, url, tmp_path).environment | {"STREAMLIB_REDIS_RETRY_S": "0", "STREAMLIB_REDIS_TIMEOUT_S": "1"}
    file = tmp_path / "streamlib.toml" if way == "settings file" else None
    settings = load_settings(environ=environ, file=file)
    app, door, clients = App("shop", settings=settings), RedisDoor.open(settings.redis), clients_of(settings.redis)
    thread = door.sync_client()
    things: list[Any] = [
        settings, settings.redis, with_password(settings.redis), read_address(settings.redis.url), app, door,
        door._shared, door.lane(), thread, thread._client, clients, clients.client(1), vars(clients),
    ]  # fmt: skip
    texts = {f"{n} {type(one).__name__}": f"{one!r} {one} {[one]}" for n, one in enumerate(things)}
    for failing in (app.open(), door.execute("PING"), asyncio.to_thread(thread.execute, "PING")):
        with pytest.raises((RedisUnavailable, *CLIENT_ERRORS)) as raised:
            await failing
        told = [raised.value, translate(raised.value, settings.redis.url)]
        for error in told:
            texts[f"{failing!r} {error!r}"] = "".join(traceback.format_exception(error))
    thread.close()
    await door.close()
    await clients.close()
    assert_hidden(texts)


@pytest.mark.parametrize("way", ["environment", "password file", "option"])
def test_every_way_gives_the_same_password(way: str, tmp_path: Path) -> None:
    given = load_settings(environ=give(way, f"cluster://{HOST}:1", tmp_path).environment).redis
    address = read_address(with_password(given).url)
    assert (address.options["username"], address.options["password"]) == ("app", PASSWORD)
    assert PASSWORD in secrets_of(with_password(given).url)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file or directory; it must be there, readable for this process"),
        (b"", "must hold the password, and nothing else, on one line"),
        (b"\n", "must hold the password, and nothing else, on one line"),
        (f"user\n{PASSWORD}\n".encode(), "must hold the password, and nothing else, on one line"),
        (b"\xff\xfe" + FRAGMENT.encode(), "no text in UTF-8"),
    ],
)
def test_a_password_file_that_holds_none_is_named_and_not_shown(
    content: bytes | None, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "password"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"redis.password_file {path}.*{re.escape(says)}") as raised:
        RedisDoor.open(RedisSettings(url="redis://h", password_file=str(path)))
    assert not leaks("".join(traceback.format_exception(raised.value)))


@pytest.mark.parametrize("url", ["redis://app:other@h", "redis://h?password=other"])
def test_two_passwords_are_refused(url: str, tmp_path: Path) -> None:
    (tmp_path / "password").write_text(PASSWORD)
    with pytest.raises(ConfigError, match=r"redis.url has a password, and redis.password_file names another"):
        RedisDoor.open(RedisSettings(url=url, password_file=str(tmp_path / "password")))


def test_a_line_feed_at_its_end_and_nothing_else_is_taken_off(tmp_path: Path) -> None:
    path = tmp_path / "password"
    for ending in ("", "\n", "\r\n"):
        path.write_bytes(f" {PASSWORD} {ending}".encode())
        filled = with_password(RedisSettings(url="redis://app@h:1/2", password_file=str(path)))
        assert f" {PASSWORD} " in secrets_of(filled.url)
        assert filled.url.endswith("@h:1/2")


@pytest.mark.parametrize("before", [0, 1_970, 7_980, 15_980])
def test_a_password_at_the_cut_of_a_long_text_is_hidden_whole(before: int) -> None:
    url = f"redis://app:{FRAGMENT}@h:1"
    stream = io.StringIO()
    setup_logging(LogSettings(format="json"), secrets=secrets_of(url), stream=stream)
    try:
        try:
            raise ValueError(f"{'x' * before}{url}{'y' * before}")
        except ValueError as error:
            logging.getLogger("streamlib.test").exception(str(error), extra={"error": str(error)})
            failure = Failure.of("max_attempts", error)
    finally:
        logging.getLogger().handlers.clear()
    assert FRAGMENT[:6] not in stream.getvalue() + failure.error + failure.traceback


def test_a_dead_letter_keeps_no_password_of_an_address() -> None:
    urls = (f"postgres://me:{FRAGMENT}@db/x", f"https://h/?access=1&api_password={FRAGMENT}&x=1")
    for url in urls:
        failure = Failure.of("max_attempts", ValueError(f"cannot reach {url}"))
        assert not leaks(failure.error + failure.traceback)
        assert "cannot reach" in failure.error


def test_a_dead_letter_holds_no_values_of_variables() -> None:
    def handler(card: str) -> None:
        raise RuntimeError("refused")

    number = "-".join(["4111"] * 4)
    with pytest.raises(RuntimeError) as raised:
        handler(number)
    failure = Failure.of("max_attempts", raised.value)
    assert "refused" in failure.traceback
    assert number not in failure.error + failure.traceback
