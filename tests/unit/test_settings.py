"""Settings: where they come from, what wins, and that wrong ones are refused by name and without secrets."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlib.errors import ConfigError, SettingsError
from streamlib.settings import RedisSettings, Settings, WorkerSettings, load_settings, redact

SECTIONS = ("redis", "worker", "idempotency", "retention", "limits", "log")


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No streamlib.toml of the folder that pytest was started in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(flags: dict[str, Any] | None = None, **environ: str) -> Settings:
    return load_settings(flags, environ=environ)


def test_defaults_are_those_of_the_agreement() -> None:
    settings = load()
    assert settings == Settings()
    assert settings.worker.concurrency == 16
    assert settings.worker.processes == 1
    assert (settings.worker.lease_ms, settings.worker.reclaim_ms) == (30_000, 10_000)
    assert (settings.worker.drain_s, settings.worker.crash_limit) == (25, 3)
    assert settings.worker.http == "127.0.0.1:9464"
    assert settings.idempotency.window_s == 3600
    assert settings.limits.payload_bytes == 262_144
    assert (settings.log.level, settings.log.format) == ("info", "console")


def test_flags_win_over_the_environment_over_the_file_over_defaults(empty_folder: Path) -> None:
    (empty_folder / "streamlib.toml").write_text(
        '[redis]\nurl = "redis://file"\nnamespace = "file"\n[worker]\nconcurrency = 1\nbatch = 7\n'
    )
    settings = load(
        {"worker.concurrency": 3, "redis.url": None},
        STREAMLIB_REDIS_URL="redis://environ",
        STREAMLIB_WORKER_CONCURRENCY="2",
    )
    assert settings.worker.concurrency == 3, "a flag"
    assert settings.redis.url == "redis://environ", "a flag that was not given counts for nothing"
    assert settings.redis.namespace == "file"
    assert settings.worker.batch == 7
    assert settings.worker.drain_s == 25


def test_reclaim_is_a_third_of_the_lease_unless_set() -> None:
    assert load({"worker.lease_ms": 900}).worker.reclaim_ms == 300
    assert load({"worker.lease_ms": 900, "worker.reclaim_ms": 50}).worker.reclaim_ms == 50


@pytest.mark.parametrize(
    ("environ", "flags", "says"),
    [
        (
            {"STREAMLIB_REDIS_URI": "x"},
            {},
            "unknown setting redis.uri; known in redis: allow_eviction, ca_file",
        ),
        (
            {},
            {"worker.threads": 1},
            "the flags: unknown setting worker.threads; known in worker: batch, block_ms",
        ),
        (
            {},
            {"kafka.url": "x"},
            "unknown section 'kafka'; known: idempotency, limits, log, redis, retention",
        ),
        ({}, {"worker.concurrency": "many"}, "worker.concurrency = 'many': Expected `int`"),
        ({"STREAMLIB_WORKER_DRAIN_S": ""}, {}, "the environment: worker.drain_s = ''"),
        ({}, {"worker.concurrency": 0}, "worker.concurrency = 0: allowed are 1 to 10000"),
        ({}, {"worker.lease_ms": 10**12}, "worker.lease_ms = 1000000000000: allowed are 200 to"),
        ({}, {"redis.timeout_s": "nan"}, "redis.timeout_s = nan: allowed are 0.1 to 300"),
        ({}, {"limits.payload_bytes": -1}, "limits.payload_bytes = -1: allowed are 1 to"),
        ({}, {"log.level": "loud"}, "log.level = 'loud': Invalid enum value"),
        ({}, {"redis.allow_eviction": "perhaps"}, "redis.allow_eviction = 'perhaps'"),
        ({}, {"redis.namespace": "streamlib"}, "namespace 'streamlib' is kept for the registry"),
        ({}, {"redis.namespace": "a{b}"}, "namespace 'a{b}'"),
        (
            {},
            {"worker.block_ms": 5000, "worker.stall_s": 5},
            "worker.block_ms must be shorter than worker.stall_s",
        ),
    ],
)
def test_a_wrong_setting_is_refused_by_name(environ: dict[str, str], flags: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(flags, **environ)
    assert says in str(caught.value)
    assert isinstance(caught.value, ConfigError), "usage errors end with exit code 2"


@pytest.mark.parametrize("section", SECTIONS)
def test_an_unknown_key_lists_all_known_ones_of_its_section(section: str) -> None:
    known = getattr(Settings(), section).__struct_fields__
    with pytest.raises(SettingsError) as caught:
        load({f"{section}.typo": 1})
    assert f"known in {section}: {', '.join(sorted(known))}" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[redis\n", "streamlib.toml: "),
        ("[radish]\nurl = 'x'", "streamlib.toml: unknown section 'radish'"),
        ("[redis]\nulr = 'x'", "streamlib.toml: unknown setting redis.ulr; known in redis"),
        ("url = 'x'", "streamlib.toml: 'url' is no section; known: idempotency"),
        ("[worker]\nconcurrency = 'x'", "streamlib.toml: worker.concurrency = 'x'"),
    ],
)
def test_a_wrong_file_is_refused_by_name(empty_folder: Path, text: str, says: str) -> None:
    (empty_folder / "streamlib.toml").write_text(text)
    with pytest.raises(SettingsError) as caught:
        load()
    assert says in str(caught.value)


def test_a_file_asked_for_must_be_there(empty_folder: Path) -> None:
    with pytest.raises(SettingsError, match=r"absent\.toml"):
        load_settings(file=empty_folder / "absent.toml", environ={})


def test_a_file_that_is_no_text_is_refused_by_name(empty_folder: Path) -> None:
    (empty_folder / "streamlib.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match=r"streamlib\.toml"):
        load()


def test_variables_that_are_nobodys_section_are_left_alone() -> None:
    assert load(STREAMLIB_TEST_SERVER="valkey", STREAMLIBRARY="x", REDIS_URL="redis://other") == Settings()


@pytest.mark.parametrize(("text", "value"), [("true", True), ("1", True), ("false", False), ("0", False)])
def test_truth_values_of_the_environment(text: str, value: bool) -> None:
    assert load(STREAMLIB_REDIS_ALLOW_EVICTION=text).redis.allow_eviction is value


@given(user=st.sampled_from(["", "worker"]), password=st.text(st.characters(codec="ascii"), min_size=6))
def test_no_text_about_settings_shows_a_password(user: str, password: str) -> None:
    """Passwords that a URL can hold; in the user's place there may be none."""
    safe = "".join(c for c in password if c.isalnum() or c in "-._~!$&'()*+,;=:@%") or "secret"
    secret = f"S3{safe}"
    url = f"rediss://{user}:{secret}@redis.example:6380/1"
    settings = load({"redis.url": url})
    for shown in (redact(url), repr(settings), repr(settings.redis), str(settings.redis)):
        assert secret not in shown
        assert "redis.example:6380" in shown
    assert settings.redis.url == url


@pytest.mark.parametrize(
    "url",
    [
        "redis://u:S3cret@[h",
        "redis://h/0?password=S3cret",
        "unix://u:S3cret@/run/redis.sock",
        "redis://:S3cret@h:port",
    ],
)
def test_passwords_stay_hidden_in_unusual_addresses_too(url: str) -> None:
    assert "S3cret" not in redact(url)
    assert "S3cret" not in repr(RedisSettings(url=url))


def test_a_secret_in_the_wrong_place_is_not_repeated() -> None:
    with pytest.raises(SettingsError) as caught:
        load({"redis.timeout_s": "redis://u:S3cret@h"})
    assert "S3cret" not in str(caught.value)


@given(st.text(max_size=60))
def test_redact_takes_any_text(text: str) -> None:
    assert isinstance(redact(text), str)


def test_addresses_without_a_password_are_shown_whole() -> None:
    for url in ("redis://h:6379/0", "unix:///run/redis.sock", "embedded://./data"):
        assert redact(url) == url


def test_settings_are_frozen_and_take_no_unknown_names() -> None:
    with pytest.raises(AttributeError):
        Settings().worker.concurrency = 5  # type: ignore[misc]
    with pytest.raises(msgspec.ValidationError, match="nope"):
        msgspec.convert({"nope": 1}, WorkerSettings)
