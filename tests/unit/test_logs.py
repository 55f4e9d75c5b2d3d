"""Logs: one line per record, no passwords, nothing that steers a terminal or forges a line."""

import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from streamlib.logs import hide_passwords, neutralise, secrets_of, setup_logging
from streamlib.settings import LogSettings

HOSTILE = "ok\r\n12:00:00.000 INFO    paid amount=1\x1b[2J\x9b31m\u2028\u202egnp.exe\x7f"


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def written() -> Callable[..., str]:
    """`written(format, act, secrets=...)`: what `act(logger)` writes."""

    def write(log_format: Any, act: Callable[[logging.Logger], None], *, secrets: tuple[str, ...] = ()) -> str:
        stream = io.StringIO()
        setup_logging(LogSettings(level="info", format=log_format), secrets=secrets, stream=stream)
        act(logging.getLogger("streamlib.test"))
        return stream.getvalue()

    return write


def failing(text: str) -> Callable[[logging.Logger], None]:
    def act(log: logging.Logger) -> None:
        try:
            raise ValueError(text)
        except ValueError:
            log.exception("handler_failed", extra={"group": "email"})

    return act


def test_console_is_one_line_with_fields(written: Callable[..., str]) -> None:
    extra = {"worker": "ab 1", "n": 3, "groups": ["a", "b"], "fields": {"x": None}}
    line = written("console", lambda log: log.info("worker_started", extra=extra))
    assert line.count("\n") == 1
    assert line.rstrip().endswith('INFO    worker_started worker="ab 1" n=3 groups=a,b x=null')


def test_json_is_one_object_with_typed_fields(written: Callable[..., str]) -> None:
    extra = {"n": 3, "share": 0.5, "none": None, "groups": ["a", "b"], "level": "own", "odd": float("nan")}
    found = json.loads(written("json", lambda log: log.warning("worker_started", extra=extra)))
    assert found.pop("ts").endswith("Z")
    assert found == {
        "level": "warning", "event": "worker_started", "logger": "streamlib.test", "n": 3, "share": 0.5,
        "none": None, "groups": ["a", "b"], "level_": "own", "odd": "nan",
    }  # fmt: skip


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_no_text_forges_a_line_or_steers_the_terminal(written: Callable[..., str], log_format: str) -> None:
    out = written(log_format, lambda log: log.info("event %s", HOSTILE, extra={"error": HOSTILE, "list": [HOSTILE]}))
    assert out.count("\n") == 1
    assert not [char for char in out.rstrip("\n") if ord(char) < 32 or char in "\x7f\x9b\u2028\u202e"]


def test_traceback_lines_in_the_console_cannot_pass_for_records(written: Callable[..., str]) -> None:
    first, *rest = written("console", failing(HOSTILE)).rstrip("\n").split("\n")
    assert "handler_failed group=email" in first
    assert rest
    assert all(line.startswith("    ") for line in rest)
    assert "\x1b" not in "".join(rest)


def test_traceback_in_json_is_a_field(written: Callable[..., str]) -> None:
    found = json.loads(written("json", failing("wrong")))
    assert found["exception"].endswith("ValueError: wrong")
    assert found["group"] == "email"


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_passwords_never_come_out(written: Callable[..., str], log_format: str) -> None:
    url = "redis://app:s3cr%40t-word@db:6379/0"
    secrets = tuple(secrets_of(url))
    assert set(secrets) == {"s3cr%40t-word", "s3cr@t-word"}

    def act(log: logging.Logger) -> None:
        log.info("connected to %s", url, extra={"url": url, "password": "hunter2", "list": [url]})
        log.info("refused", extra={"error": "WRONGPASS s3cr@t-word", "nested": {"api_key": "hunter2"}})
        failing(f"cannot reach {url} with s3cr@t-word")(log)

    out = written(log_format, act, secrets=secrets)
    assert "s3cr" not in out
    assert "hunter2" not in out
    assert "app:***@db:6379" in out


def test_passwords_of_unknown_addresses_are_hidden_by_their_form() -> None:
    text = "tried redis://u:a@b@h:1/0, then unix:///run/redis.sock and rediss://:p@h"
    assert hide_passwords(text) == "tried redis://u:***@h:1/0, then unix:///run/redis.sock and rediss://:***@h"


def test_long_texts_are_cut(written: Callable[..., str]) -> None:
    out = written("json", lambda log: log.info("big", extra={"error": "x" * 1_000_000}))
    assert len(out) < 9_000
    assert "(1000000 characters)" in out


def test_level_holds_and_setting_up_again_replaces(written: Callable[..., str]) -> None:
    assert written("console", lambda log: log.debug("hidden")) == ""
    assert written("console", lambda log: log.info("once")).count("once") == 1
    assert len(logging.getLogger().handlers) == 1


def test_neutralise_keeps_line_feeds_only_when_told() -> None:
    assert neutralise("a\nb\x1b") == r"a\nb\x1b"
    assert neutralise("a\nb\x1b", keep_lines=True) == "a\nb\\x1b"
