"""Settings: sections with defaults, read from streamlib.toml, the environment and flags, checked once."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import msgspec
from msgspec import Struct

from streamlib.errors import DeclarationError, SettingsError
from streamlib.keys import check_namespace

ENV_PREFIX = "STREAMLIB_"
_USERINFO = re.compile(r"^(\w+://)([^:@/]*):.*@")
_OPTION = re.compile(r"([?&])([^=&]*)=([^&]*)")


class RedisSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where Redis is and how long we wait for it. `password_file` holds the password that `url` then has none of."""

    url: str = "redis://127.0.0.1:6379/0"
    password_file: str = ""
    namespace: str = ""
    timeout_s: float = 5.0
    retry_s: float = 30.0
    ca_file: str = ""
    allow_eviction: bool = False

    def __repr__(self) -> str:
        return f"RedisSettings(url={redact(self.url)!r}, namespace={self.namespace!r})"


class WorkerSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one worker process works. `lease_ms` is how long a claim holds unless it is renewed, `parked` how many events
    of one partition of an ordered group may wait in memory before it is read no further."""

    concurrency: int = 16
    processes: int = 1
    lease_ms: int = 30_000
    reclaim_ms: int = 0
    batch: int = 500
    block_ms: int = 2_000
    prefetch_bytes: int = 8 * 1024 * 1024
    drain_s: float = 25.0
    stall_s: float = 60.0
    crash_limit: int = 3
    unknown_ttl_s: float = 86_400.0
    parked: int = 10_000
    http: str = "127.0.0.1:9464"

    def __post_init__(self) -> None:
        if self.reclaim_ms == 0:
            msgspec.structs.force_setattr(self, "reclaim_ms", max(self.lease_ms // 3, 1))


class IdempotencySettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long a finished event's id is remembered, per group, and how: as a key of its own, or as a member of a set of
    digests ("compact"), which takes a sixth of the memory and more of the server's time."""

    window_s: float = 3_600.0
    store: Literal["keys", "compact"] = "keys"


class RetentionSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may be trimmed once every declared group is done with it; 0 sets no bound of that kind."""

    max_age_s: float = 7 * 86_400.0
    max_len: int = 0


class LimitSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Past these a publish is refused. `topic_len` counts the entries of one partition; 0 sets no bound."""

    topic_len: int = 10_000_000
    payload_bytes: int = 262_144


class LogSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is logged, to stderr."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["console", "json"] = "console"


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All sections."""

    redis: RedisSettings = RedisSettings()
    worker: WorkerSettings = WorkerSettings()
    idempotency: IdempotencySettings = IdempotencySettings()
    retention: RetentionSettings = RetentionSettings()
    limits: LimitSettings = LimitSettings()
    log: LogSettings = LogSettings()

    def __post_init__(self) -> None:
        _check(self)


_SECTIONS: dict[str, type[Struct]] = {
    "redis": RedisSettings,
    "worker": WorkerSettings,
    "idempotency": IdempotencySettings,
    "retention": RetentionSettings,
    "limits": LimitSettings,
    "log": LogSettings,
}

_RANGES: dict[str, tuple[float, float]] = {
    "redis.timeout_s": (0.1, 300),
    "redis.retry_s": (0, 3_600),
    "worker.concurrency": (1, 10_000),
    "worker.processes": (0, 1_024),
    "worker.lease_ms": (200, 86_400_000),
    "worker.reclaim_ms": (10, 86_400_000),
    "worker.batch": (1, 500),
    "worker.block_ms": (10, 60_000),
    "worker.prefetch_bytes": (65_536, 1 << 32),
    "worker.drain_s": (0, 86_400),
    "worker.stall_s": (1, 86_400),
    "worker.crash_limit": (1, 100),
    "worker.parked": (1, 10_000_000),
    "worker.unknown_ttl_s": (0, 365 * 86_400),
    "idempotency.window_s": (1, 365 * 86_400),
    "retention.max_age_s": (0, 100 * 365 * 86_400),
    "retention.max_len": (0, 1 << 53),
    "limits.topic_len": (0, 1 << 53),
    "limits.payload_bytes": (1, 4 * 1024 * 1024),
}


def load_settings(
    flags: Mapping[str, Any] | None = None,
    *,
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Settings from defaults < file < environment < flags.

    `flags` maps "section.field" to a value (None is "not given"). Without `file`, `streamlib.toml` in the working
    directory is read if it exists. Raises SettingsError, which names the setting and what is known.
    """
    merged: dict[str, dict[str, Any]] = {name: {} for name in _SECTIONS}
    for origin, values in (
        (str(file or "streamlib.toml"), _from_file(file)),
        ("the environment", _from_environ(os.environ if environ is None else environ)),
        ("the flags", {name: value for name, value in (flags or {}).items() if value is not None}),
    ):
        for name, value in values.items():
            section, field = _known(name, origin)
            merged[section][field] = _convert(name, value, _SECTIONS[section], field, origin)
    try:
        return Settings(**{name: _SECTIONS[name](**values) for name, values in merged.items()})  # type: ignore[arg-type]
    except DeclarationError as error:
        raise SettingsError(str(error)) from error


def redact(url: str) -> str:
    """The URL without its passwords, for logs and errors."""
    return _USERINFO.sub(r"\1\2:***@", _OPTION.sub(_without_password, url))


def _without_password(option: re.Match[str]) -> str:
    """An @ stays: what stands before it may be the first half of a password that is not percent-encoded."""
    mark, name, value = option.groups()
    if not unquote(name).endswith("password"):
        return option[0]
    return f"{mark}{name}=***{'@' if '@' in value else ''}"


def _from_file(file: Path | None) -> dict[str, Any]:
    path = file or Path("streamlib.toml")
    if file is None and not path.exists():
        return {}
    try:
        loaded = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"settings file {path}: {error}") from error
    flat: dict[str, Any] = {}
    for section, values in loaded.items():
        if not isinstance(values, dict):
            raise SettingsError(f"settings file {path}: {section!r} is no section; known: {_list(_SECTIONS)}")
        flat |= {f"{section}.{field}": value for field, value in values.items()}
    return flat


def _from_environ(environ: Mapping[str, str]) -> dict[str, Any]:
    """STREAMLIB_<SECTION>_<FIELD>; names whose first word is no section belong to somebody else."""
    found: dict[str, Any] = {}
    for name, value in environ.items():
        if name.startswith(ENV_PREFIX):
            section, _, field = name.removeprefix(ENV_PREFIX).lower().partition("_")
            if section in _SECTIONS:
                found[f"{section}.{field}"] = value
    return found


def _known(name: str, origin: str) -> tuple[str, str]:
    section, _, field = name.partition(".")
    if section not in _SECTIONS:
        raise SettingsError(f"{origin}: unknown section {section!r}; known: {_list(_SECTIONS)}")
    fields = _SECTIONS[section].__struct_fields__
    if field not in fields:
        raise SettingsError(f"{origin}: unknown setting {section}.{field}; known in {section}: {_list(fields)}")
    return section, field


def _convert(name: str, value: Any, section: type[Struct], field: str, origin: str) -> Any:
    wanted = next(f.type for f in msgspec.structs.fields(section) if f.name == field)
    try:
        return msgspec.convert(value, wanted, strict=False)
    except msgspec.ValidationError as error:
        shown = redact(value) if isinstance(value, str) else value
        raise SettingsError(f"{origin}: {name} = {shown!r}: {error}") from error


def _check(settings: Settings) -> None:
    for name, (low, high) in _RANGES.items():
        section, field = name.split(".")
        value = getattr(getattr(settings, section), field)
        if not low <= value <= high:
            raise SettingsError(f"{name} = {value}: allowed are {low:g} to {high:g}")
    check_namespace(settings.redis.namespace)
    if settings.idempotency.store not in ("keys", "compact"):
        raise SettingsError(f"idempotency.store = {settings.idempotency.store!r}; choose 'keys' or 'compact'")
    if settings.worker.block_ms >= settings.worker.stall_s * 1000:
        raise SettingsError("worker.block_ms must be shorter than worker.stall_s")


def _list(names: Any) -> str:
    return ", ".join(sorted(names))
